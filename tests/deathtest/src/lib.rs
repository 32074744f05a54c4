//! Makes containers die through CRI, and compares what CRI reports with what the kernel log proves.
//!
//! ```text
//!   case (cases.toml) ─► run ─► death: create, start, fault, first EXITED reading
//!                         │       │           cri ─► the runtime
//!                         │       └─► kernel_log ─► evidence
//!                         └─► final readings ─► verdict ─► card ─► format: table, tap, junit, json
//! ```
//!
//! The order to read it in: `case`, `verdict` and `card` are pure and state what is right; `run`
//! and `death` make it happen. docs/operating/deathtest.md is its page.

mod args;
mod busy;
mod card;
mod case;
mod cri;
mod death;
mod evidence;
mod format;
mod kernel_log;
mod node;
mod progress;
mod run;
mod screen;
mod turns;
mod verdict;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use self::args::{Args, Command};

/// Exit code: a container's end was reported wrong, or a container did not start.
const WRONG_DEATH: u8 = 1;
/// Exit code: wrong usage, or the run could not be completed.
const NOT_RUN: u8 = 2;
/// Exit code of a run that was ended by a signal, as a shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// Runs the program with the process's arguments.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Run(options) => test(&options),
        Command::List { cases } => case::load(cases.as_deref()).map(|cases| (format::list(&cases), 0)),
    };
    match outcome {
        Ok((text, code)) => screen::print(&text, code),
        Err(error) => screen::fail(&error),
    }
}

/// The text of the score card, and the exit code.
fn test(options: &args::Options) -> Result<(String, u8)> {
    let cases = case::chosen(case::load(options.cases.as_deref())?, &options.case)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let card = runtime.block_on(run::run(options, &cases))?;
    let code = match (card.interrupted, card.is_right()) {
        (true, _) => INTERRUPTED,
        (false, true) => 0,
        (false, false) => WRONG_DEATH,
    };
    Ok((format::text(options.format, &card), code))
}
