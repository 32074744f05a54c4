//! Gathers the evidence of the cause of an exit: before its record is written, and while the pid is
//! known.

use std::time::Duration;

use coroner_proto::agent::{Cause, Witness};

use crate::cause::{Evidence, OomEvidence, classify};
use crate::cgroup::Version;
use crate::oom_trace::OomTrace;
use crate::shared_state::now;
use crate::trace::SIGKILL;
use crate::watcher::{Watcher, wait_status};

/// A kill counted at most this long before an exit may be the cause of the exit.
const RECENT: Duration = Duration::from_secs(10);

impl Watcher {
    /// The cause of a process's end. After the final read of the counter.
    pub(crate) fn cause_of(&mut self, key: u32, pid: u32, code: u32) -> Option<Cause> {
        let signal = wait_status::signal(code);
        // Also of a process that exited: its pid may be another's soon.
        let mut oom = self.oom_evidence(key, pid, signal);
        if signal == 0 {
            self.sent.forget(pid);
            return None;
        }
        self.read_signals(true);
        let sent = self.sent.take(pid, signal, Duration::from_nanos(now().boot_ns));
        if let Some(thread) = sent.as_ref().map(|sent| sent.event.pid).filter(|thread| *thread != pid) {
            // The OOM killer chose a thread, and the agent did not see that thread's end.
            let (trace, log) = self.take_victim(thread);
            oom = OomEvidence { trace: oom.trace || trace, log: oom.log || log, ..oom };
        }
        let container = self.containers.get(&key)?;
        classify(&Evidence {
            signal,
            pid,
            key,
            cgroup: &container.cgroup,
            oom,
            sent: sent.as_ref(),
            oomd_rose: signal == SIGKILL
                && self.hierarchy.oomd_kills(&container.cgroup) > container.oomd_before,
            is_stop_after_kill: self.hierarchy.version() == Version::V2 && container.is_stop_after_kill(),
            has_all_marks: self.oom_trace.as_ref().is_some_and(OomTrace::is_complete),
        })
    }

    fn oom_evidence(&mut self, key: u32, pid: u32, signal: u32) -> OomEvidence {
        // The pids of the log and the trace are the initial namespace's, as the connector's are.
        if self.connector.is_none() {
            return OomEvidence::default();
        }
        if signal == SIGKILL {
            self.drain_trace();
            if let Some(kmsg) = &mut self.kmsg {
                kmsg.drain();
            }
        }
        let (trace, log) = self.take_victim(pid);
        let counted = self.containers.get(&key).is_some_and(|container| {
            let is_recent = Duration::from_nanos(now().boot_ns) < container.last_kill_at + RECENT;
            let witness = container.last_kill.as_ref().map(|kill| kill.witness.enum_value());
            is_recent && witness == Some(Ok(Witness::WITNESS_COUNTER))
        });
        OomEvidence { trace, log, counter: counted }
    }

    /// Takes what the trace and the kernel's log have of this process as a victim.
    pub(crate) fn take_victim(&mut self, pid: u32) -> (bool, bool) {
        let trace = self.oom_trace.as_mut().is_some_and(|trace| trace.take_victim(pid));
        let log = self.kmsg.as_mut().is_some_and(|kmsg| kmsg.take_victim(pid));
        (trace, log)
    }

    /// A thread of a tracked process ended: signals to it were signals to the process.
    pub(crate) fn thread_ended(&mut self, thread: u32, pid: u32, code: u32) {
        if thread == pid || wait_status::signal(code) == 0 {
            return;
        }
        self.drain_trace();
        if let Some(trace) = &mut self.oom_trace {
            trace.resolve(thread, pid);
        }
        self.read_signals(true);
        self.sent.resolve(thread, pid);
    }
}
