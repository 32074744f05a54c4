//! What the demo puts on the screen: audit records for machines, or the same for a person.

use std::io::{IsTerminal, Write};

use coroner::audit::{Record, Ruled};
use coroner::ruling::{Action, Opinion, Ruling};
use coroner::signal::{Event, Signal};

use super::Seen;
use super::stage::{LIMIT, Stage, StageError};

/// Prints a line. Nobody may be reading any more: that is no reason to stop, and clear nothing.
macro_rules! say {
    ($($text:tt)*) => {
        { writeln!(std::io::stdout(), $($text)*).ok(); }
    };
}

/// Prints as things happen.
pub(super) struct Show {
    json: bool,
    colours: bool,
    first_ms: Option<u64>,
}

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const DIM: &str = "2";

impl Show {
    pub(super) fn new(json: bool) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { json, colours, first_ms: None }
    }

    pub(super) fn title(&self, stage: &Stage) {
        if self.json {
            return;
        }
        say!("A process in a cgroup of {} MiB starts a child that allocates twice as much.", LIMIT >> 20);
        say!("The kernel kills the child; the process notices, and exits with status 1.");
        say!("{}", self.paint(DIM, &format!("cgroup {}", stage.cgroup_path())));
    }

    pub(super) fn replay(&self, why: &StageError) {
        eprintln!("coroner: no kill here: {why}");
        eprintln!("coroner: REPLAY of a recording instead; nothing was killed on this machine");
    }

    pub(super) fn record(&mut self, text: &str, record: &Record) {
        if self.json {
            say!("{text}");
            return;
        }
        match record {
            Record::Ruled(ruled) => self.ruled(ruled),
            Record::Delivered(delivered) => say!(
                "  {:<10} {} {:?} by {} after {} ms",
                "sent",
                delivered.topic,
                delivered.outcome,
                delivered.sink,
                delivered.waited_ms
            ),
            // One policy, never swapped, and no journal: what rules is told with each ruling.
            Record::Chain(_) | Record::Recovered(_) | Record::Resumed(_) => {}
        }
    }

    pub(super) fn message(&self, message: &str) {
        if !self.json {
            say!("  {:<10} {message}", "containerd");
        }
    }

    fn ruled(&mut self, ruled: &Ruled) {
        let at = ruled.signal.at;
        let now = at.wall_ms.unwrap_or(at.received_ms);
        let since = now.saturating_sub(*self.first_ms.get_or_insert(now));
        say!();
        say!(
            "{} {}",
            self.paint(BOLD, &format!("+{since} ms  {}", ruled.signal.event.kind())),
            fact(&ruled.signal)
        );
        for opinion in &ruled.rulings {
            self.opinion(opinion);
        }
        if let Some(why) = &ruled.illegal {
            say!("  {:<10} {why}: the native default stands", self.paint(RED, "illegal"));
        }
    }

    fn opinion(&self, opinion: &Opinion) {
        let digest: String = opinion.digest.chars().take("sha256:".len() + 12).collect();
        let by = self
            .paint(DIM, &format!("{} {} {digest}, {} fuel", opinion.policy, opinion.version, opinion.fuel));
        match (&opinion.ruling, &opinion.fault) {
            (Some(Ruling::Pass), _) => say!("  {:<10} pass   {by}", "ruling"),
            (Some(Ruling::Decide(decision)), _) => {
                say!("  {:<10} {}, because {}", "ruling", actions(&decision.actions), decision.because);
                say!("  {:<10} {by}", "");
            }
            (None, Some(fault)) => {
                say!("  {:<10} {:?}: {}   {by}", self.paint(RED, "fault"), fault.kind, fault.message);
            }
            (None, None) => {}
        }
    }

    pub(super) fn verdict(&self, seen: Seen) {
        let (colour, text) = match seen {
            Seen::KillThenExit => (
                GREEN,
                "A kill was counted by the kernel and ruled before the exit: the reason is OOMKilled, status 1.",
            ),
            Seen::Kill => (RED, "A kill was ruled, but no exit followed it."),
            Seen::ExitWithoutKill => (RED, "The exit came without a kill before it."),
            Seen::Nothing => (RED, "Nothing was ruled."),
        };
        if self.json && seen == Seen::KillThenExit {
            return;
        }
        if self.json {
            eprintln!("coroner: {text}");
        } else {
            say!("\n{}", self.paint(colour, text));
        }
    }

    pub(super) fn verdict_of_replay(&self, seen: Seen) {
        eprintln!(
            "coroner: the recording was {}; run the demo as root for a real kill",
            if seen == Seen::KillThenExit {
                "ruled: the kill before the exit"
            } else {
                "not ruled as expected"
            }
        );
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn fact(signal: &Signal) -> String {
    match &signal.event {
        Event::OomKill(kill) => {
            let count = |it: Option<u64>| it.map_or_else(|| "unknown".to_owned(), |it| it.to_string());
            let victim = kill.victim.as_ref().map(|it| format!(", victim {} (pid {})", it.comm, it.pid));
            let limit = kill.limit_bytes.map(|it| format!(", limit {} MiB", it >> 20));
            format!(
                "counter +{} to {}{}{}",
                count(kill.added),
                count(kill.total),
                victim.unwrap_or_default(),
                limit.unwrap_or_default()
            )
        }
        Event::Exited(exited) => match (exited.status, exited.signal) {
            (Some(status), Some(signal)) => format!("status {status}, by signal {signal}"),
            (Some(status), None) => format!("status {status}"),
            (None, _) => "status unknown".to_owned(),
        },
        Event::Pressure(_)
        | Event::KillRequest(_)
        | Event::GuestLost(_)
        | Event::Other(_)
        | Event::Forwarded(_) => String::new(),
    }
}

fn actions(actions: &[Action]) -> String {
    let names: Vec<String> = actions
        .iter()
        .map(|action| match action {
            Action::TaskOom => "task-oom".to_owned(),
            Action::TaskExit(None) => "task-exit (the real status)".to_owned(),
            Action::TaskExit(Some(status)) => format!("task-exit ({status})"),
            Action::Report(report) => format!("report {}", report.topic),
        })
        .collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", then ") }
}
