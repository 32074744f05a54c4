//! The kernel's notices that memory ran out in a container: v1's eventfd, v2's changes of
//! `memory.events`. A notice is only a hint: the counter is read after it.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use coroner_cgroup::{Hierarchy, Version};
use rustix::event::{Timespec, epoll};
use rustix::fs::inotify;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use tokio::io::unix::AsyncFd;

use coroner_core::signal::ContainerId;

/// Notices read at once.
const BATCH: usize = 64;
/// The tokens of the inotify instance and of the timer; containers count from there.
const FILES: u64 = 0;
const TIMER: u64 = 1;

/// Receives the notices of all containers.
#[derive(Debug)]
pub(super) struct Watch {
    hierarchy: Hierarchy,
    ready: AsyncFd<Arc<OwnedFd>>,
    files: OwnedFd,
    /// The runtime's own timers count in whole milliseconds.
    timer: OwnedFd,
    next: u64,
    events: HashMap<u64, (ContainerId, OwnedFd)>,
    watched: HashMap<i32, ContainerId>,
}

impl Watch {
    /// Watches the node's own hierarchy. Must be called on the runtime.
    pub(super) fn new(hierarchy: Hierarchy) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let files = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        epoll::add(&set, &files, epoll::EventData::new_u64(FILES), epoll::EventFlags::IN)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&set, &timer, epoll::EventData::new_u64(TIMER), epoll::EventFlags::IN)?;
        let ready = coroner_cgroup::ready::register(Arc::new(set))?;
        let (events, watched) = (HashMap::new(), HashMap::new());
        Ok(Self { hierarchy, ready, files, timer, next: TIMER + 1, events, watched })
    }

    pub(super) fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Makes `noticed` return after this delay, or earlier.
    pub(super) fn wake_in(&self, gap: Duration) {
        let now = rustix::time::timerfd_gettime(&self.timer).map(|it| it.it_value);
        let left = now.ok().and_then(|it| Duration::try_from(it).ok()).filter(|left| !left.is_zero());
        if left.is_some_and(|left| left <= gap) {
            return;
        }
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(value) = Timespec::try_from(gap) else { return };
        let timer = Itimerspec { it_interval: once, it_value: value };
        // An error is ignored: the caller has a timer of the runtime too.
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &timer).ok();
    }

    /// Subscribes to the kernel's notices of this container.
    pub(super) fn add(&mut self, id: &ContainerId, cgroup: &str) -> io::Result<()> {
        match self.hierarchy.version() {
            Version::V1 => {
                let Some(event) = self.hierarchy.oom_event(cgroup)? else { return Ok(()) };
                let token = self.next;
                self.next += 1;
                let data = epoll::EventData::new_u64(token);
                epoll::add(&**self.ready.get_ref(), event.as_fd(), data, epoll::EventFlags::IN)?;
                self.events.insert(token, (id.clone(), event));
            }
            Version::V2 => {
                let file = self.hierarchy.folder(cgroup).join("memory.events");
                let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE_SELF;
                let watch = inotify::add_watch(&self.files, &file, flags)?;
                self.watched.insert(watch, id.clone());
            }
        }
        Ok(())
    }

    /// Unsubscribes from a container's notices.
    pub(super) fn remove(&mut self, id: &ContainerId) {
        // A descriptor that is closed leaves its epoll set by itself.
        self.events.retain(|_, (it, _)| it != id);
        let gone: Vec<i32> =
            self.watched.iter().filter(|(_, it)| *it == id).map(|(watch, _)| *watch).collect();
        for watch in gone {
            self.watched.remove(&watch);
            // An error is ignored: the cgroup may be gone, and the watch with it.
            inotify::remove_watch(&self.files, watch).unwrap_or(());
        }
    }

    /// Waits for notices and returns their containers; none if the delay of `wake_in` has passed.
    pub(super) async fn noticed(&mut self) -> Vec<ContainerId> {
        loop {
            let Ok(mut guard) = self.ready.readable().await else { return std::future::pending().await };
            let mut events =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
                    BATCH];
            let count =
                epoll::wait(&**guard.get_inner(), &mut events[..], Some(&Timespec::default())).unwrap_or(0);
            if count == 0 {
                guard.clear_ready();
                continue;
            }
            let (mut noticed, mut over) = (Vec::new(), false);
            for event in &events[..count] {
                match { event.data }.u64() {
                    FILES => self.files_changed(&mut noticed),
                    TIMER => {
                        rustix::io::read(&self.timer, &mut [0; 8]).ok();
                        over = true;
                    }
                    token => {
                        let Some((id, event)) = self.events.get(&token) else { continue };
                        // Level-triggered: without the read the event would repeat.
                        rustix::io::read(event, &mut [0; 8]).ok();
                        noticed.push(id.clone());
                    }
                }
            }
            noticed.sort();
            noticed.dedup();
            if over || !noticed.is_empty() {
                return noticed;
            }
        }
    }

    fn files_changed(&self, noticed: &mut Vec<ContainerId>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.files, &mut buffer);
        while let Ok(event) = reader.next() {
            noticed.extend(self.watched.get(&event.wd()).cloned());
        }
    }
}
