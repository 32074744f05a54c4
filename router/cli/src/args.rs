//! The command line: commands and their options. docs/reference/cli.md is its page.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::render::{has_colours, note};

/// Exit code: failed while running.
pub(crate) const FAILED: u8 = 1;
/// Exit code: wrong usage or configuration.
pub(crate) const WRONG: u8 = 2;
/// Exit code of `demo`: replayed instead of run.
pub(crate) const REPLAYED: u8 = 3;

/// Determines why containers died, and publishes it.
#[derive(Debug, Parser)]
#[command(name = "coroner", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to log: error, warn, info, debug, trace, or a filter such as coroner_sources=debug
    #[arg(long, global = true, env = "CORONER_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  coroner demo                                     see a real OOM kill being ruled (as root)
  coroner check --config /etc/coroner/coroner.toml
  coroner run --config /etc/coroner/coroner.toml
  coroner status                                   the state of a running router
  coroner tap --namespace shop                     rulings and deliveries as they happen
  coroner explain shop/web-1/app                   everything recorded about one container
  coroner doctor                                   check containerd, the wrapped shims and the router
  coroner policy --help                            its policies
  coroner guest --help                             its guests";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the router until SIGTERM or SIGINT
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Dry run: every policy is in mode shadow, and the native default rules
        #[arg(long)]
        shadow_all: bool,
    },
    /// Show policies, sources, guests, sinks and what is queued
    Status {
        #[command(flatten)]
        query: Query,
    },
    /// Show rulings and deliveries as they happen
    Tap {
        #[command(flatten)]
        filter: TapFilter,
        #[command(flatten)]
        query: Query,
    },
    /// Explain one container from the audit files and the journal
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// A container id, the start of one that is unique, or namespace/pod/container
        container: String,
        /// The configuration that names the audit files
        #[arg(long, default_value = "/etc/coroner/coroner.toml", value_name = "FILE")]
        config: PathBuf,
        /// Read this audit file instead; may be given more than once, the oldest first
        #[arg(long = "file", value_name = "FILE", conflicts_with = "config")]
        files: Vec<PathBuf>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
        /// Write a page for a browser instead, with charts; `-` is standard output
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        html: Option<PathBuf>,
    },
    /// List, inspect, reload and promote the policies of a running router
    #[command(after_help = POLICY_EXAMPLES)]
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Add, remove and list guests while the router runs
    #[command(after_help = GUEST_EXAMPLES)]
    Guest {
        #[command(subcommand)]
        command: GuestCommand,
    },
    /// Check the configuration and start every policy once
    Check {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Check wrapped shims: containerd, its configuration, wrapper, router, running shims (as root)
    Doctor(Doctor),
    /// Let the kernel OOM-kill a process and show how it is ruled (as root)
    Demo {
        /// Print the audit records
        #[arg(long)]
        json: bool,
    },
    /// Print the completions of a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the man pages of all commands, for packages
    #[command(hide = true)]
    Man {
        /// Where to write them
        directory: PathBuf,
    },
    /// The process that dies in the demo
    #[command(hide = true)]
    DemoVictim {
        /// How much it allocates
        megabytes: usize,
    },
}

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  coroner completions bash > /etc/bash_completion.d/coroner
  coroner completions zsh > /usr/local/share/zsh/site-functions/_coroner
  coroner completions fish > ~/.config/fish/completions/coroner.fish";

/// What to check.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// The router's configuration
    #[arg(long, default_value = "/etc/coroner/coroner.toml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// containerd's configuration
    #[arg(long, default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    pub(crate) containerd_config: PathBuf,
    /// Print what to remove, in order, and which pods still prevent it
    #[arg(long)]
    pub(crate) uninstall: bool,
    /// Put containerd's default runtime behind the wrapper, by a drop-in beside its configuration;
    /// with --uninstall, remove that drop-in
    #[arg(long)]
    pub(crate) write: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  coroner explain shop/web-1/app                   the latest container of that name
  coroner explain 4f2a                             the one with an id that begins so
  coroner explain shop/web-1/app --html death.html    the same as a page, with charts
  coroner demo --json > demo.jsonl; coroner explain --file demo.jsonl 0000";

/// The records to show: those that fit every filter.
#[derive(Debug, clap::Args)]
pub(crate) struct TapFilter {
    /// Of the container with this id, or with one that begins so
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Of this pod
    #[arg(long, value_name = "NAME")]
    pub(crate) pod: Option<String>,
    /// Of pods in this namespace
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Of signals of this kind, and their deliveries
    #[arg(long, value_parser = KINDS)]
    pub(crate) kind: Option<String>,
}

/// The kinds of signal, as the contracts name them.
const KINDS: [&str; 6] = ["oom-kill", "exited", "pressure", "kill-request", "guest-lost", "other"];

/// The router to query, and the output format.
#[derive(Debug, clap::Args)]
pub(crate) struct Query {
    /// The router's control socket
    #[arg(long, env = "CORONER_SOCKET", default_value = "/run/coroner/control.sock", value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

const GUEST_EXAMPLES: &str = "\
Examples:
  coroner guest add vm-1 --address hvsock:///run/vm-1/v.sock:1030 --mode sole --monitor-pid 4711
  coroner guest add vm-2 --address vsock://7:1030 --mode beside --container web-1 --container log-1
  coroner guest list
  coroner guest remove vm-1                        its machine is gone: its containers are reported as lost";

#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Follow one more guest, over restarts of the router too
    Add {
        /// Its name: 1 to 64 characters of a-z 0-9 -
        name: String,
        /// The address of its agent: vsock://CID:PORT, hvsock:///path:PORT or unix:///path
        #[arg(long)]
        address: String,
        /// Its mode: beside (a shim publishes too) or sole
        #[arg(long)]
        mode: String,
        /// The protocol at that address: agent or kata
        #[arg(long = "type", default_value = "agent", value_name = "TYPE")]
        kind: String,
        /// A container of this guest; repeatable. Without it: those that it reports first
        #[arg(long = "container", value_name = "ID")]
        containers: Vec<String>,
        /// The process of its virtual machine monitor: when that ends, the guest is lost
        #[arg(long, value_name = "PID")]
        monitor_pid: Option<u32>,
        /// The guest is lost once its link was down for this long, such as 10s
        #[arg(long, value_name = "TIME")]
        lost_after: Option<String>,
        #[command(flatten)]
        query: Query,
    },
    /// Stop following a guest: its containers are reported as lost
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        query: Query,
    },
    /// List every guest
    List {
        #[command(flatten)]
        query: Query,
    },
}

const POLICY_EXAMPLES: &str = "\
Examples:
  coroner policy wrap target/wasm32-unknown-unknown/release/mine.wasm 50-mine.wasm
  coroner policy check 50-mine.wasm                whether it would be loaded, and what a call costs
  coroner policy list                              the running chain
  coroner policy inspect 50-mine                   all of one, its last faults, what it would change
  coroner policy promote 50-mine                   let a shadow policy's rulings count";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// List the chain, and what was refused
    List {
        #[command(flatten)]
        query: Query,
    },
    /// Show everything about one policy
    Inspect {
        /// Its file name without .wasm, such as 50-mine
        name: String,
        #[command(flatten)]
        query: Query,
    },
    /// Check a component file without a router
    Check {
        /// The component
        #[arg(value_name = "FILE.wasm")]
        file: PathBuf,
        /// Its configuration; without it the .toml beside the component
        #[arg(long, value_name = "FILE.toml")]
        config: Option<PathBuf>,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Make a component of a core module for wasm32-unknown-unknown
    Wrap {
        /// The core module
        #[arg(value_name = "CORE.wasm")]
        core: PathBuf,
        /// Where to write the policy, such as 50-mine.wasm
        #[arg(value_name = "FILE.wasm")]
        file: PathBuf,
    },
    /// Read the policy directory now
    Reload {
        #[command(flatten)]
        query: Query,
    },
    /// Let a shadow policy's rulings count
    Promote {
        /// Its file name without .wasm, such as 50-mine
        name: String,
        /// Promote it although it had faults
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        query: Query,
    },
    /// End a quarantine
    Release {
        /// Its file name without .wasm, such as 50-mine
        name: String,
        #[command(flatten)]
        query: Query,
    },
}

impl Command {
    /// Whether its output is for a person at a terminal, without the life cycle of parts.
    pub(crate) fn quiet(&self) -> bool {
        match self {
            Self::Run { .. } => false,
            Self::Status { .. } | Self::Policy { .. } | Self::Guest { .. } => true,
            Self::Tap { .. } | Self::Explain { .. } => true,
            Self::Check { .. } | Self::Doctor(_) | Self::Demo { .. } | Self::DemoVictim { .. } => true,
            Self::Completions { .. } | Self::Man { .. } => true,
        }
    }
}

/// Logs to standard error; colours only on a terminal.
pub(crate) fn start_log(filter: Option<&str>, quiet: bool) {
    let level = if quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_new(filter.unwrap_or(level)).unwrap_or_else(|error| {
        note(format!("--log: {error}; logging at info"));
        EnvFilter::new("info")
    });
    let colours = has_colours(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// The help of a command and of all below it.
    fn help(name: &str, command: &mut clap::Command, pages: &mut Vec<(String, String)>) {
        let mut sized = command.clone().term_width(100).mut_args(|arg| arg.hide_env_values(true));
        pages.push((name.to_owned(), sized.render_long_help().to_string()));
        for below in command.get_subcommands_mut().filter(|it| !it.is_hide_set() && it.get_name() != "help") {
            help(&format!("{name} {}", below.get_name()), below, pages);
        }
    }

    #[test]
    fn help_of_every_command_is_fixed() {
        let mut pages = Vec::new();
        let mut command = Args::command();
        command.build();
        help("coroner", &mut command, &mut pages);
        for (name, page) in pages {
            insta::assert_snapshot!(name.replace(' ', "-"), page);
        }
    }
}
