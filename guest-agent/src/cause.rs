//! What ended a process by a signal. Pure: the watcher gathers the evidence, this states what it
//! proves. What is not proven is not stated.

use coroner_proto::agent::{self, Cause, CauseKind};
use protobuf::MessageField;

use crate::kmsg::is_within;
use crate::seen_runtimes::SeenRuntimes;
use crate::sent_signals::{Sender, SentSignal};
use crate::trace::SIGKILL;

// The numbers of x86, ARM64 and most others: include/uapi/asm-generic/signal.h.
const SIGILL: u32 = 4;
const SIGTRAP: u32 = 5;
const SIGABRT: u32 = 6;
const SIGBUS: u32 = 7;
const SIGFPE: u32 = 8;
const SIGSEGV: u32 = 11;
pub(crate) const SIGXCPU: u32 = 24;
const SIGXFSZ: u32 = 25;
const SIGSYS: u32 = 31;
/// Codes of include/uapi/asm-generic/siginfo.h: a forbidden system call; a memory error that the
/// process met, or may meet.
const SYS_SECCOMP: i32 = 1;
const BUS_MCEERR: [i32; 2] = [4, 5];

const TRACE: &str = "trace";
const COUNTER: &str = "counter";
const XATTR: &str = "xattr";

/// What shows that the OOM killer killed this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct OomEvidence {
    /// Its mark in the trace.
    pub(crate) trace: bool,
    /// The kernel's log names it.
    pub(crate) log: bool,
    /// Its container's counter rose just before. It names no process.
    pub(crate) counter: bool,
}

/// What is known of the end of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Evidence<'a> {
    /// By the wait status.
    pub(crate) signal: u32,
    pub(crate) pid: u32,
    /// Of its container.
    pub(crate) key: u32,
    pub(crate) cgroup: &'a str,
    pub(crate) oom: OomEvidence,
    /// By the trace.
    pub(crate) sent: Option<&'a SentSignal>,
    /// A victim of the OOM killer has its mark: none was lost.
    pub(crate) has_all_marks: bool,
    /// systemd-oomd counted a kill of its cgroup, or of one above it, since the container appeared.
    pub(crate) oomd_rose: bool,
    /// systemd began to stop the container just after an OOM kill in it was counted.
    pub(crate) is_stop_after_kill: bool,
}

/// The cause; none: nothing is known of it.
pub(crate) fn classify(evidence: &Evidence<'_>) -> Option<Cause> {
    let is_by_kernel = |sent: &SentSignal| sent.event.is_by_kernel(sent.current);
    let oom = evidence.oom;
    // A process that another one killed before may be chosen as a victim while it ends.
    if evidence.signal == SIGKILL && (oom.trace || oom.log) && evidence.sent.is_none_or(is_by_kernel) {
        let sources = [(oom.trace, TRACE), (oom.log, "kernel-log"), (oom.counter, COUNTER)];
        let seen = sources.into_iter().filter(|(is_seen, _)| *is_seen).map(|(_, name)| name);
        return Some(cause(CauseKind::CAUSE_KERNEL_OOM, seen));
    }
    let Some(sent) = evidence.sent else {
        let is_oomd = evidence.signal == SIGKILL && evidence.oomd_rose;
        return is_oomd.then(|| cause(CauseKind::CAUSE_OOMD, [XATTR]));
    };
    if is_by_kernel(sent) {
        return by_kernel(evidence, sent).map(|kind| cause(kind, [TRACE]));
    }
    let sender = sent.sender.as_ref()?;
    let kind = by_sender(evidence, sent, sender);
    let sources: &[&str] = match kind {
        CauseKind::CAUSE_OOMD if is_counted_by_oomd(evidence, sent) => &[XATTR, TRACE],
        CauseKind::CAUSE_OOM_POLICY => &[TRACE, COUNTER],
        _ => &[TRACE],
    };
    let sender = MessageField::some(message(evidence, sender));
    Some(Cause { sender, ..cause(kind, sources.iter().copied()) })
}

/// The reason for a signal of the kernel; none: not proven.
fn by_kernel(evidence: &Evidence<'_>, sent: &SentSignal) -> Option<CauseKind> {
    let event = sent.event;
    // `force_sig_info_to_task` sends to the running thread.
    let is_forced = !event.to_process && event.pid == sent.current;
    let kind = match event.signal {
        SIGSYS if is_forced && event.code == SYS_SECCOMP => CauseKind::CAUSE_SECCOMP,
        SIGXCPU | SIGKILL if sent.is_at_cpu_limit => CauseKind::CAUSE_RESOURCE_LIMIT,
        SIGXFSZ if is_forced => CauseKind::CAUSE_RESOURCE_LIMIT,
        // Memory that is broken is not the fault of the process.
        SIGBUS if BUS_MCEERR.contains(&event.code) => CauseKind::CAUSE_KERNEL,
        SIGILL | SIGTRAP | SIGBUS | SIGFPE | SIGSEGV if is_forced && event.code > 0 => CauseKind::CAUSE_CRASH,
        // Without its mark, a kill by the OOM killer is the same as another kill by the kernel.
        SIGKILL if !evidence.has_all_marks => return None,
        // A process may send this to itself with the kernel's code: `do_rt_sigqueueinfo`.
        SIGKILL | SIGXCPU if event.pid == sent.current => return None,
        _ => CauseKind::CAUSE_KERNEL,
    };
    Some(kind)
}

fn is_counted_by_oomd(evidence: &Evidence<'_>, sent: &SentSignal) -> bool {
    evidence.signal == SIGKILL && (sent.is_by_oomd || evidence.oomd_rose)
}

/// The cause by the sender. Without its cgroup, neither inside nor outside is stated.
fn by_sender(evidence: &Evidence<'_>, sent: &SentSignal, sender: &Sender) -> CauseKind {
    let is_inside = sender.cgroup.as_deref().map(|cgroup| is_within(cgroup, evidence.cgroup));
    let is_counted = is_counted_by_oomd(evidence, sent);
    // The cgroup may be removed before its attribute is read.
    let is_oomd = is_counted || evidence.signal == SIGKILL && sender.is_service_of_oomd();
    let is_itself = sender.pid == evidence.pid;
    match is_inside {
        Some(false) if sender.is_oomd() && is_oomd => CauseKind::CAUSE_OOMD,
        Some(false) if sender.is_systemd() && evidence.is_stop_after_kill => CauseKind::CAUSE_OOM_POLICY,
        _ if sent.event.is_cgroup_kill(sent.current) => CauseKind::CAUSE_CGROUP_KILL,
        _ if is_itself && evidence.signal == SIGABRT => CauseKind::CAUSE_CRASH,
        _ if is_itself => CauseKind::CAUSE_CONTAINER_PROCESS,
        None => CauseKind::CAUSE_UNKNOWN,
        Some(true) => CauseKind::CAUSE_CONTAINER_PROCESS,
        Some(false) if SeenRuntimes::is_name(&sender.comm) => CauseKind::CAUSE_RUNTIME,
        Some(false) => CauseKind::CAUSE_NODE_PROCESS,
    }
}

fn cause<'a>(kind: CauseKind, sources: impl IntoIterator<Item = &'a str>) -> Cause {
    let sources = sources.into_iter().map(str::to_owned).collect();
    Cause { kind: kind.into(), sources, ..Cause::default() }
}

fn message(evidence: &Evidence<'_>, sender: &Sender) -> agent::Sender {
    let exec = sender.exec.as_ref().filter(|(key, _)| *key == evidence.key);
    agent::Sender {
        pid: sender.pid,
        comm: sender.comm.to_string(),
        cgroup: sender.cgroup.as_deref().unwrap_or_default().to_owned(),
        exec_id: exec.map(|(_, exec)| exec.to_string()),
        ..agent::Sender::default()
    }
}

#[cfg(test)]
mod tests;
