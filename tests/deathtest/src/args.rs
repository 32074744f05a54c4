//! The command line. docs/operating/deathtest.md is its page.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples (as root, on the node):
  deathtest run                                    the default handler, every case once
  deathtest run --handler runc --handler coroner --count 20
                                                   two handlers that take turns
  deathtest run --handler runc --case oom-pid-1 --count 100 --busy 2
                                                   one case, on a busy machine
  deathtest run --handler kata --no-kernel-log     a runtime with a kernel of its own
  deathtest run --image localhost/busybox:1 --format junit > deathtest.xml
  deathtest list                                   the cases";

/// Makes containers die through CRI, and compares what CRI reports with the kernel log.
#[derive(Debug, Parser)]
#[command(name = "deathtest", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the cases and print a score card
    ///
    /// Exit codes: 0 every end was reported right, 1 at least one was lost, false or wrong, or a
    /// container did not start, 2 wrong usage or the run could not be completed, 130 interrupted.
    #[command(after_help = EXAMPLES)]
    Run(Options),
    /// Print the cases
    List {
        /// A file with cases; it replaces the built-in ones
        #[arg(long, value_name = "FILE")]
        cases: Option<PathBuf>,
    },
}

/// What to run, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The socket of the CRI runtime
    #[arg(
        long,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = "unix:///run/containerd/containerd.sock",
        value_name = "ADDRESS"
    )]
    pub(crate) endpoint: String,
    /// A runtime handler; repeatable, they take turns. Without it: the runtime's default
    #[arg(long = "handler", value_name = "NAME")]
    pub(crate) handlers: Vec<String>,
    /// An image with busybox; it is pulled if the runtime does not have it
    #[arg(long, default_value = "busybox", value_name = "REF")]
    pub(crate) image: String,
    /// A file with cases; it replaces the built-in ones
    #[arg(long, value_name = "FILE")]
    pub(crate) cases: Option<PathBuf>,
    /// Run this case alone; repeatable
    #[arg(long, value_name = "NAME")]
    pub(crate) case: Vec<String>,
    /// Containers for each case and handler
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) count: u32,
    /// Busy loops beside the containers
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1024))]
    pub(crate) busy: u32,
    /// How long a reading must stay the same to be final, in milliseconds
    #[arg(long, default_value_t = 1500, value_name = "N", value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub(crate) stable_ms: u64,
    /// The cgroup above the pods' cgroups: a path, or a slice for the systemd driver
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
    /// How to print the score card
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
    /// Do not read the kernel log; what a case expects is taken for the truth
    #[arg(long)]
    pub(crate) no_kernel_log: bool,
}

/// A format of the score card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for a person
    Table,
    /// Test Anything Protocol, version 14
    Tap,
    /// XML that CI systems read
    Junit,
    /// One document with every container
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn commands_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn handlers_and_cases_repeat() {
        let line = "deathtest run --handler runc --handler kata --case exit-0 --count 3 --format tap";
        let Command::Run(options) = Args::try_parse_from(line.split(' ')).unwrap().command else {
            panic!("{line}")
        };
        assert_eq!(options.handlers, ["runc", "kata"]);
        assert_eq!((options.case.len(), options.count, options.format), (1, 3, Format::Tap));
        for bad in ["deathtest run --count 0", "deathtest run --format xml", "deathtest"] {
            assert_eq!(Args::try_parse_from(bad.split(' ')).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
