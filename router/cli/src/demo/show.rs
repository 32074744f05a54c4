//! The demo's output: audit records, or the same as text.

use std::io;
use std::process::ExitCode;

use coroner_core::audit::Ruled;

use super::Seen;
use super::stage::{LIMIT, Stage, StageError, VICTIM};
use crate::render::Colour::{Bold, Dim, Green, Red};
use crate::render::record::RecordLine;
use crate::render::{self, Screen, Text, note, paint, short_digest, written};

/// Columns of a line's name.
const NAME: usize = 10;

/// Prints as things happen.
pub(super) struct Show {
    json: bool,
    screen: Screen,
    /// The first write that failed. The demo goes on and removes its cgroup.
    failed: io::Result<()>,
    first_ms: Option<u64>,
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        Self { json, screen: Screen::new(), failed: Ok(()), first_ms: None }
    }

    fn print(&mut self) {
        let printed = self.screen.print();
        if self.failed.is_ok() {
            self.failed = printed;
        }
    }

    pub(super) fn title(&mut self, stage: &Stage) {
        if !self.json {
            title(&mut self.screen, &stage.cgroup_path());
            self.print();
        }
    }

    pub(super) fn replay(&self, why: &StageError) {
        note(format!("no kill here: {why}"));
        note("REPLAY of a recording instead; nothing was killed on this machine");
    }

    pub(super) fn record(&mut self, text: &str, record: &RecordLine) {
        if self.json {
            self.screen.verbatim(text);
        } else {
            entry(&mut self.screen, record, &mut self.first_ms);
        }
        self.print();
    }

    pub(super) fn message(&mut self, message: &str) {
        if !self.json {
            field(&mut self.screen, "received", message);
            self.print();
        }
    }

    /// The exit code of the demo.
    pub(super) fn verdict(mut self, seen: Seen) -> ExitCode {
        let (colour, text) = match seen {
            Seen::KillThenExit => (
                Green,
                "A kill was counted by the kernel and ruled before the exit: the reason is OOMKilled, status 1.",
            ),
            Seen::Kill => (Red, "A kill was ruled, but no exit followed it."),
            Seen::ExitWithoutKill => (Red, "The exit came without a kill before it."),
            Seen::Nothing => (Red, "Nothing was ruled."),
        };
        let is_good = seen == Seen::KillThenExit;
        if !self.json {
            self.screen.line("");
            self.screen.line(paint(colour, text));
            self.print();
        } else if !is_good {
            note(text);
        }
        let code = if is_good { ExitCode::SUCCESS } else { crate::args::FAILED.into() };
        written(self.failed, code)
    }

    pub(super) fn verdict_of_replay(self, seen: Seen) -> ExitCode {
        let ruled = match seen {
            Seen::KillThenExit => "ruled: the kill before the exit",
            Seen::Kill | Seen::ExitWithoutKill | Seen::Nothing => "not ruled as expected",
        };
        note(format!("the recording was {ruled}; run the demo as root for a real kill"));
        written(self.failed, crate::args::REPLAYED.into())
    }
}

fn title(screen: &mut Screen, cgroup: &str) {
    let limit = LIMIT >> 20;
    screen.line(format!(
        "The process {VICTIM} in a cgroup of {limit} MiB starts a child that allocates twice as much."
    ));
    screen.line("The kernel kills the child; its parent notices, and exits with status 1.");
    screen.line("A stand-in for containerd, part of this demo, receives what the router publishes.");
    screen.line(paint(Dim, format!("cgroup {cgroup}")));
}

fn entry(screen: &mut Screen, record: &RecordLine, first_ms: &mut Option<u64>) {
    match record {
        RecordLine::Ruled(it) => {
            let now = it.signal.at.wall_ms.unwrap_or(it.signal.at.received_ms);
            let since = now.saturating_sub(*first_ms.get_or_insert(now));
            ruled(screen, it, since);
        }
        RecordLine::Delivered(delivered) => field(screen, "delivery", render::outcome(delivered)),
        // The chain is one policy, which is never swapped, and there is no journal.
        RecordLine::Chain(_)
        | RecordLine::Recovered(_)
        | RecordLine::Resumed(_)
        | RecordLine::Journaled(_)
        | RecordLine::Unknown => {}
    }
}

fn ruled(screen: &mut Screen, ruled: &Ruled, since: u64) {
    screen.line("");
    let happened = paint(Bold, render::happened(&ruled.signal));
    screen.line(paint(Dim, format!("+{since} ms  ")).then(happened));
    for (opinion, failed) in render::opinions(ruled) {
        field(screen, "ruling", paint(failed.then_some(Red), opinion));
    }
    for opinion in &ruled.rulings {
        let digest = short_digest(&opinion.digest);
        field(screen, "", paint(Dim, format!("{} {digest}, {} fuel", opinion.policy, opinion.fuel)));
    }
}

fn field(screen: &mut Screen, name: &str, value: impl Into<Text>) {
    screen.field(NAME + 2, &format!("  {name}"), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::record::read;

    #[test]
    fn demo_prints_title_rulings_and_deliveries() {
        let mut screen = Screen::plain();
        title(&mut screen, "/coroner-demo-1/0000 (v1)");
        let mut first_ms = None;
        for line in include_str!("recording.jsonl").lines() {
            entry(&mut screen, &read(line).unwrap(), &mut first_ms);
        }
        insta::assert_snapshot!(screen.text());
    }
}
