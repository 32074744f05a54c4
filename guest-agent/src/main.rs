//! The command line: arguments, then the library, then an exit code.

mod arguments;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use coroner_agent::{Exit, Findings, Options, Signals, Version, log};

use crate::arguments::{Command, parse};

/// It puts what is freed together at once, and has no settings: with glibc's allocator, whose caches no call can turn off, the agent took 50 KiB
/// more after a storm.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

/// docs/cli.md.
const FAILED: u8 = 1;
const WRONG_USAGE: u8 = 2;
/// Sources that tokio hears of at once: links and one epoll. Its own default takes 12 KiB.
const IO_EVENTS: usize = 64;
/// Of the thread that waits where the kernel makes it wait, and how long it stays with nothing to do.
const STACK: usize = 16 << 10;
const IDLE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = match parse(std::env::args_os().skip(1), std::env::var("CORONER_LOG").ok()) {
        Ok((command, level)) => {
            log::set_level(level);
            command
        }
        Err(error) => {
            say(
                std::io::stderr(),
                &format!("coroner-agent: {error}\n\n`coroner-agent --help` tells what it takes.\n"),
            );
            return ExitCode::from(WRONG_USAGE);
        }
    };
    match command {
        Command::Help => say(std::io::stdout(), arguments::HELP),
        Command::Version => {
            say(std::io::stdout(), concat!("coroner-agent ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Command::Check { roots } => match coroner_agent::check(&roots, None) {
            Ok(findings) => say(std::io::stdout(), &shown(&findings)),
            Err(error) => return failed(&error),
        },
        Command::Run { listen, roots, pressure, command } => {
            raise_descriptors();
            match serve(Options { listen, roots, cgroup_mount: None, pressure, command }) {
                Ok(ended) => return over(ended),
                Err(error) => return failed(&*error),
            }
        }
    }
    ExitCode::SUCCESS
}

fn serve(options: Options) -> Result<Option<Exit>, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(IO_EVENTS)
        .max_blocking_threads(1)
        .thread_stack_size(STACK)
        .thread_keep_alive(IDLE)
        .build()?;
    runtime.block_on(async {
        let ends = Signals::of(&[libc::SIGTERM, libc::SIGINT])?;
        let shutdown = ends.came();
        Ok(coroner_agent::run(options, go_first, shutdown).await?)
    })
}

/// The command's end is the agent's. An init must not end: the kernel would panic.
fn over(ended: Option<Exit>) -> ExitCode {
    use rustix::system::{RebootCommand, reboot};
    if coroner_agent::is_init() {
        rustix::fs::sync();
        if let Err(error) = reboot(RebootCommand::PowerOff) {
            return failed(&format!("cannot power off: {error}"));
        }
    }
    ended.map_or(ExitCode::SUCCESS, |exit| exit.status.into())
}

/// A container takes two descriptors, and the usual limit is 1,024.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // What cannot be raised is met when it is reached, and told then.
    setrlimit(Resource::Nofile, limit).ok();
}

/// What is not looked at in time is gone: of 100 containers that lived for a millisecond on two busy processors, 18 ended with
/// an unknown status at the usual priority and none at this one. The agent runs for microseconds at a time.
fn go_first() {
    // Without the right to, it is as late as everybody.
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
        0 => "no containers seen below the roots".to_owned(),
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
    say(std::io::stderr(), &format!("coroner-agent: {error}\n"));
    ExitCode::from(FAILED)
}

/// A closed pipe is nobody to tell.
fn say(mut to: impl Write, text: &str) {
    to.write_all(text.as_bytes()).ok();
}
