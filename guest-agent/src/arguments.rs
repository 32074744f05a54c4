//! Command line arguments, checked before the agent starts.

use std::ffi::OsString;

use coroner_agent::log::Level;
use coroner_agent::{DEFAULT_ROOTS, EvidenceDetail, PressureRule, PressureRuleError, PsiTrigger};
use coroner_transport::{Address, AddressError};
use lexopt::{Arg, Parser, ValueExt};

pub(crate) const HELP: &str = "\
Reports OOM kills, exits and pressure of containers to the router.

Usage:
  coroner-agent run --listen ADDRESS [--root PATTERN ...] [--pressure TRIGGER ...] [--evidence DETAIL]
                    [-- COMMAND ...]
  coroner-agent check [--root PATTERN ...]

Commands:
  run      watch containers and serve their signals until SIGTERM or SIGINT
  check    print the placement, the capabilities and the containers found on this machine

With COMMAND the agent starts it, becomes the reaper of its descendants and ends with it: each of these processes has
an exit status, however short its life. As pid 1 the agent then powers the machine off.

Options:
  --listen ADDRESS  unix:///path (created with mode 0600) or vsock://CID:PORT (CID -1: any); repeatable
  --root PATTERN    where containers are: a path below the cgroup hierarchy's root; `*` matches the rest of a name;
                    repeatable [default: those of Kubernetes, Docker, containerd,
                    Podman and ECS]; with a + before it, in addition to these
  --pressure [ID=]OF:LINE:STALL/WINDOW
                    report when a container stalls for STALL within WINDOW: OF is memory, cpu or io, LINE is some or
                    full, WINDOW is 500ms to 10s. With ID (a container id, or a prefix and `*`) the trigger applies to
                    these containers only and replaces the others; `none` disables triggers; repeatable
                    [default: memory:some:50ms/500ms]
  --evidence DETAIL what to keep of each container's last OOM kill: full; counts, without the names of processes;
                    or none [default: counts with --listen vsock://, as in a guest; else full]
  --log LEVEL       error, warn, info, debug or trace; logs go to standard error [default: CORONER_LOG, else info]
  --help, --version

Examples:
  coroner-agent run --listen unix:///run/coroner/agent.sock      on a node
  coroner-agent run --listen vsock://-1:1030                     in a guest
  coroner-agent run --listen vsock://-1:1030 -- /sbin/init-of-the-guest       as its pid 1
  coroner-agent run --listen unix:///run/a.sock --root 'my.slice/pods*' --pressure 'db-*=io:full:100ms/1s'
  coroner-agent run --listen unix:///run/a.sock --root +default  the default roots, and `ctr run` as well
  coroner-agent check

Exit codes: 0 success, 1 runtime failure, 2 usage error.
";

/// A parsed command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Check {
        roots: Vec<String>,
    },
    Run {
        listen: Vec<Address>,
        roots: Vec<String>,
        pressure: Vec<PressureRule>,
        command: Vec<OsString>,
        evidence: EvidenceDetail,
    },
}

/// Why the arguments are refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    #[error(transparent)]
    Argument(#[from] lexopt::Error),
    #[error("--listen: {0}")]
    Address(#[from] AddressError),
    #[error("--pressure: {0}")]
    Pressure(#[from] PressureRuleError),
    #[error("--evidence: {0}")]
    Evidence(String),
    #[error("{0}")]
    Level(String),
    #[error("unknown command `{0}`: use run or check")]
    Command(String),
    #[error("missing command: use run or check")]
    NoCommand,
    #[error("missing program after --")]
    NoProgram,
    #[error("run requires --listen, such as --listen unix:///run/coroner/agent.sock")]
    NoAddress,
    #[error(
        "check does not take --listen, --pressure, --evidence or a command: it serves nothing and starts nothing"
    )]
    CheckOptions,
}

/// Parses the arguments; `level` is the log level from the environment.
pub(crate) fn parse(
    arguments: impl Iterator<Item = OsString>,
    level: Option<String>,
) -> Result<(Command, Level), UsageError> {
    let mut parser = Parser::from_args(arguments);
    let (mut command, mut listen, mut roots, mut level) = (None, Vec::new(), Vec::new(), level);
    let (mut pressure, mut program, mut evidence) = (Vec::new(), Vec::new(), None);
    loop {
        // Everything after `--` belongs to the program, its options included.
        if let Some(rest) = parser.try_raw_args()
            && rest.peek().is_some_and(|word| word == "--")
        {
            program = rest.skip(1).collect();
            if program.is_empty() {
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
            Arg::Long("evidence") => {
                evidence = Some(parser.value()?.string()?.parse().map_err(UsageError::Evidence)?);
            }
            Arg::Long("root") => roots.push(parser.value()?.string()?),
            Arg::Long("log") => level = Some(parser.value()?.string()?),
            Arg::Value(name) if command.is_none() => command = Some(name.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    let roots = with_defaults(roots);
    let level = level.as_deref().map_or(Ok(Level::Info), level_of)?;
    let command = match command.as_deref() {
        Some("run") if listen.is_empty() => return Err(UsageError::NoAddress),
        Some("run") => {
            if pressure.iter().all(|rule: &PressureRule| rule.container.is_some()) {
                pressure.push(PressureRule { container: None, trigger: Some(PsiTrigger::DEFAULT) });
            }
            let evidence = evidence.unwrap_or_else(|| usual_evidence(&listen));
            Command::Run { listen, roots, pressure, command: program, evidence }
        }
        Some("check") if !listen.is_empty() || !pressure.is_empty() => return Err(UsageError::CheckOptions),
        Some("check") if evidence.is_some() || !program.is_empty() => return Err(UsageError::CheckOptions),
        Some("check") => Command::Check { roots },
        Some(other) => return Err(UsageError::Command(other.to_owned())),
        None => return Err(UsageError::NoCommand),
    };
    Ok((command, level))
}

/// The default roots if there is no other, and where a root begins with `+`.
fn with_defaults(roots: Vec<String>) -> Vec<String> {
    let adds = |root: &String| root.starts_with('+');
    let keep = roots.is_empty() || roots.iter().any(adds);
    let defaults = DEFAULT_ROOTS.iter().filter(|_| keep).map(|&root| root.to_owned());
    defaults.chain(roots.iter().map(|root| root.strip_prefix('+').unwrap_or(root).to_owned())).collect()
}

/// An agent that listens on vsock is in a guest: what runs there is the tenant's, and process names
/// leave the guest only if its operator enables that.
fn usual_evidence(listen: &[Address]) -> EvidenceDetail {
    let in_guest = listen.iter().any(|address| matches!(address, Address::Vsock { .. }));
    if in_guest { EvidenceDetail::Counts } else { EvidenceDetail::Full }
}

/// The level of a log filter: the router's filters name targets too, which the agent ignores.
fn level_of(text: &str) -> Result<Level, UsageError> {
    let mut plain = text.split(',').map(str::trim).filter(|part| !part.contains('='));
    plain.next().map_or(Ok(Level::Info), |level| level.parse().map_err(UsageError::Level))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Command, Level), UsageError> {
        parse(line.split_whitespace().map(OsString::from), None)
    }

    #[test]
    fn parse_accepts_valid_arguments() {
        let roots = || DEFAULT_ROOTS.map(str::to_owned).to_vec();
        let listen = || vec!["unix:///a".parse::<Address>().unwrap()];
        let run = |pressure: &[&str], command: &[&str]| Command::Run {
            listen: listen(),
            roots: roots(),
            pressure: match pressure {
                [] => vec![PressureRule { container: None, trigger: Some(PsiTrigger::DEFAULT) }],
                rules => rules.iter().map(|rule| rule.parse().unwrap()).collect(),
            },
            command: command.iter().map(OsString::from).collect(),
            evidence: EvidenceDetail::Full,
        };
        for (line, expect) in [
            ("--help", Command::Help),
            ("run --help", Command::Help),
            ("--version", Command::Version),
            ("check", Command::Check { roots: roots() }),
            ("check --root=a --root b", Command::Check { roots: vec!["a".to_owned(), "b".to_owned()] }),
            (
                "check --root +a --root b",
                Command::Check { roots: [roots(), vec!["a".to_owned(), "b".to_owned()]].concat() },
            ),
            ("run --listen unix:///a", run(&[], &[])),
            ("run --listen unix:///a --pressure none", run(&["none"], &[])),
            ("run --listen unix:///a -- sh --help", run(&[], &["sh", "--help"])),
        ] {
            assert_eq!(parsed(line).unwrap().0, expect, "{line}");
        }
        assert_eq!(parsed("check --log coroner_sources=debug,warn").unwrap().1, Level::Warn);
        assert_eq!(parse(["check".into()].into_iter(), Some("debug".to_owned())).unwrap().1, Level::Debug);
    }

    #[test]
    fn evidence_has_no_names_in_a_guest_by_default() {
        let evidence = |line: &str| match parsed(line).unwrap().0 {
            Command::Run { evidence, .. } => evidence.name(),
            other => panic!("{other:?}"),
        };
        assert_eq!(evidence("run --listen unix:///a"), "full");
        assert_eq!(evidence("run --listen vsock://-1:1030"), "counts");
        assert_eq!(evidence("run --listen unix:///a --listen vsock://-1:1030"), "counts");
        assert_eq!(evidence("run --listen vsock://-1:1030 --evidence full"), "full");
        assert_eq!(evidence("run --listen unix:///a --evidence none"), "none");
    }

    #[test]
    fn parse_error_names_the_mistake() {
        for (line, expect) in [
            ("", "missing command"),
            ("walk", "unknown command `walk`"),
            ("run", "run requires --listen"),
            ("run --listen", "missing argument for option '--listen'"),
            ("run --listen tcp://1", "--listen: `tcp://1` is not unix:///path, vsock://CID:PORT or hvsock"),
            ("check --listen unix:///a", "check does not take --listen"),
            ("run --listen unix:///a --pressure much", "--pressure: `much` is not"),
            ("run --listen unix:///a --evidence all", "--evidence: `all` is not none, counts or full"),
            ("check --evidence full", "check does not take --listen"),
            ("run --listen unix:///a --", "missing program after --"),
            ("check -- sh", "check does not take --listen"),
            ("check extra", "unexpected argument \"extra\""),
            ("check --colour", "invalid option '--colour'"),
            ("check --log loud", "unknown log level `loud`"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.starts_with(expect), "{line}: {error}");
        }
    }
}
