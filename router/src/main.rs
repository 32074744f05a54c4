//! The command line: arguments in, exit code out.

mod check;
mod cli;
mod demo;
mod serve;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    cli::start_log(args.log.as_deref(), args.command.quiet());
    match args.command {
        cli::Command::Run { config } => serve::run(&config),
        cli::Command::Check { config, json } => check::run(&config, json),
        cli::Command::Demo { json } => demo::run(json),
        cli::Command::DemoVictim { megabytes } => demo::victim(megabytes),
    }
}
