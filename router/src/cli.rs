//! What can be asked on the command line. docs/cli.md is its page.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Exit code: failed while running.
pub(crate) const FAILED: u8 = 1;
/// Exit code: wrong usage or configuration.
pub(crate) const WRONG: u8 = 2;
/// Exit code of `demo`: replayed instead of run.
pub(crate) const REPLAYED: u8 = 3;

/// Decides, and tells, why containers died.
#[derive(Debug, Parser)]
#[command(name = "coroner", version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to log: error, warn, info, debug, trace, or a filter such as coroner::source=debug
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
  coroner status                                   what a running router does
  coroner tap --namespace shop                     what it rules and delivers, as it happens
  coroner explain shop/web-1/app                   all that is known of one container
  coroner doctor                                   are containerd, the wrapped shims and the router set up well?
  coroner policy --help                            its policies
  coroner guest --help                             its guests";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the router until SIGTERM or SIGINT
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// A dry run: every policy only tells what it would rule, and the native default rules
        #[arg(long)]
        shadow_all: bool,
    },
    /// Show what runs: policies, sources, sinks
    Status {
        #[command(flatten)]
        ask: Ask,
    },
    /// Show rulings and deliveries as they happen
    Tap {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        ask: Ask,
    },
    /// Tell all that is known of one container, from the audit files and the journal
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// A container id, the start of one that is unique, or namespace/pod/container
        whom: String,
        /// The configuration that names the audit files
        #[arg(long, default_value = "/etc/coroner/coroner.toml", value_name = "FILE")]
        config: PathBuf,
        /// Read this audit file instead; may be given more than once, the oldest first
        #[arg(long = "file", value_name = "FILE", conflicts_with = "config")]
        files: Vec<PathBuf>,
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Look at, reload and promote the policies of a running router
    #[command(after_help = POLICY_EXAMPLES)]
    Policy {
        #[command(subcommand)]
        command: PolicyCommand,
    },
    /// Follow guests that come and go while the router runs
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
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Look over wrapped shims: containerd, its configuration, the wrapper, the router, the shims that run (as root)
    Doctor(Doctor),
    /// Let the kernel OOM-kill a process and show what becomes of it (as root)
    Demo {
        /// Print the audit records
        #[arg(long)]
        json: bool,
    },
    /// The process that dies in the demo
    #[command(hide = true)]
    DemoVictim {
        /// How much it allocates
        megabytes: usize,
    },
}

/// What to look at, and how to tell.
#[derive(Debug, clap::Args)]
pub(crate) struct Doctor {
    /// The router's configuration
    #[arg(long, default_value = "/etc/coroner/coroner.toml", value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// containerd's configuration
    #[arg(long, default_value = "/etc/containerd/config.toml", value_name = "FILE")]
    pub(crate) containerd_config: PathBuf,
    /// Tell what to remove, and in which order, and which pods are still in the way
    #[arg(long)]
    pub(crate) uninstall: bool,
    /// For machines
    #[arg(long)]
    pub(crate) json: bool,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  coroner explain shop/web-1/app                   the latest container of that name
  coroner explain 4f2a                             the one whose id begins so
  coroner demo --json > demo.jsonl; coroner explain --file demo.jsonl 0000";

/// Which records to show; those that fit all that is given.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// Of the container with this id, or with one that begins so
    #[arg(long, value_name = "ID")]
    pub(crate) container: Option<String>,
    /// Of this pod
    #[arg(long, value_name = "NAME")]
    pub(crate) pod: Option<String>,
    /// Of pods in this namespace
    #[arg(long, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Of signals of this kind, and what was delivered of them
    #[arg(long, value_parser = KINDS)]
    pub(crate) kind: Option<String>,
}

/// The kinds of signal, as the contracts name them.
const KINDS: [&str; 6] = ["oom-kill", "exited", "pressure", "kill-request", "guest-lost", "other"];

/// Where to ask, and how to answer.
#[derive(Debug, clap::Args)]
pub(crate) struct Ask {
    /// The router's control socket
    #[arg(long, env = "CORONER_SOCKET", default_value = "/run/coroner/control.sock", value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// For machines
    #[arg(long)]
    pub(crate) json: bool,
}

const GUEST_EXAMPLES: &str = "\
Examples:
  coroner guest add vm-1 --address hvsock:///run/vm-1/v.sock:1030 --mode sole --monitor-pid 4711
  coroner guest add vm-2 --address vsock://7:1030 --mode beside --container web-1 --container log-1
  coroner guest list
  coroner guest remove vm-1                        its machine is gone: what lived in it is told lost";

#[derive(Debug, Subcommand)]
pub(crate) enum GuestCommand {
    /// Follow one more, over restarts of the router too
    Add {
        /// Its name: 1 to 64 characters of a-z 0-9 -
        name: String,
        /// Where its agent answers: vsock://CID:PORT, hvsock:///path:PORT or unix:///path
        #[arg(long)]
        address: String,
        /// Who else speaks for its containers: beside or sole
        #[arg(long)]
        mode: String,
        /// What answers there: agent or kata
        #[arg(long = "type", default_value = "agent", value_name = "TYPE")]
        kind: String,
        /// A container that is its own; may be given more than once. None: those it speaks of first
        #[arg(long = "container", value_name = "ID")]
        containers: Vec<String>,
        /// The process of its virtual machine monitor: when that ends, the guest is lost
        #[arg(long, value_name = "PID")]
        monitor_pid: Option<u32>,
        /// It is lost when its link was down for so long, 10s say
        #[arg(long, value_name = "TIME")]
        lost_after: Option<String>,
        #[command(flatten)]
        ask: Ask,
    },
    /// Follow it no more: what lives in it is told lost
    Remove {
        /// Its name
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// All of them
    List {
        #[command(flatten)]
        ask: Ask,
    },
}

const POLICY_EXAMPLES: &str = "\
Examples:
  coroner policy wrap target/wasm32-unknown-unknown/release/mine.wasm 50-mine.wasm
  coroner policy check 50-mine.wasm                would it be loaded, and what does a call cost?
  coroner policy list                              what rules now
  coroner policy inspect 50-mine                   all of one, its last faults, what it would change
  coroner policy promote 50-mine                   let a shadow policy's rulings count";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// The chain, and what was refused
    List {
        #[command(flatten)]
        ask: Ask,
    },
    /// All of one policy
    Inspect {
        /// Its file name without .wasm, 50-mine say
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
    /// Look at a component file without a router
    Check {
        /// The component
        #[arg(value_name = "FILE.wasm")]
        file: PathBuf,
        /// Its own file; the one beside it unless named
        #[arg(long, value_name = "FILE.toml")]
        config: Option<PathBuf>,
        /// For machines
        #[arg(long)]
        json: bool,
    },
    /// Make a component of what a compiler made for wasm32-unknown-unknown
    Wrap {
        /// The core module
        #[arg(value_name = "CORE.wasm")]
        core: PathBuf,
        /// Where to write the policy, 50-mine.wasm say
        #[arg(value_name = "FILE.wasm")]
        file: PathBuf,
    },
    /// Look at the policy directory now
    Reload {
        #[command(flatten)]
        ask: Ask,
    },
    /// Let a shadow policy's rulings count
    Promote {
        /// Its file name without .wasm, 50-mine say
        name: String,
        /// Although it had faults
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        ask: Ask,
    },
    /// End a quarantine
    Release {
        /// Its file name without .wasm, 50-mine say
        name: String,
        #[command(flatten)]
        ask: Ask,
    },
}

impl Command {
    /// Whether its output is for a person at a terminal, and the life cycle of parts is noise.
    pub(crate) fn quiet(&self) -> bool {
        match self {
            Self::Run { .. } => false,
            Self::Status { .. } | Self::Policy { .. } | Self::Guest { .. } => true,
            Self::Tap { .. } | Self::Explain { .. } => true,
            Self::Check { .. } | Self::Doctor(_) | Self::Demo { .. } | Self::DemoVictim { .. } => true,
        }
    }
}

/// Logs to standard error; colours only on a terminal.
pub(crate) fn start_log(filter: Option<&str>, quiet: bool) {
    let level = if quiet { "warn" } else { "info" };
    let filter = EnvFilter::try_new(filter.unwrap_or(level)).unwrap_or_else(|error| {
        eprintln!("coroner: --log: {error}; logging at info");
        EnvFilter::new("info")
    });
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
