//! The command line: parses arguments, runs the library, returns an exit code.

mod arguments;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use coroner_agent::{CommandExit, Findings, Options, UnixSignals, Version, log};

use crate::arguments::{Command, parse};

/// It merges freed memory at once and has no settings. glibc's allocator has caches that cannot be
/// turned off: with it the agent used 50 KiB more after a burst.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// Exit codes: docs/reference/cli.md.
const FAILED: u8 = 1;
const USAGE_ERROR: u8 = 2;
/// I/O events per tokio tick: one per link and one for the epoll. tokio's default takes 12 KiB.
const IO_EVENTS: usize = 64;
/// Stack of the blocking thread, and how long it is kept idle.
const STACK: usize = 16 << 10;
const IDLE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = match parse(std::env::args_os().skip(1), std::env::var("CORONER_LOG").ok()) {
        Ok((command, level)) => {
            log::set_level(level);
            command
        }
        Err(error) => {
            print(
                std::io::stderr(),
                &format!("coroner-agent: {error}\n\nRun `coroner-agent --help` for the arguments.\n"),
            );
            return ExitCode::from(USAGE_ERROR);
        }
    };
    match command {
        Command::Help => print(std::io::stdout(), arguments::HELP),
        Command::Version => {
            print(std::io::stdout(), concat!("coroner-agent ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Command::Check { roots } => match coroner_agent::check(&roots, None) {
            Ok(findings) => print(std::io::stdout(), &shown(&findings)),
            Err(error) => return failed(&error),
        },
        Command::Run { listen, roots, pressure, command, evidence } => {
            raise_descriptor_limit();
            match serve(Options { listen, roots, cgroup_mount: None, pressure, command, evidence }) {
                Ok(ended) => return finish(ended),
                Err(error) => return failed(&*error),
            }
        }
    }
    ExitCode::SUCCESS
}

fn serve(options: Options) -> Result<Option<CommandExit>, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(IO_EVENTS)
        .max_blocking_threads(1)
        .thread_stack_size(STACK)
        .thread_keep_alive(IDLE)
        .build()?;
    runtime.block_on(async {
        let signals = UnixSignals::register(&[libc::SIGTERM, libc::SIGINT])?;
        let shutdown = signals.received();
        Ok(coroner_agent::run(options, raise_priority, shutdown).await?)
    })
}

/// The agent exits with the command's status. As init it powers off instead: the kernel panics when
/// init ends.
fn finish(ended: Option<CommandExit>) -> ExitCode {
    use rustix::system::{RebootCommand, reboot};
    if coroner_agent::is_init() {
        rustix::fs::sync();
        if let Err(error) = reboot(RebootCommand::PowerOff) {
            return failed(&format!("cannot power off: {error}"));
        }
    }
    ended.map_or(ExitCode::SUCCESS, |exit| exit.status.into())
}

/// Raises the limit on descriptors: a container takes two, and the usual limit is 1,024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without the right to raise it, the error is logged when the limit is reached.
    setrlimit(Resource::Nofile, limit).ok();
}

/// Raises the agent's priority, since what is not read in time is lost: of 100 containers that
/// lived for a millisecond on two busy processors, 18 ended with an unknown status at the usual
/// priority and none at this one. The agent runs for microseconds at a time.
fn raise_priority() {
    // Without the right to raise it the agent runs at the usual priority.
    rustix::process::setpriority_process(None, -15).ok();
}

fn shown(findings: &Findings) -> String {
    let version = match findings.hierarchy.version() {
        Version::V1 => "v1",
        Version::V2 => "v2",
    };
    let mut lines = vec![format!("cgroup {version} at {}", findings.hierarchy.mount().display())];
    lines.push(format!("placement {}: {}", findings.placement, findings.placement.meaning()));
    for capability in &findings.capabilities {
        lines.push(match &capability.missing_because {
            None => format!("  {:<12} yes", capability.name),
            Some(why) => format!("  {:<12} no: {why}", capability.name),
        });
    }
    lines.push(match findings.containers.len() {
        0 => "no containers found below the roots".to_owned(),
        count => format!("containers: {count}"),
    });
    for container in &findings.containers {
        let init =
            container.init_pid.map_or_else(|| "init not known".to_owned(), |pid| format!("init {pid}"));
        let kills = match &container.kills {
            Ok(kills) => format!("OOM kills {kills}"),
            Err(why) => why.clone(),
        };
        lines.push(format!("  {}  {init}, {kills}\n    {}", container.id, container.cgroup));
    }
    lines.join("\n") + "\n"
}

fn failed(error: &(impl std::fmt::Display + ?Sized)) -> ExitCode {
    print(std::io::stderr(), &format!("coroner-agent: {error}\n"));
    ExitCode::from(FAILED)
}

/// Errors are ignored: a closed pipe has no reader.
fn print(mut to: impl Write, text: &str) {
    to.write_all(text.as_bytes()).ok();
}
