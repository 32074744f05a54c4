//! The command line: arguments in, exit code out.

mod asking;
mod check;
mod cli;
mod demo;
mod doctor;
mod explain;
mod policy_check;
mod policy_wrap;
mod serve;
mod service;
mod telling;

use std::process::ExitCode;

use clap::Parser;
use coroner::policy::COMMAND;

fn main() -> ExitCode {
    if let Some((memory, seconds)) = compile_limits(std::env::args()) {
        return coroner::policy::compile_child(memory, seconds);
    }
    limit_arenas();
    let args = cli::Args::parse();
    cli::start_log(args.log.as_deref(), args.command.quiet());
    match args.command {
        cli::Command::Run { config, shadow_all } => serve::run(&config, shadow_all),
        cli::Command::Status { ask } => asking::status(&ask),
        cli::Command::Tap { which, ask } => asking::tap(&which, &ask),
        cli::Command::Explain { whom, config, files, json } => explain::run(&whom, &config, &files, json),
        cli::Command::Guest { command } => asking::guest(command),
        cli::Command::Policy { command } => match command {
            cli::PolicyCommand::Check { file, config, json } => {
                policy_check::run(&file, config.as_deref(), json)
            }
            cli::PolicyCommand::Wrap { core, file } => policy_wrap::run(&core, &file),
            other => asking::policy(other),
        },
        cli::Command::Check { config, json } => check::run(&config, json),
        cli::Command::Doctor(ask) => doctor::run(&ask),
        cli::Command::Demo { json } => demo::run(json),
        cli::Command::DemoVictim { megabytes } => demo::victim(megabytes),
    }
}

/// Two heaps for all threads. The C library makes up to eight a processor, and each keeps what was freed in it: what one thread makes and another lets go of
/// then grew the router by a megabyte in ten thousand signals.
#[expect(
    unsafe_code,
    reason = "the one way to say so from inside; the call sets a number, before any thread is started"
)]
fn limit_arenas() {
    // SAFETY: mallopt(3) takes two numbers and touches no memory of ours.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// The router's own call to compile a policy: no command for people, and nothing that parses for people is run before its limits hold.
fn compile_limits(mut arguments: impl Iterator<Item = String>) -> Option<(u64, u64)> {
    arguments.next();
    (arguments.next()? == COMMAND).then_some(())?;
    Some((arguments.next()?.parse().ok()?, arguments.next()?.parse().ok()?))
}
