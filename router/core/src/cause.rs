//! What ended a process, from everything that the case has: another source's report of the same
//! exit, the kernel's victim, and the requests to the runtime.

use crate::case::Case;
use crate::signal::{Cause, CauseKind, Exited};

const SIGKILL: u8 = 9;

/// Adds to an exit of init what its source does not know: from `seen`, the same exit as an agent
/// reported it, and from the case.
pub fn complete(exited: &mut Exited, seen: Option<&Exited>, case: &Case) {
    if let Some(seen) = seen.filter(|seen| seen.status == exited.status) {
        exited.by_signal = exited.by_signal.or(seen.by_signal);
        exited.signal = exited.signal.or(seen.signal);
        exited.core = exited.core.or(seen.core);
        exited.cause = exited.cause.take().or_else(|| seen.cause.clone());
    }
    let is_open = |cause: &Cause| cause.kind == CauseKind::Unknown && cause.sender.is_none();
    if exited.cause.as_ref().is_none_or(is_open) {
        exited.cause = derived(exited, case).or_else(|| exited.cause.take());
    }
}

fn derived(exited: &Exited, case: &Case) -> Option<Cause> {
    let cause = |kind, source: &str| Cause { kind, sender: None, sources: vec![source.to_owned()] };
    if exited.may_be_by(SIGKILL) != Some(true) {
        return None;
    }
    let last_kill = case.last_kill.as_ref();
    let victim = last_kill.and_then(|(_, kill)| kill.victim.as_ref()?.is_init);
    if victim == Some(true) {
        return Some(cause(CauseKind::KernelOom, "victim"));
    }
    // Only of SIGKILL: an earlier request of another signal may have been handled.
    let (at, _) = case.requests.as_ref()?.iter().rev().find(|(_, it)| it.signal == SIGKILL)?;
    // A kill since then may have been faster. Requests and kills may be of two machines' clocks;
    // the router's clock has both.
    let is_last = last_kill.is_none_or(|(kill, _)| kill.received_ms < at.received_ms);
    is_last.then(|| cause(CauseKind::Runtime, "kill-request"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mode::Known;
    use crate::signal::{Evidence, KillRequest, Moment, OomKilled, Sender, Victim};

    fn at(ms: u64) -> Moment {
        Moment { boot_ns: None, wall_ms: None, received_ms: ms }
    }

    fn case(requests: &[(u64, u8)], kill: Option<(u64, Option<bool>)>) -> Case {
        let mut case = Case::new(&[Known::KillRequests]);
        let request = |(ms, signal): &(u64, u8)| (at(*ms), KillRequest { signal: *signal, all: false });
        case.requests = Some(requests.iter().map(request).collect());
        case.last_kill = kill.map(|(ms, is_init)| {
            let victim = Some(Victim { pid: 7, comm: "a".to_owned(), is_init });
            (at(ms), OomKilled { victim, ..OomKilled::new(Evidence::Counter) })
        });
        case
    }

    fn check(exited: Exited, case: &Case, expect: Option<(CauseKind, &str)>) {
        let mut completed = exited;
        complete(&mut completed, None, case);
        let cause = completed.cause.as_ref().map(|it| (it.kind, it.sources.concat()));
        assert_eq!(cause, expect.map(|(kind, source)| (kind, source.to_owned())), "{completed:?}");
    }

    #[test]
    fn cause_is_derived_only_where_the_case_proves_it() {
        let status = |status| Exited { status: Some(status), ..Exited::unknown() };
        let signal = |signal: u8| Exited { signal: Some(signal), ..status(128 + u32::from(signal)) };
        let code = Exited { by_signal: Some(false), ..status(137) };
        let (runtime, oom) =
            (Some((CauseKind::Runtime, "kill-request")), Some((CauseKind::KernelOom, "victim")));
        check(status(137), &case(&[(1, 15), (2, 9)], None), runtime);
        check(signal(15), &case(&[(1, 15)], None), None);
        check(signal(9), &case(&[(1, 15), (2, 9)], None), runtime);
        check(status(143), &case(&[(1, 15)], None), None);
        check(code.clone(), &case(&[(2, 9)], None), None);
        check(status(137), &case(&[(1, 15)], None), None);
        check(status(137), &case(&[], None), None);
        check(status(137), &case(&[(20, 9)], Some((1, Some(false)))), runtime);
        check(status(137), &case(&[(20, 9)], Some((21, None))), None);
        check(status(137), &case(&[(20, 9)], Some((21, Some(true)))), oom);
        check(code, &case(&[], Some((21, Some(true)))), None);
        check(status(1), &case(&[], Some((21, Some(true)))), None);
    }

    #[test]
    fn another_report_of_the_same_exit_completes_it() {
        let cause = Cause { kind: CauseKind::NodeProcess, sender: None, sources: vec!["trace".to_owned()] };
        let seen = Exited {
            status: Some(137),
            signal: Some(9),
            by_signal: Some(true),
            cause: Some(cause),
            ..Exited::unknown()
        };
        let case = case(&[(1, 9)], None);
        let status = |status| Exited { status: Some(status), at_ns: Some(5), ..Exited::unknown() };
        let mut exited = status(137);
        complete(&mut exited, Some(&seen), &case);
        assert_eq!(exited, Exited { at_ns: Some(5), ..seen.clone() });
        let mut another = status(1);
        complete(&mut another, Some(&seen), &case);
        assert_eq!(another, status(1));
        // A sender that was seen is not replaced by a request.
        let sender = Sender { pid: 7, comm: "kill".to_owned(), cgroup: None, exec_id: None };
        let unknown = Cause { kind: CauseKind::Unknown, sender: Some(sender), sources: Vec::new() };
        let mut sent = Exited { cause: Some(unknown.clone()), ..status(137) };
        complete(&mut sent, None, &case);
        assert_eq!(sent.cause, Some(unknown));
    }
}
