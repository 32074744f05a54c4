//! The text of `trace_pipe` as events. Names of processes in it may be anything of at most 15
//! bytes, newlines too. The names of the events are longer, so no process can imitate one.

use std::time::Duration;

const MARK: &str = ": mark_victim: pid=";
const SIGNAL: &str = ": signal_generate: sig=9 errno=";
/// The end of a signal, after the name of its process.
const RESULT: &str = " res=";
/// Bytes of a command name; the kernel's limit.
const MAX_COMM: usize = 16;
/// Bytes kept of an event that is not complete; the longest has some 300.
const MAX_UNREAD: usize = 4 << 10;

/// One event, and what caused it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Traced {
    /// The process that ran.
    pub(super) current: u32,
    pub(super) cpu: u32,
    /// On the trace's clock.
    pub(super) at: Duration,
    pub(super) event: TraceEvent,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum TraceEvent {
    /// The kernel sent SIGKILL.
    Signal { pid: u32 },
    /// The OOM killer marked its victim. Before Linux 6.9 the name is empty.
    Mark { pid: u32, comm: String },
}

/// Text up to the end of the last event.
#[derive(Debug, Default)]
pub(super) struct Unread(Vec<u8>);

impl Unread {
    /// Adds what was read, and calls `each` for every event that is complete.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Traced)) {
        self.0.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&self.0).into_owned();
        let mut rest = text.as_str();
        while let Some(end) = end(rest) {
            if let Some(traced) = parse(&rest[..end]) {
                each(traced);
            }
            rest = &rest[end + 1..];
        }
        self.0.clear();
        if rest.len() <= MAX_UNREAD {
            self.0.extend_from_slice(rest.as_bytes());
        }
    }
}

/// Where the newline after the first event is.
fn end(text: &str) -> Option<usize> {
    let newline = text.find('\n')?;
    let Some(signal) = text[..newline].find(SIGNAL) else { return Some(newline) };
    // The name before the result may contain newlines.
    let result = signal + text[signal..].find(RESULT)?;
    Some(result + text[result..].find('\n')?)
}

/// `COMM-PID [CPU] FLAGS SECONDS.MICROSECONDS: EVENT: ...`.
fn parse(line: &str) -> Option<Traced> {
    let (before, event) = match line.split_once(MARK) {
        Some((before, rest)) => (before, mark(rest)?),
        None => {
            let (before, rest) = line.split_once(SIGNAL)?;
            (before, signal(rest)?)
        }
    };
    // From the end: the name at its start may contain anything.
    let mut words = before.split_ascii_whitespace().rev();
    let at = seconds(words.next()?)?;
    let _flags = words.next()?;
    let cpu = words.next()?.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    let current = words.next()?.rsplit('-').next()?.parse().ok()?;
    Some(Traced { current, cpu, at, event })
}

fn mark(rest: &str) -> Option<TraceEvent> {
    let digits = rest.split([' ', '\n']).next()?;
    let comm = rest[digits.len()..].strip_prefix(" comm=").unwrap_or_default();
    let comm = comm.rsplit_once(" total-vm=").map_or(comm, |(comm, _)| comm);
    let comm = comm[..comm.floor_char_boundary(MAX_COMM)].to_owned();
    Some(TraceEvent::Mark { pid: digits.parse().ok()?, comm })
}

/// From the end too: `ERRNO code=CODE comm=COMM pid=PID grp=GROUP res=RESULT`.
fn signal(rest: &str) -> Option<TraceEvent> {
    let (rest, _result) = rest.rsplit_once(RESULT)?;
    let (rest, _group) = rest.rsplit_once(" grp=")?;
    let (rest, pid) = rest.rsplit_once(" pid=")?;
    let (_errno, rest) = rest.split_once(" code=")?;
    rest.starts_with("128 comm=").then_some(TraceEvent::Signal { pid: pid.parse().ok()? })
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
            unread.push(part.as_bytes(), |traced| events.push(traced));
            assert!(unread.0.len() <= MAX_UNREAD);
        }
        events
    }

    fn traced(micros: u64, event: TraceEvent) -> Traced {
        Traced { current: 13084, cpu: 1, at: Duration::from_micros(micros), event }
    }

    fn mark(comm: &str) -> TraceEvent {
        TraceEvent::Mark { pid: 13084, comm: comm.to_owned() }
    }

    fn both(comm: &str) -> [Traced; 2] {
        let signal = TraceEvent::Signal { pid: 13084 };
        [traced(1_676_148_494, signal), traced(1_676_148_499, mark(comm))]
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
            ("x-99 [000] d ", "x-99 [000] d "),
            (": x: pid=1", ": x: pid=1"),
            ("", ""),
        ] {
            let text = LINES.concat().replace("comm=tail", &format!("comm={name}"));
            let text = text.replace(" tail-", &format!(" {name}-"));
            assert_eq!(read(&[&text]), both(shown), "{name:?}");
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
            &signal.replace("sig=9 ", "sig=15 "),
            &signal.replace("code=128", "code=0"),
            &signal.replace(" grp=1", ""),
        ] {
            assert_eq!(read(&[bad]), [], "{bad}");
            assert_eq!(read(&[bad, signal, mark]), both("tail"), "{bad}");
        }
        // What never ends is dropped.
        let endless = signal.replace(RESULT, "").repeat(MAX_UNREAD / 100);
        assert_eq!(read(&[&endless]), []);
    }
}
