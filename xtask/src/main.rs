//! `cargo xtask`: the gate, the bundled policies, the benchmarks, the fuzz targets.
//!
//! ```text
//!   test     gate ──► packages, cargo, plugins --check, suites     minutes per suite, "N passed, 0 failed"
//!   plugins  toolchain ──► cargo build ──► component ──► plugins/dist + manifest.json
//!   bench    cargo bench
//!   fuzz     fuzz/fuzz_targets ──► libFuzzer, each on a copy of its corpus
//!   guest    kernel, vsock daemon, static agent ──► target-guest/parts
//!   book     docs/ ──► mdBook ──► target-book/html
//!   next     debootstrap, go build: newer containerds ──► target-next
//!   package  cargo-deb ──► target-package/coroner.deb
//!   node     debootstrap, go build, QEMU: a Kubernetes node, saved and resumed ──► target-node
//! ```
//!
//! It names no crate of this workspace and no engine, so that it builds in seconds.
#![expect(clippy::print_stdout, reason = "a command line tool: its output is for the person who runs it")]

mod bench;
mod book;
mod cache;
mod fuzz;
mod gate;
mod guest;
mod next;
mod node;
mod package;
mod packages;
mod plugins;
mod process;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The gate, the bundled policies and the benchmarks")]
enum Command {
    /// Runs the gate: every suite in order, and lists those that failed
    Test {
        /// Run this suite alone, and what it needs; may be given more than once
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Print the suites' names and commands instead of running them
        #[arg(long)]
        list: bool,
    },
    /// Builds the bundled policies into plugins/dist
    Plugins {
        /// Build into a folder of its own and compare with what is committed
        #[arg(long)]
        check: bool,
        /// Write plugins/dist even though another toolchain made what is there
        #[arg(long, conflicts_with = "check")]
        new_toolchain: bool,
    },
    /// Gets and builds what the guests of the suite `guest` are made of
    Guest,
    /// Gets or builds the newer containerds that the suites run
    Next {
        /// `trixie`, or a version that is a folder in tests/programs/containerd
        #[arg(value_name = "NAME", default_values_t = [next::TRIXIE.to_owned(), next::NEWEST.to_owned()])]
        names: Vec<String>,
    },
    /// Builds the Debian package into target-package/coroner.deb
    Package,
    /// Runs a Kubernetes node in a virtual machine
    #[command(subcommand)]
    Node(node::Command),
    /// Fuzzes what reads a guest's bytes
    Fuzz {
        /// How long each target runs
        #[arg(long, value_name = "N", default_value_t = fuzz::SECONDS)]
        seconds: u32,
    },
    /// Builds the book of docs/ with mdBook
    Book,
    /// Runs the benchmarks, or the one named
    Bench {
        /// A file in tests/benches, without its .rs
        name: Option<String>,
    },
}

fn main() -> ExitCode {
    let command = Command::parse();
    match process::end_children_on_signals().and_then(|()| run(command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns false where what failed is already printed.
fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::Test { only, list: false } => return gate::run(&only),
        Command::Test { only, list: true } => gate::list(&only),
        Command::Plugins { check: true, .. } => plugins::check().map(drop),
        Command::Plugins { check: false, new_toolchain } => plugins::write(new_toolchain),
        Command::Book => book::build(),
        Command::Guest => guest::parts().map(drop),
        Command::Next { names } => names.iter().try_for_each(|name| next::make(name)),
        Command::Package => package::build().map(drop),
        Command::Node(command) => node::run(command),
        Command::Fuzz { seconds } => fuzz::run(seconds).map(drop),
        Command::Bench { name } => bench::run(name.as_deref()),
    }
    .map(|()| true)
}
