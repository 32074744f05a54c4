//! The model: what must hold after every step, by what sources, disk and receiver have seen.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::disk::{Image, SimulatedDisk};
use super::policies;
use super::scenario::Script;
use super::violation::Violation;
use crate::worker::RuledSignal;
use coroner_core::mode::Mode;
use coroner_core::ruling::{Opinion, TaskEvent};
use coroner_core::signal::{Event, Signal};
use coroner_journal::Recovered;

/// The boot of every simulated journal.
pub(super) const BOOT: &str = "simulated";

/// What is due for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// A TaskOOM.
    Kill { total: u64 },
    /// A TaskExit; of the container's init or of an exec.
    Exit { is_init: bool },
    /// The event itself.
    Forwarded,
    /// A ruling, without an event.
    Ruling,
}

/// One signal of the run.
#[derive(Debug)]
struct Fact {
    container: String,
    source: usize,
    seq: u64,
    due: Expected,
}

/// What happens while one router lives.
#[derive(Debug, Default)]
struct LifeFacts {
    /// Signals that its sources sent.
    sent: HashSet<String>,
    /// On the disk when it started.
    recovered: HashSet<String>,
    /// Of these, the ones that were ruled.
    recovered_rulings: HashSet<String>,
    /// Containers with a ruled exit.
    ended: HashSet<String>,
    /// Signals without a ruling yet, by container.
    at_worker: HashMap<String, VecDeque<String>>,
    /// The generation of policies when each was sent to its worker.
    generation: HashMap<String, u64>,
    /// Kills that were ruled after the exit of their container.
    late: Vec<String>,
}

/// Knows what was acknowledged, ruled and accepted.
#[derive(Debug)]
pub(super) struct Model {
    facts: BTreeMap<String, Fact>,
    disk: SimulatedDisk,
    life: LifeFacts,
    has_policies: bool,
    acknowledged: BTreeSet<String>,
    ruled: HashSet<String>,
    /// Kills that an earlier router ruled after the exit of their container.
    late_before: HashSet<String>,
    skipped: HashSet<String>,
    /// Each event that the receiver accepted, by signal and topic.
    accepted: HashMap<(String, String), TaskEvent>,
    /// Those since the last death of router or receiver.
    since_death: HashMap<(String, String), u64>,
    /// Starts of routers, and deaths of receivers.
    deaths: u64,
    /// The number of signals that this run has seen processed without a record.
    pub(super) unwritten: u64,
    /// Whether to print what happens: for a run of one seed.
    pub(super) is_verbose: bool,
}

impl Model {
    pub(super) fn new(scripts: &[Script], disk: SimulatedDisk, has_policies: bool) -> Self {
        let mut facts = BTreeMap::new();
        for (source, script) in scripts.iter().enumerate() {
            for (at, signal) in script.signals.iter().enumerate() {
                let container = signal.target.container_id.to_string();
                let due = due(signal, script.origin.mode);
                facts.insert(signal.id.clone(), Fact { container, source, seq: at as u64 + 1, due });
            }
        }
        Self {
            facts,
            disk,
            life: LifeFacts::default(),
            has_policies,
            acknowledged: BTreeSet::new(),
            ruled: HashSet::new(),
            late_before: HashSet::new(),
            skipped: HashSet::new(),
            accepted: HashMap::new(),
            since_death: HashMap::new(),
            deaths: 0,
            unwritten: 0,
            is_verbose: false,
        }
    }

    fn print(&self, text: impl FnOnce() -> String) {
        if self.is_verbose {
            println!("    {}", text());
        }
    }

    /// A router starts with this.
    pub(super) fn started(&mut self, recovered: &Recovered) {
        self.print(|| {
            let unruled = recovered.unruled.iter().map(|it| it.signal.id.as_str());
            let undelivered = recovered.undelivered.iter().map(|it| &*it.ruled.id);
            let (unruled, undelivered) = (unruled.collect::<Vec<_>>(), undelivered.collect::<Vec<_>>());
            format!("router starts: not ruled {unruled:?}, not delivered {undelivered:?}")
        });
        let earlier = std::mem::take(&mut self.life);
        self.late_before.extend(earlier.late);
        self.life.recovered = open(recovered).collect();
        self.life.recovered_rulings =
            recovered.undelivered.iter().map(|it| it.ruled.id.clone().into_owned()).collect();
        let ended = recovered.cases.iter().filter(|(_, _, case)| case.exit.is_some());
        self.life.ended = ended.map(|(container, ..)| container.to_string()).collect();
        self.died();
    }

    /// The router or the receiver has died: each event may be repeated once.
    pub(super) fn died(&mut self) {
        self.since_death.clear();
        self.deaths += 1;
    }

    /// How often repeats may be in the lane at once.
    pub(super) fn deaths(&self) -> u64 {
        self.deaths - 1
    }

    pub(super) fn sent(&mut self, id: &str) {
        self.print(|| format!("{id} is sent"));
        self.life.sent.insert(id.to_owned());
    }

    /// A source has received the acknowledgement of its signal.
    pub(super) fn acknowledged(&mut self, id: &str) -> Result<(), Violation> {
        self.print(|| format!("{id} is acknowledged"));
        // A write that failed may have left its bytes: the next router finds them.
        let is_on_disk = self.disk.was_written(id) || self.life.recovered.contains(id);
        let holds = is_on_disk || self.is_finished(id);
        Violation::unless(holds, 4, || format!("{id} is acknowledged, neither written nor delivered"))?;
        self.unwritten += u64::from(!self.disk.was_written(id));
        self.acknowledged.insert(id.to_owned());
        Ok(())
    }

    /// A router that starts from this image finds what was acknowledged and is not delivered, and
    /// nothing that was never sent.
    pub(super) fn check_image(&self, image: Image) -> Result<(), Violation> {
        let recovered = coroner_journal::recovered(image, BOOT);
        let open: BTreeSet<String> = open(&recovered).collect();
        let lost = self.acknowledged.iter().find(|id| !self.is_finished(id) && !open.contains(*id));
        if let Some(id) = lost {
            return Err(Violation::new(4, format!("{id} is acknowledged, and a crash now would lose it")));
        }
        let unknown = open.iter().find(|id| !self.facts.contains_key(*id));
        unknown
            .map_or(Ok(()), |id| Err(Violation::new(4, format!("recovery finds {id}, which was never sent"))))
    }

    /// A signal goes to its worker, while this generation of policies is active.
    pub(super) fn sent_to_worker(&mut self, signal: &Signal, generation: u64) {
        let container = signal.target.container_id.to_string();
        self.life.at_worker.entry(container).or_default().push_back(signal.id.clone());
        self.life.generation.insert(signal.id.clone(), generation);
    }

    /// A worker skipped a duplicate.
    pub(super) fn skipped(&mut self, id: &str) {
        self.print(|| format!("{id} is skipped as a duplicate"));
        for waiting in self.life.at_worker.values_mut() {
            if let Some(at) = waiting.iter().rposition(|it| it == id) {
                waiting.remove(at);
            }
        }
        self.skipped.insert(id.to_owned());
    }

    /// A ruled signal between worker and delivery, while this generation of policies is active.
    pub(super) fn ruled(&mut self, ruled: &RuledSignal, active: u64) -> Result<(), Violation> {
        let record = &ruled.record;
        let (id, container) = (&record.signal.id, record.signal.target.container_id.to_string());
        self.print(|| format!("{id} is ruled: {:?}", record.actions));
        let first = self.life.at_worker.get_mut(&container).and_then(VecDeque::pop_front);
        Violation::unless(first.as_ref() == Some(id), 8, || {
            format!("{id} is ruled, and {first:?} of its container was before it")
        })?;
        let since = self.life.generation.get(id).copied().unwrap_or_default();
        let generation = record.generation;
        Violation::unless((since..=active).contains(&generation), 8, || {
            format!("{id} is ruled by generation {generation}, not one of {since} to {active}")
        })?;
        self.check_policies(&record.signal, &record.rulings, generation)?;
        match &record.signal.event {
            Event::OomKill(kill) => {
                let expected = self.life.ended.contains(&container);
                self.life.late.extend(expected.then(|| id.clone()));
                Violation::unless(kill.late == expected, 2, || {
                    format!("{id} is marked late: {}, but should be: {expected}", kill.late)
                })?;
            }
            Event::Exited(_) if record.signal.target.exec_id.is_none() => {
                self.life.ended.insert(container);
            }
            Event::Forwarded(event) if event.is_creation() => {
                self.life.ended.remove(&container);
            }
            _ => {}
        }
        self.ruled.insert(id.clone());
        Ok(())
    }

    /// A ruling is made by all policies of one generation.
    fn check_policies(
        &self,
        signal: &Signal,
        opinions: &[Opinion],
        generation: u64,
    ) -> Result<(), Violation> {
        // The component that all of them are made of rules on exits only.
        let is_wanted = self.has_policies && matches!(signal.event, Event::Exited(_));
        let expected = if is_wanted { policies::names(generation) } else { Vec::new() };
        let by: Vec<&str> = opinions.iter().map(|opinion| opinion.policy.as_str()).collect();
        Violation::unless(by == expected, 8, || {
            format!("{} is ruled by {by:?}, and generation {generation} is {expected:?}", signal.id)
        })
    }

    /// Whether a repeat is the same event. With policies, an exit with an unwritten ruling may
    /// be ruled again, by those of another generation.
    fn is_same(&self, first: &TaskEvent, event: &TaskEvent) -> bool {
        match (first, event) {
            (TaskEvent::Exit { status, .. }, TaskEvent::Exit { .. }) if self.has_policies => {
                let mut event = event.clone();
                if let TaskEvent::Exit { status: repeated, .. } = &mut event {
                    *repeated = *status;
                }
                *first == event
            }
            _ => first == event,
        }
    }

    /// The receiver has accepted an event.
    pub(super) fn accepted(&mut self, id: &str, event: &TaskEvent) -> Result<(), Violation> {
        self.print(|| format!("{} of {id} is accepted", event.topic()));
        let key = (id.to_owned(), event.topic().to_owned());
        // A repeat of a TaskOOM that is in flight at the next death is sent again, and repeated. The
        // first start counts as a death.
        let most = if *event == TaskEvent::Oom { self.deaths } else { 1 };
        let times = self.since_death.entry(key.clone()).or_default();
        *times += 1;
        Violation::unless(*times <= most, 5, || {
            format!("{} of {id} is accepted again, and neither side died between", event.topic())
        })?;
        let Some(fact) = self.facts.get(id) else {
            return Err(Violation::new(5, format!("{id} was never sent")));
        };
        match self.accepted.get(&key) {
            Some(first) => Violation::unless(self.is_same(first, event), 5, || {
                format!("{id} is repeated as {event:?}, and was {first:?}")
            }),
            None => {
                if fact.due == (Expected::Exit { is_init: true }) {
                    self.check_kills_before(id, fact)?;
                }
                self.accepted.insert(key, event.clone());
                Ok(())
            }
        }
    }

    /// Kills that the router knew precede the exit.
    fn check_kills_before(&self, exit: &str, fact: &Fact) -> Result<(), Violation> {
        let resumed = self.life.recovered.contains(exit);
        for (id, kill) in &self.facts {
            let is_before = (kill.source, &kill.container) == (fact.source, &fact.container)
                && kill.seq < fact.seq
                && matches!(kill.due, Expected::Kill { .. });
            // A kill that was not written died with its router: the source sends it again, and it
            // is late. So did the order, where only the exit's ruling could be written: the kill is
            // ruled anew.
            let rulings = &self.life.recovered_rulings;
            let has_order = rulings.contains(id) || !rulings.contains(exit);
            let was_late = self.late_before.contains(id);
            let is_known = !resumed || self.life.recovered.contains(id) && has_order && !was_late;
            if is_before && is_known && !self.is_published(id) {
                return Err(Violation::new(2, format!("{exit} is published before {id}")));
            }
        }
        Ok(())
    }

    /// Every signal that went to a worker has a ruling.
    pub(super) fn check_workers(&self) -> Result<(), Violation> {
        let waiting = self.life.at_worker.values().flatten().next();
        Violation::unless(waiting.is_none(), 8, || format!("{waiting:?} has no ruling"))
    }

    /// Everything that is due was done.
    pub(super) fn check_end(&self, late_kills: u64) -> Result<(), Violation> {
        for (id, fact) in &self.facts {
            let invariant = match fact.due {
                Expected::Exit { .. } => 1,
                Expected::Kill { .. } => 2,
                Expected::Forwarded | Expected::Ruling => 6,
            };
            let done = if matches!(fact.due, Expected::Ruling) {
                self.is_finished(id)
            } else {
                self.is_published(id)
            };
            Violation::unless(done, invariant, || format!("{id} is never published or ruled"))?;
        }
        let late = self.life.late.len() as u64;
        Violation::unless(late == late_kills, 2, || format!("{late_kills} late kills counted, not {late}"))
    }

    /// Nothing is in flight in this journal.
    pub(super) fn check_nothing_open(&self, image: Image) -> Result<(), Violation> {
        let left: Vec<String> = open(&coroner_journal::recovered(image, BOOT)).collect();
        Violation::unless(left.is_empty(), 5, || format!("{left:?} would be repeated although delivered"))
    }

    fn is_finished(&self, id: &str) -> bool {
        let due = self.facts.get(id).map(|fact| fact.due);
        matches!(due, Some(Expected::Ruling)) && self.ruled.contains(id)
            || self.skipped.contains(id)
            || self.is_accepted(id)
    }

    /// Published, under its own id or as the same kill under another.
    fn is_published(&self, id: &str) -> bool {
        let Some(fact) = self.facts.get(id) else { return false };
        let is_same = |other: &&Fact| other.container == fact.container && other.due == fact.due;
        let same_kill = || {
            matches!(fact.due, Expected::Kill { .. })
                && self.facts.iter().any(|(id, other)| is_same(&other) && self.is_accepted(id))
        };
        self.is_accepted(id) || same_kill()
    }

    fn is_accepted(&self, id: &str) -> bool {
        let topic = match self.facts.get(id).map(|fact| fact.due) {
            Some(Expected::Kill { .. }) => "/tasks/oom",
            Some(Expected::Exit { .. }) => "/tasks/exit",
            Some(Expected::Forwarded) => return self.accepted.keys().any(|(signal, _)| signal == id),
            Some(Expected::Ruling) | None => return false,
        };
        self.accepted.contains_key(&(id.to_owned(), topic.to_owned()))
    }
}

fn due(signal: &Signal, mode: Mode) -> Expected {
    match &signal.event {
        Event::OomKill(kill) => Expected::Kill { total: kill.total.unwrap_or_default() },
        Event::Exited(_) if mode != Mode::Beside => {
            Expected::Exit { is_init: signal.target.exec_id.is_none() }
        }
        Event::Forwarded(_) => Expected::Forwarded,
        _ => Expected::Ruling,
    }
}

/// Ids of the signals that a router would resume.
fn open(recovered: &Recovered) -> impl Iterator<Item = String> {
    let unruled = recovered.unruled.iter().map(|it| it.signal.id.clone());
    unruled.chain(recovered.undelivered.iter().map(|it| it.ruled.id.clone().into_owned()))
}
