//! Runtimes that were seen to start. `runc kill` lives for some milliseconds, and is often gone
//! when its signal is read.

use std::collections::VecDeque;
use std::time::Duration;

/// Processes kept, and threads of each. The latest are the ones that send signals.
const MAX_SEEN: usize = 32;
const MAX_THREADS: usize = 64;

/// A process that called exec under a runtime's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenRuntime {
    pub(crate) pid: u32,
    pub(crate) comm: Box<str>,
    /// That of the process at its exec.
    pub(crate) cgroup: Box<str>,
    /// On the boot clock.
    pub(crate) started: Duration,
}

/// The latest of them, with their threads.
#[derive(Debug, Default)]
pub(crate) struct SeenRuntimes(VecDeque<(SeenRuntime, Vec<u32>)>);

impl SeenRuntimes {
    /// Whether a name is a runtime's. The kernel cuts it to 15 bytes.
    pub(crate) fn is_name(comm: &str) -> bool {
        ["runc", "crun", "youki", "conmon", "conmonrs"].contains(&comm) || comm.starts_with("containerd-shim")
    }

    pub(crate) fn add(&mut self, runtime: SeenRuntime) {
        self.forget(runtime.pid);
        if self.0.len() == MAX_SEEN {
            self.0.pop_front();
        }
        self.0.push_back((runtime, Vec::new()));
    }

    /// A new thread of a process.
    pub(crate) fn add_thread(&mut self, pid: u32, thread: u32) {
        self.forget(thread);
        if let Some((_, threads)) = self.0.iter_mut().find(|(runtime, _)| runtime.pid == pid)
            && threads.len() < MAX_THREADS
        {
            threads.push(thread);
        }
    }

    /// Another process, program or thread has this id now.
    pub(crate) fn forget(&mut self, id: u32) {
        self.0.retain(|(runtime, _)| runtime.pid != id);
        self.0.iter_mut().for_each(|(_, threads)| threads.retain(|thread| *thread != id));
    }

    /// Events were lost: the ids may be those of others.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The runtime with this thread, under this name. Its name changes with its program.
    pub(crate) fn find(&self, thread: u32, comm: &str, at: Duration) -> Option<&SeenRuntime> {
        let has = |(runtime, threads): &&(SeenRuntime, Vec<u32>)| {
            runtime.pid == thread || threads.contains(&thread)
        };
        let (runtime, _) = self.0.iter().find(has)?;
        (&*runtime.comm == comm && runtime.started <= at).then_some(runtime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pid: u32) -> SeenRuntime {
        SeenRuntime { pid, comm: "runc".into(), cgroup: "/s".into(), started: Duration::from_secs(2) }
    }

    #[test]
    fn runtime_is_found_by_its_threads_until_they_are_others() {
        let mut runtimes = SeenRuntimes::default();
        runtimes.add(seen(7));
        runtimes.add_thread(7, 8);
        runtimes.add_thread(6, 9);
        let find = |runtimes: &SeenRuntimes, thread, comm, seconds| {
            runtimes.find(thread, comm, Duration::from_secs(seconds)).map(|it| it.pid)
        };
        assert_eq!(find(&runtimes, 7, "runc", 2), Some(7));
        assert_eq!(find(&runtimes, 8, "runc", 3), Some(7));
        // Another process's thread; another program; before it started.
        assert_eq!(find(&runtimes, 9, "runc", 3), None);
        assert_eq!(find(&runtimes, 7, "kill", 3), None);
        assert_eq!(find(&runtimes, 7, "", 3), None);
        assert_eq!(find(&runtimes, 7, "runc", 1), None);
        runtimes.forget(8);
        assert_eq!(find(&runtimes, 8, "runc", 3), None);
        assert_eq!(find(&runtimes, 7, "runc", 3), Some(7));
        runtimes.forget(7);
        assert_eq!(find(&runtimes, 7, "runc", 3), None);
    }

    #[test]
    fn runtimes_and_threads_are_bounded() {
        let mut runtimes = SeenRuntimes::default();
        for pid in 0..100 {
            runtimes.add(seen(pid));
        }
        for thread in 1000..2000 {
            runtimes.add_thread(99, thread);
        }
        assert_eq!(runtimes.0.len(), MAX_SEEN);
        assert_eq!(runtimes.0.back().map(|(_, threads)| threads.len()), Some(MAX_THREADS));
        runtimes.clear();
        assert!(runtimes.0.is_empty());
    }
}
