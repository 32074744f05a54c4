//! Arguments, checked before anything else happens.

use std::ffi::OsString;

use coroner_agent::log::Level;
use coroner_agent::{DEFAULT_ROOTS, Rule, RuleError, Trigger};
use coroner_proto::address::{Address, AddressError};
use lexopt::{Arg, Parser, ValueExt};

pub(crate) const HELP: &str = "\
Tells the router which containers were OOM-killed and how they ended.

Usage:
  coroner-agent run --listen ADDRESS [--root PATTERN ...] [--pressure TRIGGER ...] [-- COMMAND ...]
  coroner-agent check [--root PATTERN ...]

Commands:
  run      watches containers and serves what it sees until SIGTERM or SIGINT
  check    says how it would run here, what can be known, and which containers it sees

With COMMAND it starts that, becomes the reaper of all that it starts, and ends with it: every such process has a
status, however short its life. As pid 1 it then powers the machine off.

Options:
  --listen ADDRESS  unix:///path (made with mode 0600) or vsock://CID:PORT (CID -1: any); may be given more than once
  --root PATTERN    where containers are: a path below the cgroup hierarchy's root, `*` standing for the rest of one name;
                    may be given more than once [default: kubepods*, docker, k8s.io and system.slice]
  --pressure [ID=]OF:LINE:STALL/WINDOW
                    tell when a container stalls for STALL within WINDOW: OF is memory, cpu or io, LINE some or full, the
                    window 500ms to 10s. With an ID, or the start of one and a `*`, for its containers alone, in place of the
                    others; `none` watches nothing; may be given more than once [default: memory:some:50ms/500ms]
  --log LEVEL       error, warn, info, debug or trace, to standard error [default: CORONER_LOG, else info]
  --help, --version

Examples:
  coroner-agent run --listen unix:///run/coroner/agent.sock      on a node
  coroner-agent run --listen vsock://-1:1030                     in a guest
  coroner-agent run --listen vsock://-1:1030 -- /sbin/init-of-the-guest       as its pid 1
  coroner-agent run --listen unix:///run/a.sock --root 'my.slice/pods*' --pressure 'db-*=io:full:100ms/1s'
  coroner-agent check

Exit codes: 0 done, 1 failed while running, 2 wrong usage.
";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Check { roots: Vec<String> },
    Run { listen: Vec<Address>, roots: Vec<String>, pressure: Vec<Rule>, command: Vec<OsString> },
}

/// What is wrong with the arguments.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    #[error(transparent)]
    Argument(#[from] lexopt::Error),
    #[error("--listen: {0}")]
    Address(#[from] AddressError),
    #[error("--pressure: {0}")]
    Pressure(#[from] RuleError),
    #[error("{0}")]
    Level(String),
    #[error("`{0}` is no command: run or check")]
    Command(String),
    #[error("a command is missing: run or check")]
    NoCommand,
    #[error("after -- comes the program to start")]
    NoProgram,
    #[error("run takes --listen, such as --listen unix:///run/coroner/agent.sock")]
    NoAddress,
    #[error("check takes no --listen, --pressure or command: it serves nobody and starts nothing")]
    CheckListens,
}

/// Reads the arguments; `level` is what the environment says of the log.
pub(crate) fn parse(
    arguments: impl Iterator<Item = OsString>,
    level: Option<String>,
) -> Result<(Command, Level), UsageError> {
    let mut parser = Parser::from_args(arguments);
    let (mut command, mut listen, mut roots, mut level) = (None, Vec::new(), Vec::new(), level);
    let (mut pressure, mut started) = (Vec::new(), Vec::new());
    loop {
        // What follows `--` is not ours, options of its own included.
        if let Some(rest) = parser.try_raw_args()
            && rest.peek().is_some_and(|word| word == "--")
        {
            started = rest.skip(1).collect();
            if started.is_empty() {
                return Err(UsageError::NoProgram);
            }
            break;
        }
        let Some(argument) = parser.next()? else { break };
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok((Command::Help, Level::Info)),
            Arg::Short('V') | Arg::Long("version") => return Ok((Command::Version, Level::Info)),
            Arg::Long("listen") => listen.push(parser.value()?.string()?.parse()?),
            Arg::Long("pressure") => pressure.push(parser.value()?.string()?.parse()?),
            Arg::Long("root") => roots.push(parser.value()?.string()?),
            Arg::Long("log") => level = Some(parser.value()?.string()?),
            Arg::Value(name) if command.is_none() => command = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    if roots.is_empty() {
        roots = DEFAULT_ROOTS.map(str::to_owned).to_vec();
    }
    let level = level.as_deref().map_or(Ok(Level::Info), level_of)?;
    let command = match command.as_deref() {
        Some("run") if listen.is_empty() => return Err(UsageError::NoAddress),
        Some("run") => {
            if pressure.iter().all(|rule: &Rule| rule.container.is_some()) {
                pressure.push(Rule { container: None, trigger: Some(Trigger::DEFAULT) });
            }
            Command::Run { listen, roots, pressure, command: started }
        }
        Some("check") if !listen.is_empty() || !pressure.is_empty() || !started.is_empty() => {
            return Err(UsageError::CheckListens);
        }
        Some("check") => Command::Check { roots },
        Some(other) => return Err(UsageError::Command(other.to_owned())),
        None => return Err(UsageError::NoCommand),
    };
    Ok((command, level))
}

/// The router's filters hold targets too; the agent takes the level that stands alone.
fn level_of(text: &str) -> Result<Level, UsageError> {
    let mut alone = text.split(',').map(str::trim).filter(|part| !part.contains('='));
    alone.next().map_or(Ok(Level::Info), |level| level.parse().map_err(UsageError::Level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, Level), UsageError> {
        parse(line.split_whitespace().map(OsString::from), None)
    }

    #[test]
    fn good_lines_are_taken() {
        let roots = || DEFAULT_ROOTS.map(str::to_owned).to_vec();
        let listen = || vec!["unix:///a".parse::<Address>().unwrap()];
        let run = |pressure: &[&str], command: &[&str]| Command::Run {
            listen: listen(),
            roots: roots(),
            pressure: match pressure {
                [] => vec![Rule { container: None, trigger: Some(Trigger::DEFAULT) }],
                rules => rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            },
            command: command.iter().map(OsString::from).collect(),
        };
        for (line, expect) in [
            ("--help", Command::Help),
            ("run --help", Command::Help),
            ("--version", Command::Version),
            ("check", Command::Check { roots: roots() }),
            ("check --root=a --root b", Command::Check { roots: vec!["a".to_owned(), "b".to_owned()] }),
            ("run --listen unix:///a", run(&[], &[])),
            ("run --listen unix:///a --pressure none", run(&["none"], &[])),
            ("run --listen unix:///a -- sh --help", run(&[], &["sh", "--help"])),
        ] {
            assert_eq!(parsed(line).unwrap().0, expect, "{line}");
        }
        assert_eq!(parsed("check --log coroner::source=debug,warn").unwrap().1, Level::Warn);
        assert_eq!(parse(["check".into()].into_iter(), Some("debug".to_owned())).unwrap().1, Level::Debug);
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (line, expect) in [
            ("", "a command is missing"),
            ("walk", "`walk` is no command"),
            ("run", "run takes --listen"),
            ("run --listen", "missing argument for option '--listen'"),
            ("run --listen tcp://1", "--listen: `tcp://1` is not unix:///path, vsock://CID:PORT or hvsock"),
            ("check --listen unix:///a", "check takes no --listen"),
            ("run --listen unix:///a --pressure much", "--pressure: `much` is not"),
            ("run --listen unix:///a --", "after -- comes"),
            ("check -- sh", "check takes no --listen"),
            ("check extra", "unexpected argument \"extra\""),
            ("check --colour", "invalid option '--colour'"),
            ("check --log loud", "`loud` is no log level"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{line}: {error}");
        }
    }
}
