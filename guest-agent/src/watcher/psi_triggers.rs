//! Registers and closes PSI triggers on a blocking thread: the kernel starts a thread for a
//! cgroup's first trigger and ends it with the last, and the caller waits for that. In a guest with
//! a hundred busy processes that wait kept the agent from answering for more than two seconds.

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
use crate::pressure::{PsiLine, PsiTrigger, for_container};
use crate::watcher::{PRESSURE, Watcher};

/// A new container's triggers are registered after this long: pressure that matters lasts longer,
/// and a container that ends before costs the kernel no thread.
const REGISTER_AFTER: Duration = Duration::from_millis(100);

/// Descriptors of registered triggers, each with its line.
pub(crate) type RegisteredTriggers = Vec<(PsiLine, OwnedFd)>;

/// Queue of triggers to register and to close. One container's are under way at a time.
#[derive(Debug, Default)]
pub(crate) struct TriggerWorker {
    /// A set: without it a reader could grow it by requesting triggers repeatedly.
    wanted: BTreeSet<u32>,
    closing: RegisteredTriggers,
    under_way: Option<(u32, JoinHandle<RegisteredTriggers>)>,
}

impl TriggerWorker {
    /// Resolves when the work under way is done; never if there is none.
    pub(crate) async fn done(&mut self) -> (u32, RegisteredTriggers) {
        let Some((key, work)) = &mut self.under_way else { return std::future::pending().await };
        // A job that panicked has registered nothing.
        let done = (*key, work.await.unwrap_or_default());
        self.under_way = None;
        done
    }

    pub(crate) fn shrink(&mut self) {
        self.closing.shrink_to_fit();
    }
}

impl Watcher {
    /// Schedules the registration of a container's triggers, configured or requested.
    fn schedule_triggers(&mut self, key: u32, after: Duration) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let at = Instant::now() + after;
        container.pressure.register_at = Some(at);
        self.due.insert((at, key));
    }

    /// Schedules the configured triggers of a container that has just appeared.
    pub(crate) fn schedule_usual_triggers(&mut self, key: u32) {
        self.schedule_triggers(key, REGISTER_AFTER);
    }

    /// Replaces a container's triggers with the ones that a reader requested.
    pub(crate) fn request_pressure(&mut self, key: u32, triggers: &[PsiTrigger]) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.pressure.requested = Some(triggers.into());
        self.schedule_triggers(key, Duration::ZERO);
    }

    pub(crate) fn register_due_triggers(&mut self, key: u32, now: Instant) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.pressure.register_at.take_if(|at| *at <= now).is_some()
            && self.hierarchy.version() == Version::V2
        {
            self.trigger_worker.wanted.insert(key);
        }
    }

    /// Queues a container's triggers to be closed.
    pub(crate) fn release_triggers(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.pressure.register_at = None;
        let registered = std::mem::take(&mut container.pressure.registered);
        for (_, file) in &registered {
            // The trigger of a removed cgroup stays readable, and is closed later.
            epoll::delete(&*self.epoll, file).ok();
        }
        self.trigger_worker.closing.extend(registered);
    }

    /// Starts the next job if none is under way.
    pub(crate) fn register_next_triggers(&mut self) {
        if self.trigger_worker.under_way.is_some() {
            return;
        }
        let mut next = None;
        while let Some(key) = self.trigger_worker.wanted.pop_first() {
            self.release_triggers(key);
            let Some(container) = self.containers.get(&key).filter(|it| !it.gone) else { continue };
            let usual = || for_container(&self.pressure, &container.id).into();
            let triggers: Box<[PsiTrigger]> = container.pressure.requested.clone().unwrap_or_else(usual);
            next = Some((key, self.hierarchy.folder(&container.cgroup), triggers));
            break;
        }
        let closing = std::mem::take(&mut self.trigger_worker.closing);
        if next.is_none() && closing.is_empty() {
            return;
        }
        let key = next.as_ref().map_or(0, |(key, ..)| *key);
        let work = tokio::task::spawn_blocking(move || {
            drop(closing);
            next.map(|(_, folder, triggers)| register_all(&folder, &triggers)).unwrap_or_default()
        });
        self.trigger_worker.under_way = Some((key, work));
    }

    /// Adds newly registered triggers to the epoll; closes those of a container that is gone.
    pub(crate) fn triggers_registered(&mut self, key: u32, registered: RegisteredTriggers) {
        let Some(container) = self.containers.get_mut(&key).filter(|it| !it.gone) else {
            self.trigger_worker.closing.extend(registered);
            return;
        };
        for (at, (_, file)) in registered.iter().enumerate() {
            let data = epoll::EventData::new_u64(PRESSURE | (at as u64) << 40 | u64::from(key));
            if let Err(error) = epoll::add(&*self.epoll, file, data, epoll::EventFlags::PRI) {
                log!(Error, "cannot wait for pressure", error = error);
            }
        }
        container.pressure.registered = registered;
    }
}

fn register_all(folder: &Path, triggers: &[PsiTrigger]) -> RegisteredTriggers {
    let mut registered = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        match register(folder.join(trigger.line().file()), trigger) {
            Ok(file) => registered.push((trigger.line(), file)),
            // The cgroup is gone already, or the kernel has no PSI, which `check` reports.
            Err(error) => log!(Debug, "no pressure trigger", cgroup = folder.display(), error = error),
        }
    }
    registered
}

/// Registers one trigger: the kernel keeps it for as long as the file is open.
fn register(path: PathBuf, trigger: &PsiTrigger) -> io::Result<OwnedFd> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let line = if trigger.full { "full" } else { "some" };
    file.write_all(format!("{line} {} {}\0", trigger.stall_us, trigger.window_us).as_bytes())?;
    Ok(file.into())
}
