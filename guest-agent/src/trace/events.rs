//! The text of `trace_pipe` as events. Names of processes in it may be anything of at most 15
//! bytes, newlines too. The names of the events are longer, so no process can imitate one.

use std::time::Duration;

const MARK: &str = ": mark_victim: pid=";
const SIGNAL: &str = ": signal_generate: sig=";
/// The start and the end of the line about events that were overwritten before they were read.
const LOST: (&str, &str) = ("CPU:", " EVENTS]");
/// `si_code`: include/uapi/asm-generic/siginfo.h
const SI_KERNEL: i32 = 128;
const SI_USER: i32 = 0;
const SI_QUEUE: i32 = -1;
const SI_TKILL: i32 = -6;
/// Bytes of a command name; the kernel's limit.
const MAX_COMM: usize = 16;
/// Bytes of a signal after its number, whatever its process's name.
const MAX_SIGNAL: usize = 160;
/// Bytes kept of an event that is not complete; the longest has some 300.
const MAX_UNREAD: usize = 4 << 10;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TraceLine {
    Event(Traced),
    /// Older events were overwritten.
    Lost,
}

/// One event, and what caused it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Traced {
    /// The thread that ran.
    pub(crate) current: u32,
    /// Its name, as far as the kernel's trace knows it. It may be that of an earlier program.
    pub(crate) comm: Box<str>,
    pub(crate) cpu: u32,
    /// On the trace's clock.
    pub(crate) at: Duration,
    pub(crate) event: TraceEvent,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TraceEvent {
    Signal(SignalEvent),
    /// The OOM killer marked its victim. Before Linux 6.9 the name is empty.
    Mark {
        pid: u32,
        comm: String,
    },
}

/// A signal as the kernel sent it: `__send_signal_locked` in kernel/signal.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SignalEvent {
    pub(crate) signal: u32,
    /// `si_code`.
    pub(crate) code: i32,
    /// The thread that it was sent to.
    pub(crate) pid: u32,
    /// To the whole process, not to the thread alone.
    pub(crate) to_process: bool,
    /// Neither ignored, nor pending already.
    pub(crate) is_delivered: bool,
}

impl SignalEvent {
    /// The kernel's own SIGKILL.
    pub(crate) fn is_kernel_kill(&self) -> bool {
        self.signal == 9 && self.code == SI_KERNEL
    }

    /// Whether the kernel itself sent it, while thread `current` ran. Only the kernel sends a code
    /// above 0 to another process: `do_rt_sigqueueinfo`. It sends 0 to the running thread alone
    /// for SIGXFSZ and SIGPIPE, where kill(2) sends it to the process.
    pub(crate) fn is_by_kernel(&self, current: u32) -> bool {
        self.code > SI_USER || self.code == SI_USER && !self.to_process && self.pid == current
    }

    /// Whether the thread that ran sent it: by kill, tgkill, sigqueue, pidfd_send_signal or a write
    /// to `cgroup.kill`. Other codes below 0 are those of timers and queues too, which run while
    /// any thread does.
    pub(crate) fn is_by_current(&self, current: u32) -> bool {
        match self.code {
            SI_USER => self.to_process || self.is_cgroup_kill(current),
            code => matches!(code, SI_QUEUE | SI_TKILL),
        }
    }

    /// A write to `cgroup.kill`, which sends to a thread with the code of kill(2), unlike any
    /// system call: `__cgroup_kill` in kernel/cgroup/cgroup.c.
    pub(crate) fn is_cgroup_kill(&self, current: u32) -> bool {
        self.signal == 9 && self.code == SI_USER && !self.to_process && self.pid != current
    }
}

/// Text up to the end of the last event.
#[derive(Debug, Default)]
pub(super) struct Unread(Vec<u8>);

impl Unread {
    /// Adds what was read, and calls `each` for every line that is complete.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(TraceLine)) {
        self.0.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.0);
        let text = String::from_utf8_lossy(&bytes);
        let mut rest = &*text;
        while let Some(end) = end(rest) {
            let line = &rest[..end];
            if let Some(traced) = parse(line) {
                each(TraceLine::Event(traced));
            } else if line.starts_with(LOST.0) && line.ends_with(LOST.1) {
                each(TraceLine::Lost);
            }
            rest = &rest[end + 1..];
        }
        if rest.len() <= MAX_UNREAD {
            self.0 = rest.as_bytes().to_vec();
        }
    }
}

/// Where the newline after the first event is.
fn end(text: &str) -> Option<usize> {
    let newline = text.find('\n')?;
    let Some(signal) = text[..newline].find(SIGNAL) else { return Some(newline) };
    // The name in it may contain newlines: the event ends with the first that completes it. What
    // follows the name is longer than a name, so none can imitate it.
    let rest = &text[signal + SIGNAL.len()..];
    let ends = rest.match_indices('\n').map(|(at, _)| at).take_while(|at| *at <= MAX_SIGNAL);
    for at in ends {
        if signal_event(&rest[..at]).is_some() {
            return Some(signal + SIGNAL.len() + at);
        }
    }
    (rest.len() > MAX_SIGNAL).then_some(newline)
}

/// `COMM-PID [CPU] FLAGS SECONDS.MICROSECONDS: EVENT: ...`.
fn parse(line: &str) -> Option<Traced> {
    let (before, event) = match line.split_once(MARK) {
        Some((before, rest)) => (before, mark(rest)?),
        None => {
            let (before, rest) = line.split_once(SIGNAL)?;
            (before, TraceEvent::Signal(signal_event(rest)?))
        }
    };
    // From the end: the name at its start may contain anything.
    let mut words = before.rsplitn(2, ' ');
    let at = seconds(words.next()?)?;
    let mut words = words.next()?.trim_end().rsplitn(2, ' ');
    let _flags = words.next()?;
    let mut words = words.next()?.trim_end().rsplitn(2, ' ');
    let cpu = words.next()?.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let (comm, current) = words.next()?.trim_end().rsplit_once('-')?;
    let current = current.parse().ok()?;
    Some(Traced { current, comm: name(comm), cpu, at, event })
}

/// The kernel writes `<...>` for a name that it does not know.
fn name(comm: &str) -> Box<str> {
    let comm = comm.trim_start();
    if comm == "<...>" { Box::default() } else { truncated(comm).into() }
}

fn truncated(comm: &str) -> &str {
    &comm[..comm.floor_char_boundary(MAX_COMM)]
}

fn mark(rest: &str) -> Option<TraceEvent> {
    let digits = rest.split([' ', '\n']).next()?;
    let comm = rest[digits.len()..].strip_prefix(" comm=").unwrap_or_default();
    let comm = comm.rsplit_once(" total-vm=").map_or(comm, |(comm, _)| comm);
    Some(TraceEvent::Mark { pid: digits.parse().ok()?, comm: truncated(comm).to_owned() })
}

/// From the end too: `SIGNAL errno=ERRNO code=CODE comm=COMM pid=PID grp=GROUP res=RESULT`.
fn signal_event(rest: &str) -> Option<SignalEvent> {
    let (rest, result) = rest.rsplit_once(" res=")?;
    let (rest, group) = rest.rsplit_once(" grp=")?;
    let (rest, pid) = rest.rsplit_once(" pid=")?;
    let (signal, rest) = rest.split_once(" errno=")?;
    let (_errno, rest) = rest.split_once(" code=")?;
    let (code, comm) = rest.split_once(" comm=")?;
    // A byte that is not UTF-8 was replaced by one character. A longer text is two events.
    if comm.chars().count() >= MAX_COMM {
        return None;
    }
    Some(SignalEvent {
        signal: signal.parse().ok()?,
        code: code.parse().ok()?,
        pid: pid.parse().ok()?,
        to_process: group.parse::<u32>().ok()? != 0,
        is_delivered: result.parse::<u32>().ok()? == 0,
    })
}

fn seconds(text: &str) -> Option<Duration> {
    let (seconds, micros) = text.split_once('.')?;
    Some(Duration::from_secs(seconds.parse().ok()?) + Duration::from_micros(micros.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 printed them.
    const LINES: [&str; 2] = [
        "            tail-13084   [001] d..2.  1676.148494: signal_generate: sig=9 errno=0 code=128 \
         comm=tail pid=13084 grp=1 res=0\n",
        "            tail-13084   [001] ...1.  1676.148499: mark_victim: pid=13084 comm=tail \
         total-vm=19076kB anon-rss=16256kB file-rss:1548kB shmem-rss:0kB uid=0 pgtables=76kB \
         oom_score_adj=0\n",
    ];

    fn read(parts: &[&str]) -> Vec<Traced> {
        let (mut unread, mut events) = (Unread::default(), Vec::new());
        for part in parts {
            unread.push(part.as_bytes(), |line| {
                if let TraceLine::Event(traced) = line {
                    events.push(traced);
                }
            });
            assert!(unread.0.len() <= MAX_UNREAD);
        }
        events
    }

    fn traced(micros: u64, event: TraceEvent) -> Traced {
        Traced { current: 13084, comm: "tail".into(), cpu: 1, at: Duration::from_micros(micros), event }
    }

    fn kill() -> SignalEvent {
        SignalEvent { signal: 9, code: 128, pid: 13084, to_process: true, is_delivered: true }
    }

    fn mark(comm: &str) -> TraceEvent {
        TraceEvent::Mark { pid: 13084, comm: comm.to_owned() }
    }

    fn both(comm: &str) -> [Traced; 2] {
        [traced(1_676_148_494, TraceEvent::Signal(kill())), traced(1_676_148_499, mark(comm))]
    }

    #[test]
    fn events_are_read_however_the_text_is_cut() {
        let text = LINES.concat();
        assert_eq!(read(&[&text]), both("tail"));
        for at in 0..text.len() {
            assert_eq!(read(&[&text[..at], &text[at..]]), both("tail"), "{at}");
        }
    }

    #[test]
    fn events_are_read_with_any_command_name() {
        for (name, shown) in [
            ("a total-vm=9", "a total-vm=9"),
            (" pid=3 grp=1", " pid=3 grp=1"),
            ("a\nb", "a"),
            ("\n\n", ""),
            (" res=\n", " res="),
            (" grp=1 res=0\n", " grp=1 res=0"),
            ("x-99 [000] d ", "x-99 [000] d "),
            (": x: pid=1", ": x: pid=1"),
            ("", ""),
        ] {
            let text = LINES.concat().replace("comm=tail", &format!("comm={name}"));
            let text = text.replace(" tail-", &format!(" {name}-"));
            let expect = both(shown).map(|traced| {
                // A line break ends the line before the rest of the name.
                let comm = name.rsplit('\n').next().unwrap().trim_start();
                Traced { comm: comm.into(), ..traced }
            });
            assert_eq!(read(&[&text]), expect, "{name:?}");
        }
        let long = LINES[1].replace("comm=tail", &format!("comm={}", "\u{e9}".repeat(50)));
        assert_eq!(read(&[&long])[0].event, mark(&"\u{e9}".repeat(8)));
        let old = "  a-13084 [001] ...1. 1.5: mark_victim: pid=13084\n";
        assert_eq!(read(&[old])[0].event, mark(""));
    }

    #[test]
    fn other_lines_are_rejected() {
        let [signal, mark] = LINES;
        for bad in [
            "\n",
            "CPU:0 [LOST 3 EVENTS]\n",
            &mark.replace("pid=13084", "pid=x"),
            &mark.replace("mark_victim", "wake_reaper"),
            &mark.replace("[001]", "001"),
            &mark.replace("1676.", "1676,"),
            &signal.replace("sig=9 ", "sig=x "),
            &signal.replace("code=128", "code="),
            &signal.replace("res=0", "res=x"),
            &signal.replace(" grp=1", ""),
        ] {
            assert_eq!(read(&[bad]), [], "{bad}");
            assert_eq!(read(&[bad, signal, mark]), both("tail"), "{bad}");
        }
        // What never ends is dropped.
        let endless = signal.replace(" res=", "").repeat(MAX_UNREAD / 100);
        assert_eq!(read(&[&endless]), []);
    }

    /// As Linux 6.18 printed them, of Python that calls abort, writes a file over its limit, and is
    /// ended by `cgroup.kill`.
    #[test]
    fn signals_are_read_with_code_and_target() {
        let line = "         python3-21873   [000] dN.1.   949.295708: signal_generate: ";
        let event = |signal, code, pid, to_process, is_delivered| SignalEvent {
            signal,
            code,
            pid,
            to_process,
            is_delivered,
        };
        for (text, expect) in [
            ("sig=6 errno=0 code=-6 comm=python3 pid=21873 grp=0 res=0", event(6, -6, 21873, false, true)),
            ("sig=25 errno=0 code=0 comm=python3 pid=22018 grp=0 res=0", event(25, 0, 22018, false, true)),
            ("sig=9 errno=0 code=0 comm=sleep pid=22161 grp=0 res=0", event(9, 0, 22161, false, true)),
            ("sig=15 errno=0 code=0 comm=sh pid=7 grp=1 res=2", event(15, 0, 7, true, false)),
        ] {
            let events = read(&[&format!("{line}{text}\n")]);
            let traced = events.first().unwrap();
            assert_eq!((traced.current, &*traced.comm, traced.cpu), (21873, "python3", 0), "{text}");
            assert_eq!(traced.event, TraceEvent::Signal(expect), "{text}");
        }
        let unknown = LINES[0].replace("tail-", "<...>-");
        assert_eq!(&*read(&[&unknown])[0].comm, "");
    }

    #[test]
    fn overwritten_events_are_reported_in_their_place() {
        let text = format!("{}CPU:1 [LOST 3 EVENTS]\n{}CPU:0 [LOST EVENTS]\n", LINES[0], LINES[1]);
        let (mut unread, mut lines) = (Unread::default(), Vec::new());
        unread.push(text.as_bytes(), |line| lines.push(line == TraceLine::Lost));
        assert_eq!(lines, [false, true, false, true]);
    }
}
