//! Arms and disarms PSI triggers, on a thread of its own: the kernel starts a thread for a cgroup's first trigger and ends it with the last, and
//! who asks waits for that. In a guest with a hundred busy processes the agent was in that wait time and again, and answered nobody for more than two seconds.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::epoll;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cgroup::Version;
use crate::log::log;
use crate::pressure::{Line, Trigger, for_container};
use crate::watcher::{PRESSURE, Watcher};

/// A new container's triggers are armed after this long: one that is short of something is so for longer, and one that is over by then
/// costs the kernel no thread.
const ARMED_AFTER: Duration = Duration::from_millis(100);

/// Descriptors of triggers, each with the line it is for.
pub(crate) type Armed = Vec<(Line, OwnedFd)>;

/// What is to be armed and to be closed. One container's is under way at a time.
#[derive(Debug, Default)]
pub(crate) struct Arming {
    /// Once each: who may ask could ask for one again and again.
    wanted: BTreeSet<u32>,
    closing: Armed,
    under_way: Option<(u32, JoinHandle<Armed>)>,
}

impl Arming {
    /// Resolves when what is under way is done; never, where nothing is.
    pub(crate) async fn done(&mut self) -> (u32, Armed) {
        let Some((key, work)) = &mut self.under_way else { return std::future::pending().await };
        // One that panicked has armed nothing.
        let done = (*key, work.await.unwrap_or_default());
        self.under_way = None;
        done
    }

    pub(crate) fn shrink(&mut self) {
        self.closing.shrink_to_fit();
    }
}

impl Watcher {
    /// A container's triggers are armed in a moment: those the agent was told of, or those somebody asked for.
    fn plan_pressure(&mut self, key: u32, after: Duration) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let at = Instant::now() + after;
        container.pressure.arm_at = Some(at);
        self.due.insert((at, key));
    }

    /// The usual ones of a container that has just appeared.
    pub(crate) fn plan_usual_pressure(&mut self, key: u32) {
        self.plan_pressure(key, ARMED_AFTER);
    }

    /// Sets a container's triggers, in place of those it had.
    pub(crate) fn ask_for_pressure(&mut self, key: u32, triggers: &[Trigger]) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.pressure.asked = Some(triggers.into());
        self.plan_pressure(key, Duration::ZERO);
    }

    pub(crate) fn tend_pressure(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.pressure.arm_at.take_if(|at| *at <= now).is_some()
            && self.hierarchy.version() == Version::V2
        {
            self.arming.wanted.insert(key);
        }
    }

    /// Lets go of a container's triggers.
    pub(crate) fn disarm(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.pressure.arm_at = None;
        let armed = std::mem::take(&mut container.pressure.armed);
        for (_, file) in &armed {
            // That of a removed cgroup is ready for ever, and it may be a while until it is closed.
            epoll::delete(&*self.epoll, file).ok();
        }
        self.arming.closing.extend(armed);
    }

    /// Begins what is to be done next, if nothing is under way.
    pub(crate) fn go_on_arming(&mut self) {
        if self.arming.under_way.is_some() {
            return;
        }
        let mut next = None;
        while let Some(key) = self.arming.wanted.pop_first() {
            self.disarm(key);
            let Some(container) = self.containers.get(&key).filter(|it| !it.gone) else { continue };
            let usual = || for_container(&self.pressure, &container.id).into();
            let triggers: Box<[Trigger]> = container.pressure.asked.clone().unwrap_or_else(usual);
            next = Some((key, self.hierarchy.folder(&container.cgroup), triggers));
            break;
        }
        let closing = std::mem::take(&mut self.arming.closing);
        if next.is_none() && closing.is_empty() {
            return;
        }
        let key = next.as_ref().map_or(0, |(key, ..)| *key);
        let work = tokio::task::spawn_blocking(move || {
            drop(closing);
            next.map(|(_, folder, triggers)| armed(&folder, &triggers)).unwrap_or_default()
        });
        self.arming.under_way = Some((key, work));
    }

    /// What was armed is waited for; what came too late is let go of.
    pub(crate) fn take_armed(&mut self, key: u32, armed: Armed) {
        let Some(container) = self.containers.get_mut(&key).filter(|it| !it.gone) else {
            self.arming.closing.extend(armed);
            return;
        };
        for (at, (_, file)) in armed.iter().enumerate() {
            let data = epoll::EventData::new_u64(PRESSURE | (at as u64) << 40 | u64::from(key));
            if let Err(error) = epoll::add(&*self.epoll, file, data, epoll::EventFlags::PRI) {
                log!(Error, "cannot wait for pressure", error = error);
            }
        }
        container.pressure.armed = armed;
    }
}

fn armed(folder: &Path, triggers: &[Trigger]) -> Armed {
    let mut armed = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        match arm(folder.join(trigger.line().file()), trigger) {
            Ok(file) => armed.push((trigger.line(), file)),
            // A cgroup that is gone already, or a kernel that has no PSI, which `check` tells.
            Err(error) => log!(Debug, "no pressure trigger", cgroup = folder.display(), error = error),
        }
    }
    armed
}

/// Writes the trigger: the kernel keeps it for as long as the file is open.
fn arm(path: PathBuf, trigger: &Trigger) -> io::Result<OwnedFd> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let line = if trigger.full { "full" } else { "some" };
    file.write_all(format!("{line} {} {}\0", trigger.stall_us, trigger.window_us).as_bytes())?;
    Ok(file.into())
}
