//! The case file: what the router knows of a container, so that policies need no memory.

use serde::{Deserialize, Serialize};

use crate::ruling::Action;
use crate::signal::{Event, Exited, KillRequest, Moment, OomKill, Pressure, Signal};

/// How many kill requests a case keeps. A pod that ignores SIGTERM is signalled for as long as it lives;
/// without this its case would grow with every one.
const REQUESTS: usize = 16;

/// What can be known about a container, and what a ruling on it can change, in its source's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// A kernel OOM kill counter is read.
    KillCount,
    /// The kernel's log of its victims is read.
    Victim,
    /// Exits carry status or signal.
    ExitStatus,
    /// Kill requests made through the runtime are seen.
    KillRequests,
    /// Pressure stall information is read.
    Pressure,
    /// Memory limit and usage are read.
    Memory,
    /// Pod, namespace, container name or image are known.
    Owner,
    /// Nobody else publishes TaskOOM.
    OomWritable,
    /// The router publishes TaskExit.
    ExitWritable,
    /// A status override is honoured.
    StatusWritable,
}

impl Known {
    /// Whether it says what a ruling can change.
    fn is_writable(self) -> bool {
        matches!(self, Self::OomWritable | Self::ExitWritable | Self::StatusWritable)
    }

    /// As the contracts name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillCount => "kill-count",
            Self::Victim => "victim",
            Self::ExitStatus => "exit-status",
            Self::KillRequests => "kill-requests",
            Self::Pressure => "pressure",
            Self::Memory => "memory",
            Self::Owner => "owner",
            Self::OomWritable => "oom-writable",
            Self::ExitWritable => "exit-writable",
            Self::StatusWritable => "status-writable",
        }
    }
}

/// What the router knows of one container from the signals before the one at hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Case {
    /// Sorted, each once.
    pub known: Vec<Known>,
    /// When the container started.
    pub started: Option<Moment>,
    /// Bytes.
    pub memory_limit: Option<u64>,
    /// Bytes, when last told.
    pub memory_last: Option<u64>,
    /// Kills seen; `None` where nothing counts them.
    pub kills: Option<u64>,
    /// The first kill seen.
    pub first_kill: Option<Moment>,
    /// The last kill seen.
    pub last_kill: Option<(Moment, OomKill)>,
    /// The last 16; `None` where they are not seen.
    pub requests: Option<Vec<(Moment, KillRequest)>>,
    /// The last pressure seen.
    pub last_pressure: Option<(Moment, Pressure)>,
    /// The init's exit.
    pub exit: Option<Exited>,
    /// A task-oom was ruled before.
    pub oom_sent: bool,
    /// A task-exit was ruled before.
    pub exit_sent: bool,
    /// What its shim said of it as it was created, sorted by key.
    pub attributes: Vec<(String, String)>,
}

impl Case {
    /// A case for a container nothing is known of but what its source can know.
    pub fn new(known: &[Known]) -> Self {
        let mut case = Self::default();
        case.know(known);
        case
    }

    /// Whether the source and mode of this container allow `what`.
    pub fn knows(&self, what: Known) -> bool {
        self.known.contains(&what)
    }

    /// Says what can be known, beside what others who speak of the container can know, and what a ruling can change now; an empty list of requests then
    /// means "none were made".
    pub fn know(&mut self, known: &[Known]) {
        self.known.retain(|it| !it.is_writable());
        self.known.extend_from_slice(known);
        self.known.sort_unstable();
        self.known.dedup();
        self.kills = self.knows(Known::KillCount).then(|| self.kills.unwrap_or(0));
        self.requests = self.knows(Known::KillRequests).then(|| self.requests.take().unwrap_or_default());
    }

    /// Adds what a signal says, and what was ruled on it, for the signals after it.
    pub fn learn(&mut self, signal: &Signal, actions: &[Action]) {
        match &signal.event {
            Event::OomKill(kill) => self.learn_kill(signal.at, kill),
            Event::Exited(exited) => {
                if signal.target.exec_id.is_none() && exited.is_init != Some(false) {
                    self.exit = Some(exited.clone());
                }
            }
            Event::Pressure(pressure) => self.last_pressure = Some((signal.at, *pressure)),
            // A signal to an exec, a probe that takes too long say, is none to the container.
            Event::KillRequest(_) if signal.target.exec_id.is_some() => {}
            Event::KillRequest(request) => {
                if let Some(requests) = &mut self.requests {
                    if requests.len() == REQUESTS {
                        requests.remove(0);
                    }
                    requests.push((signal.at, *request));
                }
            }
            // A container's creation, with what its shim says of it.
            Event::Forwarded(_) => self.describe(&signal.attributes),
            Event::GuestLost(_) | Event::Other(_) => {}
        }
        for action in actions {
            match action {
                Action::TaskOom => self.oom_sent = true,
                Action::TaskExit(_) => self.exit_sent |= signal.target.exec_id.is_none(),
                Action::Report(_) => {}
            }
        }
    }

    /// Adds what is said of the container.
    pub fn describe(&mut self, attributes: &[(String, String)]) {
        for (key, value) in attributes {
            match self.attributes.binary_search_by(|(known, _)| known.cmp(key)) {
                Ok(at) => self.attributes[at].1.clone_from(value),
                Err(at) => self.attributes.insert(at, (key.clone(), value.clone())),
            }
        }
    }

    /// The kernel's counter as last told, where one is read.
    pub fn kills_total(&self) -> Option<u64> {
        self.last_kill.as_ref().and_then(|(_, kill)| kill.total)
    }

    fn learn_kill(&mut self, at: Moment, kill: &OomKill) {
        if kill.limit_bytes.is_some() {
            self.memory_limit = kill.limit_bytes;
        }
        if kill.added == Some(0) {
            return;
        }
        if let (Some(kills), Some(added)) = (&mut self.kills, kill.added) {
            *kills = kills.saturating_add(added);
        }
        self.first_kill.get_or_insert(at);
        self.last_kill = Some((at, kill.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signal::Target;

    fn request() -> Signal {
        let target = Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: "c".to_owned().try_into().unwrap(),
            exec_id: None,
            owner: None,
        };
        let at = Moment { boot_ns: None, wall_ms: None, received_ms: 0 };
        let event = Event::KillRequest(KillRequest { signal: 15, all: false });
        Signal { id: "i".to_owned(), at, target, event, attributes: Vec::new() }
    }

    #[test]
    fn what_one_source_knows_stays_known_when_another_speaks_and_what_can_be_changed_is_the_speakers() {
        let mut case = Case::new(&[Known::KillRequests, Known::ExitWritable]);
        case.learn(&request(), &[]);
        case.know(&[Known::KillCount]);
        assert_eq!((case.requests.as_ref().map(Vec::len), case.kills), (Some(1), Some(0)));
        assert_eq!(case.known, [Known::KillCount, Known::KillRequests]);
        case.know(&[Known::KillRequests, Known::ExitWritable]);
        assert_eq!(case.known, [Known::KillCount, Known::KillRequests, Known::ExitWritable]);
        assert_eq!((case.requests.as_ref().map(Vec::len), case.kills), (Some(1), Some(0)));
    }
}
