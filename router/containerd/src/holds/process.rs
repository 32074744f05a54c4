//! The processes of one container as a state machine: whichever order its inputs have, each
//! process's exit is reported once.
//!
//! ```text
//!   exec-added ----+                                  +--> report the exit (first input that ends the process)
//!   exec-started --+--> row (exec id, pid) --- Ended -+--> has exec-started been received?
//!   Rule ----------+                                  +--> status that was released before
//!   TaskExit ------+
//!   Released ------+
//! ```
//!
//! The shim's events and its proxy's requests come over two connections, so a request about a short
//! exec is often received before the events about it, and may not contain the pid.

use std::collections::VecDeque;

/// Processes remembered after all their inputs: repeats come within half a minute. A container that
/// is probed by execs has one more every few seconds.
const COMPLETE: usize = 64;
/// Processes remembered in all. Without it a shim that never publishes exec-started would fill the
/// memory.
const ALL: usize = 256;

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// `None`: the container's init.
    pub exec: Option<String>,
    /// As the node counts; `None`: not known.
    pub pid: Option<u32>,
}

/// The input that ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reporter {
    /// TaskExit, published by the shim.
    Shim,
    /// Rule, requested by the shim's proxy or the embedding shim.
    Request,
    /// containerd's list of tasks.
    Containerd,
}

/// The outcome of an input that ends a process.
#[derive(Debug, PartialEq, Eq)]
pub struct ProcessEnd {
    /// The process, with the pid that its exit's signal has for good.
    pub process: Process,
    /// The exit is reported now; if not, it was before.
    pub is_first: bool,
    /// The event that it started has been received.
    pub started: bool,
    /// A status that was released before the exit was reported.
    pub released: Option<u32>,
}

/// One process.
#[derive(Debug)]
struct ProcessState {
    process: Process,
    created: bool,
    started: bool,
    /// The shim's own TaskExit was received.
    exited: bool,
    /// The exit was reported, with this pid.
    reported: Option<Option<u32>>,
    released: Option<u32>,
}

/// The processes of one container, the oldest first.
#[derive(Debug, Default)]
pub struct Processes(VecDeque<ProcessState>);

impl Processes {
    /// The event that a process was created; an exec's has no pid.
    pub fn created(&mut self, process: Process) {
        let same = |row: &&mut ProcessState| row.process.exec == process.exec;
        match self.0.iter_mut().rev().find(same) {
            Some(row) if !row.created && row.can_be(process.pid) => {
                row.created = true;
                row.process.pid = row.process.pid.or(process.pid);
            }
            // A repeat: an id is given again only once its process has ended, and then with another
            // pid.
            Some(row) if row.reported.is_none() && row.can_be(process.pid) => {}
            Some(row) if process.pid.is_some() && row.process.pid == process.pid => {}
            _ => self.push(ProcessState { created: true, ..ProcessState::new(process) }),
        }
    }

    /// The event that a process started. The exit that was reported without its pid, if so.
    pub fn started(&mut self, process: Process) -> Option<Process> {
        let Some(at) = self.find(&process, |row| !row.started) else {
            self.push(ProcessState { started: true, ..ProcessState::new(process) });
            return None;
        };
        let row = &mut self.0[at];
        row.started = true;
        row.process.pid = row.process.pid.or(process.pid);
        let unknown = row.reported == Some(None) && row.process.pid.is_some();
        unknown.then_some(Process { exec: process.exec, pid: None })
    }

    /// A process has ended.
    pub fn ended(&mut self, process: Process, reporter: Reporter) -> ProcessEnd {
        let at = self.find(&process, |_| true).unwrap_or_else(|| {
            self.push(ProcessState::new(process.clone()));
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.process.pid = row.process.pid.or(process.pid);
        row.exited |= reporter == Reporter::Shim;
        let is_first = row.reported.is_none();
        let pid = *row.reported.get_or_insert(row.process.pid);
        ProcessEnd {
            process: Process { exec: process.exec, pid },
            is_first,
            started: row.started,
            released: row.released.filter(|_| is_first),
        }
    }

    /// A status was released. Returns its process if the exit was reported; if not, the status is
    /// kept until then.
    pub fn released(&mut self, process: Process, status: u32) -> Option<Process> {
        let at = self.find(&process, |_| true).unwrap_or_else(|| {
            self.push(ProcessState::new(process.clone()));
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        row.process.pid = row.process.pid.or(process.pid);
        row.released = Some(status);
        row.reported.map(|pid| Process { exec: process.exec, pid })
    }

    /// Whether the end of the container's init was reported.
    pub fn is_over(&self) -> bool {
        self.0.iter().any(|row| row.reported.is_some() && row.process.exec.is_none())
    }

    /// The pid of the container's init.
    pub fn init_pid(&self) -> Option<u32> {
        self.0.iter().find(|row| row.process.exec.is_none())?.process.pid
    }

    /// The row of a process: the one with its pid, or else the newest without one that `may_be` it.
    fn find(&self, process: &Process, may_be: impl Fn(&ProcessState) -> bool) -> Option<usize> {
        let newest = |wanted: &dyn Fn(&ProcessState) -> bool| {
            self.0.iter().rposition(|row| row.process.exec == process.exec && wanted(row))
        };
        let exact = newest(&|row| process.pid.is_some() && row.process.pid == process.pid);
        exact.or_else(|| newest(&|row| row.can_be(process.pid) && may_be(row)))
    }

    fn push(&mut self, row: ProcessState) {
        let complete = self.0.iter().filter(|row| row.is_complete()).count();
        let oldest = match complete >= COMPLETE {
            true => self.0.iter().position(ProcessState::is_complete),
            false if self.0.len() >= ALL => {
                Some(self.0.iter().position(|row| row.reported.is_some()).unwrap_or(0))
            }
            false => None,
        };
        oldest.and_then(|at| self.0.remove(at));
        self.0.push_back(row);
    }
}

impl ProcessState {
    fn new(process: Process) -> Self {
        Self { process, created: false, started: false, exited: false, reported: None, released: None }
    }

    /// Whether this may be the process with that pid.
    fn can_be(&self, pid: Option<u32>) -> bool {
        pid.is_none() || self.process.pid.is_none() || self.process.pid == pid
    }

    /// Nothing but repeats can come of it.
    fn is_complete(&self) -> bool {
        self.reported.is_some() && self.started && self.exited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(pid: Option<u32>) -> Process {
        Process { exec: None, pid }
    }

    fn exec(pid: Option<u32>) -> Process {
        Process { exec: Some("e".to_owned()), pid }
    }

    #[test]
    fn exit_reported_once_whether_or_not_the_pid_is_known() {
        for (begun, first, second) in [
            (Some(7), None, Some(7)),
            (Some(7), Some(7), None),
            (None, Some(7), Some(7)),
            (None, None, Some(7)),
        ] {
            let mut processes = Processes::default();
            processes.created(init(begun));
            assert!(processes.ended(init(first), Reporter::Request).is_first, "{begun:?} {first:?}");
            let again = processes.ended(init(second), Reporter::Shim);
            assert!(!again.is_first, "{begun:?} {first:?} {second:?}");
            assert!(processes.is_over());
        }
    }

    #[test]
    fn exec_id_used_again_is_another_process() {
        let mut processes = Processes::default();
        for pid in 8..1100 {
            processes.created(exec(None));
            processes.started(exec(Some(pid)));
            assert!(processes.ended(exec(Some(pid)), Reporter::Shim).is_first);
            assert!(!processes.ended(exec(Some(pid)), Reporter::Shim).is_first);
        }
        assert!(!processes.ended(exec(Some(1050)), Reporter::Request).is_first && !processes.is_over());
        assert!(processes.0.len() <= COMPLETE + 1, "{}", processes.0.len());
    }

    #[test]
    fn repeated_events_begin_no_other_process() {
        let mut processes = Processes::default();
        processes.created(exec(None));
        processes.created(exec(None));
        processes.started(exec(Some(8)));
        processes.ended(exec(Some(8)), Reporter::Shim);
        processes.started(exec(Some(8)));
        assert!(!processes.ended(exec(Some(8)), Reporter::Shim).is_first);
        assert_eq!(processes.0.len(), 1);
    }

    #[test]
    fn processes_without_start_event_are_bounded() {
        let mut processes = Processes::default();
        for pid in 1..1000 {
            let process = Process { exec: Some(pid.to_string()), pid: Some(pid) };
            processes.ended(process, Reporter::Request);
        }
        assert_eq!(processes.0.len(), ALL);
    }
}
