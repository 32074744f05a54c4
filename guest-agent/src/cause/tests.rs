use std::time::Duration;

use super::*;
use crate::trace::SignalEvent;

const CGROUP: &str = "/pods/c1";
const SIGTERM: u32 = 15;

/// A signal to the first process, 7, of the container with the key 1.
fn sent(signal: u32, code: i32, to_process: bool, current: u32, sender: Option<Sender>) -> SentSignal {
    let event = SignalEvent { signal, code, pid: 7, to_process, is_delivered: true };
    SentSignal {
        at: Duration::from_secs(1),
        current,
        event,
        sender,
        is_at_cpu_limit: false,
        is_by_oomd: false,
    }
}

/// By kill(2).
fn killed(signal: u32, sender: Sender) -> SentSignal {
    sent(signal, 0, true, sender.pid, Some(sender))
}

fn sender(pid: u32, comm: &str, cgroup: Option<&str>) -> Sender {
    Sender { pid, comm: comm.into(), cgroup: cgroup.map(Box::from), exec: None }
}

fn evidence(signal: u32, sent: Option<&SentSignal>) -> Evidence<'_> {
    Evidence { signal, pid: 7, key: 1, cgroup: CGROUP, sent, has_all_marks: true, ..Evidence::default() }
}

fn kind(cause: Option<&Cause>) -> Option<CauseKind> {
    cause.map(|cause| cause.kind.enum_value().unwrap())
}

#[test]
fn oom_needs_a_witness_that_names_the_process() {
    let check = |signal: u32, [trace, log, counter]: [bool; 3], expect: Option<&str>| {
        let oom = OomEvidence { trace, log, counter };
        let cause = classify(&Evidence { oom, ..evidence(signal, None) });
        let is_oom = cause.iter().all(|it| it.kind.enum_value() == Ok(CauseKind::CAUSE_KERNEL_OOM));
        assert!(is_oom, "{cause:?}");
        assert_eq!(cause.map(|it| it.sources.join(" ")).as_deref(), expect, "{oom:?}");
    };
    check(9, [true, true, true], Some("trace kernel-log counter"));
    check(9, [false, true, false], Some("kernel-log"));
    check(9, [true, false, true], Some("trace counter"));
    check(9, [false, false, true], None);
    check(15, [true, true, true], None);
}

#[test]
fn first_sigkill_decides_whether_the_oom_killer_did_it() {
    let oom = OomEvidence { trace: true, log: true, counter: true };
    let by_kernel = sent(SIGKILL, 128, true, 99, None);
    let by_process = killed(SIGKILL, sender(99, "sh", Some("/")));
    for (sent, expect) in
        [(&by_kernel, CauseKind::CAUSE_KERNEL_OOM), (&by_process, CauseKind::CAUSE_NODE_PROCESS)]
    {
        let cause = classify(&Evidence { oom, ..evidence(SIGKILL, Some(sent)) });
        assert_eq!(kind(cause.as_ref()), Some(expect));
    }
}

#[test]
fn sender_decides_by_its_place_and_name() {
    for (pid, comm, cgroup, expect) in [
        (9, "sh", Some("/pods/c1"), CauseKind::CAUSE_CONTAINER_PROCESS),
        (9, "runc", Some("/pods/c1/sub"), CauseKind::CAUSE_CONTAINER_PROCESS),
        (7, "sh", None, CauseKind::CAUSE_CONTAINER_PROCESS),
        (9, "sh", Some("/pods/c12"), CauseKind::CAUSE_NODE_PROCESS),
        (9, "sh", Some("/pods"), CauseKind::CAUSE_NODE_PROCESS),
        (9, "runc", Some("/"), CauseKind::CAUSE_RUNTIME),
        (9, "containerd-shim", Some("/s"), CauseKind::CAUSE_RUNTIME),
        (9, "runc-not", Some("/"), CauseKind::CAUSE_NODE_PROCESS),
        (9, "runc", None, CauseKind::CAUSE_UNKNOWN),
    ] {
        let sent = killed(SIGTERM, sender(pid, comm, cgroup));
        let cause = classify(&evidence(SIGTERM, Some(&sent))).unwrap();
        assert_eq!(kind(Some(&cause)), Some(expect), "{comm} {cgroup:?}");
        assert_eq!((cause.sender.pid, &*cause.sender.comm), (pid, comm));
        assert_eq!(
            (&*cause.sender.cgroup, &*cause.sources),
            (cgroup.unwrap_or(""), &["trace".to_owned()][..])
        );
    }
}

#[test]
fn sender_names_an_exec_of_its_own_container() {
    for (key, expect) in [(1, Some("probe".to_owned())), (2, None)] {
        let by = Sender { exec: Some((key, "probe".into())), ..sender(9, "sh", Some(CGROUP)) };
        let sent = killed(SIGTERM, by);
        assert_eq!(classify(&evidence(SIGTERM, Some(&sent))).unwrap().sender.exec_id, expect);
    }
}

#[test]
fn signal_without_a_sender_is_the_kernels_or_nobodys() {
    for (signal, code, to_process, current, expect) in [
        // The end of a pid namespace; a terminal.
        (SIGKILL, 128, true, 5, Some(CauseKind::CAUSE_KERNEL)),
        (1, 128, true, 5, Some(CauseKind::CAUSE_KERNEL)),
        // SIGPIPE of a write.
        (13, 0, false, 7, Some(CauseKind::CAUSE_KERNEL)),
        // SI_TIMER, SI_ASYNCIO, SI_SIGIO: not by the thread that ran.
        (SIGTERM, -2, true, 5, None),
        (SIGTERM, -4, true, 5, None),
        (SIGTERM, -5, true, 5, None),
        // Of a driver, on behalf of whichever thread runs.
        (SIGTERM, 0, false, 5, None),
    ] {
        let sent = sent(signal, code, to_process, current, None);
        let cause = classify(&evidence(signal, Some(&sent)));
        assert_eq!(kind(cause.as_ref()), expect, "{sent:?}");
        assert!(cause.is_none_or(|cause| cause.sender.is_none()));
    }
}

#[test]
fn kernels_kill_is_unknown_where_marks_were_lost() {
    let sent = sent(SIGKILL, 128, true, 5, None);
    let lossy = Evidence { has_all_marks: false, ..evidence(SIGKILL, Some(&sent)) };
    assert_eq!(classify(&lossy), None);
}

#[test]
fn signal_of_the_kernel_is_classified_by_its_code() {
    let limited = |sent: SentSignal| SentSignal { is_at_cpu_limit: true, ..sent };
    // To the running thread, as all faults are.
    let fault = |signal, code| sent(signal, code, false, 7, None);
    for (sent, expect) in [
        (fault(11, 1), Some(CauseKind::CAUSE_CRASH)),
        // SI_KERNEL: a general protection fault.
        (fault(11, 128), Some(CauseKind::CAUSE_CRASH)),
        (fault(7, 2), Some(CauseKind::CAUSE_CRASH)),
        (fault(7, 4), Some(CauseKind::CAUSE_KERNEL)),
        (fault(8, 1), Some(CauseKind::CAUSE_CRASH)),
        (fault(4, 2), Some(CauseKind::CAUSE_CRASH)),
        (fault(5, 1), Some(CauseKind::CAUSE_CRASH)),
        (fault(31, 1), Some(CauseKind::CAUSE_SECCOMP)),
        // SYS_USER_DISPATCH.
        (fault(31, 2), Some(CauseKind::CAUSE_KERNEL)),
        (fault(25, 0), Some(CauseKind::CAUSE_RESOURCE_LIMIT)),
        (limited(sent(24, 128, true, 7, None)), Some(CauseKind::CAUSE_RESOURCE_LIMIT)),
        (limited(sent(9, 128, true, 7, None)), Some(CauseKind::CAUSE_RESOURCE_LIMIT)),
        // With the kernel's code, by the process itself: below its limit, or not a fault.
        (sent(24, 128, true, 7, None), None),
        (sent(9, 128, true, 7, None), None),
        (sent(11, 1, true, 7, None), Some(CauseKind::CAUSE_KERNEL)),
    ] {
        let cause = classify(&evidence(sent.event.signal, Some(&sent)));
        assert_eq!(kind(cause.as_ref()), expect, "{sent:?}");
    }
}

#[test]
fn fault_signal_sent_by_a_process_is_not_a_crash() {
    for (signal, pid, expect) in [
        (6, 7, CauseKind::CAUSE_CRASH),
        (6, 9, CauseKind::CAUSE_CONTAINER_PROCESS),
        (11, 7, CauseKind::CAUSE_CONTAINER_PROCESS),
        (11, 9, CauseKind::CAUSE_CONTAINER_PROCESS),
        (31, 9, CauseKind::CAUSE_CONTAINER_PROCESS),
        (24, 9, CauseKind::CAUSE_CONTAINER_PROCESS),
    ] {
        // By tgkill, as abort and raise do.
        let sent = sent(signal, -6, false, pid, Some(sender(pid, "sh", Some(CGROUP))));
        let cause = classify(&evidence(signal, Some(&sent)));
        assert_eq!(kind(cause.as_ref()), Some(expect), "{signal} {pid}");
    }
}

#[test]
fn oomd_is_proven_by_its_attribute() {
    let by = |comm| Some(killed(SIGKILL, sender(9, comm, Some("/oomd"))));
    let cgroup_kill = sent(SIGKILL, 0, false, 9, Some(sender(9, "systemd-oomd", Some("/oomd"))));
    let service = Some("/system.slice/systemd-oomd.service");
    let service = killed(SIGKILL, sender(9, "systemd-oomd", service));
    let early = by("systemd-oomd").map(|sent| SentSignal { is_by_oomd: true, ..sent });
    for (signal, sent, rose, expect) in [
        (SIGKILL, by("systemd-oomd"), true, Some((CauseKind::CAUSE_OOMD, "xattr trace"))),
        (SIGKILL, Some(cgroup_kill), true, Some((CauseKind::CAUSE_OOMD, "xattr trace"))),
        // Its cgroup was removed since.
        (SIGKILL, early, false, Some((CauseKind::CAUSE_OOMD, "xattr trace"))),
        // Without a trace.
        (SIGKILL, None, true, Some((CauseKind::CAUSE_OOMD, "xattr"))),
        (SIGKILL, by("systemd-oomd"), false, Some((CauseKind::CAUSE_NODE_PROCESS, "trace"))),
        // The attribute was gone with the cgroup.
        (SIGKILL, Some(service), false, Some((CauseKind::CAUSE_OOMD, "trace"))),
        (SIGKILL, by("runc"), true, Some((CauseKind::CAUSE_RUNTIME, "trace"))),
        (SIGTERM, None, true, None),
    ] {
        let cause = classify(&Evidence { oomd_rose: rose, ..evidence(signal, sent.as_ref()) });
        let found = cause.as_ref().map(|it| (it.kind.enum_value().unwrap(), it.sources.join(" ")));
        assert_eq!(found, expect.map(|(kind, sources)| (kind, sources.to_owned())), "{sent:?}");
    }
    // A process of the container that has that name.
    let inner = killed(SIGKILL, sender(9, "systemd-oomd", Some(CGROUP)));
    let cause = classify(&Evidence { oomd_rose: true, ..evidence(SIGKILL, Some(&inner)) });
    assert_eq!(kind(cause.as_ref()), Some(CauseKind::CAUSE_CONTAINER_PROCESS));
}

#[test]
fn oom_policy_is_a_stop_by_systemd_after_a_kill() {
    for (pid, comm, after_kill, expect) in [
        (1, "systemd", true, CauseKind::CAUSE_OOM_POLICY),
        (1, "systemd", false, CauseKind::CAUSE_NODE_PROCESS),
        (2, "systemd", true, CauseKind::CAUSE_NODE_PROCESS),
        (1, "init", true, CauseKind::CAUSE_NODE_PROCESS),
    ] {
        let sent = killed(SIGTERM, sender(pid, comm, Some("/init.scope")));
        let stopped = Evidence { is_stop_after_kill: after_kill, ..evidence(SIGTERM, Some(&sent)) };
        let cause = classify(&stopped).unwrap();
        assert_eq!(kind(Some(&cause)), Some(expect), "{pid} {comm} {after_kill}");
        let is_policy = expect == CauseKind::CAUSE_OOM_POLICY;
        assert_eq!(cause.sources.join(" "), if is_policy { "trace counter" } else { "trace" });
    }
}

#[test]
fn cgroup_kill_is_to_a_thread_with_the_code_of_kill() {
    let by = |comm, cgroup| Some(sender(9, comm, cgroup));
    for (sent, expect) in [
        (sent(SIGKILL, 0, false, 9, by("sh", Some("/"))), CauseKind::CAUSE_CGROUP_KILL),
        (sent(SIGKILL, 0, false, 9, by("runc", Some("/"))), CauseKind::CAUSE_CGROUP_KILL),
        (sent(SIGKILL, 0, false, 9, by("sh", Some(CGROUP))), CauseKind::CAUSE_CGROUP_KILL),
        (sent(SIGKILL, 0, false, 9, by("sh", None)), CauseKind::CAUSE_CGROUP_KILL),
        // tgkill, kill.
        (sent(SIGKILL, -6, false, 9, by("sh", Some("/"))), CauseKind::CAUSE_NODE_PROCESS),
        (sent(SIGKILL, 0, true, 9, by("sh", Some("/"))), CauseKind::CAUSE_NODE_PROCESS),
    ] {
        let cause = classify(&evidence(SIGKILL, Some(&sent)));
        assert_eq!(kind(cause.as_ref()), Some(expect), "{sent:?}");
        assert!(cause.is_some_and(|cause| cause.sender.pid == 9));
    }
    // With that code a process can send to itself only, by rt_tgsigqueueinfo.
    let forged = sent(SIGKILL, 0, false, 7, None);
    assert_eq!(classify(&evidence(SIGKILL, Some(&forged))), None);
}
