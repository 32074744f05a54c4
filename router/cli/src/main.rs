//! The command line: arguments in, exit code out.

mod args;
mod check;
mod client;
mod demo;
mod doctor;
mod explain;
mod manual;
mod policy_check;
mod policy_wrap;
mod render;
mod serve;
mod service;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything that parses for people: a policy is compiled under limits alone.
    if let Some(code) = coroner::compile_process() {
        return code;
    }
    limit_arenas();
    let args = args::Args::parse();
    args::start_log(args.log.as_deref(), args.command.quiet());
    match args.command {
        args::Command::Run { config, shadow_all } => serve::run(&config, shadow_all),
        args::Command::Status { query } => client::status(&query),
        args::Command::Tap { filter, query } => client::tap(&filter, &query),
        args::Command::Explain { container, config, files, json, html } => {
            let output = match html {
                Some(file) => explain::ExplainOutput::Html(file),
                None if json => explain::ExplainOutput::Json,
                None => explain::ExplainOutput::Text,
            };
            explain::run(&container, &config, &files, &output)
        }
        args::Command::Guest { command } => client::guest(command),
        args::Command::Policy { command } => match command {
            args::PolicyCommand::Check { file, config, json } => {
                policy_check::run(&file, config.as_deref(), json)
            }
            args::PolicyCommand::Wrap { core, file } => policy_wrap::run(&core, &file),
            other => client::policy(other),
        },
        args::Command::Check { config, json } => check::run(&config, json),
        args::Command::Doctor(options) => doctor::run(&options),
        args::Command::Completions { shell } => manual::completions(shell),
        args::Command::Man { directory } => manual::pages(&directory),
        args::Command::Demo { json } => demo::run(json),
        args::Command::DemoVictim { megabytes } => demo::victim(megabytes),
    }
}

/// Two heaps for all threads. The C library makes up to eight for each processor, and each keeps
/// the memory that was freed in it: with one thread that allocates and another that frees, the
/// router grew by a megabyte in ten thousand signals.
#[expect(
    unsafe_code,
    reason = "libc has no safe variant; the call sets a number, before any thread is started"
)]
fn limit_arenas() {
    // SAFETY: mallopt(3) takes two numbers and touches no memory of ours.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}
