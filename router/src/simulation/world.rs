//! One run: everything that can happen next, of which the seed draws one step after the other.

use std::sync::Arc;

use super::clock::Clock;
use super::disk::{Health, SimulatedDisk};
use super::fault::Sabotage;
use super::life::{LANE, Life, Surroundings};
use super::model::Model;
use super::policies;
use super::random::Random;
use super::scenario::{self, CONTAINERS};
use super::source::SimulatedSource;
use super::step::{KINDS, Step};
use super::violation::Violation;
use crate::intake::WorkerTask;
use crate::worker::{RuledSignal, WorkerOutput};
use coroner_core::ruling::Action;
use coroner_core::signal::Event;
use coroner_policy::{ActiveChain, ChainSnapshot};

/// Steps in which everything may fail.
const WILD: u64 = 260;
/// Steps after which a run that should come to its end is stuck. The longest take some hundreds.
const STUCK: u64 = 20_000;

/// One run in this many has policies: their instances take more time than everything else.
const WITH_POLICIES: u64 = 8;

/// What a run has seen, for the report and for the comparison of two runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) steps: u64,
    pub(super) deaths: u64,
    pub(super) operations: u64,
    /// A checksum over all steps.
    pub(super) sum: u64,
}

/// One run.
#[derive(Debug)]
pub(super) struct Run {
    random: Random,
    weights: [usize; KINDS],
    outside: Surroundings,
    sources: Vec<SimulatedSource>,
    model: Model,
    life: Life,
    generation: u64,
    has_policies: bool,
    /// A swap was not followed by a signal yet.
    swapped: bool,
    /// A TaskOOM that is kept back, for a fault.
    kept_back: Option<coroner_sinks::Task>,
    deaths_left: u64,
    /// A write may have failed.
    disk_failed: bool,
    pub(super) trace: Trace,
}

impl Run {
    pub(super) fn new(seed: u64, fault: Option<Sabotage>, dies_at: Option<u64>) -> Self {
        let mut random = Random::new(seed);
        let disk = SimulatedDisk::new(Random::new(random.next()), fault);
        let scripts = scenario::draw(&mut random);
        let has_policies = seed.is_multiple_of(WITH_POLICIES);
        let mut model = Model::new(&scripts, disk.clone(), has_policies);
        let mut sources: Vec<SimulatedSource> = scripts.into_iter().map(SimulatedSource::new).collect();
        let outside = Surroundings {
            disk,
            clock: Clock::default(),
            chain: ActiveChain::fixed(if has_policies { policies::snapshot(1).policies } else { Vec::new() }),
            journal: Arc::default(),
            fault,
        };
        let life = Life::start(&outside, Vec::new(), &mut sources, &mut model);
        let mut weights = [0; KINDS];
        for (kind, weight) in weights.iter_mut().enumerate() {
            // A run in which one kind is rare finds what a fair one does not.
            let is_wild = kind >= Step::Refuse.kind();
            *weight = if is_wild { random.below(3) } else { random.below(12) };
        }
        let deaths_left = random.below(3) as u64;
        let death = outside.disk.operations() + 1 + random.below(60) as u64;
        outside.disk.die_at(dies_at.or_else(|| (deaths_left > 0).then_some(death)));
        Self {
            random,
            weights,
            outside,
            sources,
            model,
            life,
            generation: 1,
            has_policies,
            swapped: false,
            kept_back: None,
            deaths_left,
            disk_failed: false,
            trace: Trace::default(),
        }
    }

    /// Prints every step, for a run of one seed.
    pub(super) fn verbose(mut self, is_verbose: bool) -> Self {
        self.model.is_verbose = is_verbose;
        self
    }

    /// Runs to the end: first everything may fail, then what is left must be done.
    pub(super) fn run(&mut self) -> Result<(), Violation> {
        self.check()?;
        while self.trace.steps < WILD {
            let steps = self.possible();
            let Some(step) = self.draw(&steps) else { break };
            self.step(step)?;
        }
        self.calm()?;
        if self.random.chance(30) {
            self.restart()?;
            self.calm()?;
        }
        Ok(())
    }

    /// Nothing fails any more, but for a disk that stays full.
    fn calm(&mut self) -> Result<(), Violation> {
        self.outside.disk.die_at(None);
        let stays_full = self.random.chance(15);
        self.outside.disk.set_health(if stays_full { Health::Full } else { Health::Well });
        self.disk_failed |= stays_full;
        let begin = self.trace.steps;
        while self.trace.steps < begin + STUCK {
            let mut steps = self.possible();
            steps.retain(|step| !step.is_wild());
            if let Some(at) = steps.len().checked_sub(1) {
                let step = steps[self.random.between(0, at)];
                self.step(step)?;
            } else if let Some(task) = self.kept_back.take() {
                self.life.to_lane.pass(task);
            } else if let Some(ms) = self.outside.clock.until_next().filter(|_| !self.blocks()) {
                self.outside.clock.advance(ms);
            } else {
                return self.check_end(stays_full);
            }
        }
        Err(Violation::new(6, "the router does not come to rest"))
    }

    fn check_end(&self, disk_is_full: bool) -> Result<(), Violation> {
        Violation::unless(!self.life.writer.is_due(), 4, || "a write does not end".to_owned())?;
        self.model.check_workers()?;
        self.model.check_end(self.life.late_kills.get())?;
        let left = self.sources.iter().find(|source| !source.is_done()).map(SimulatedSource::name);
        Violation::unless(left.is_none(), 5, || format!("{left:?} is not acknowledged"))?;
        let queued = self.life.sink.queued();
        Violation::unless(queued == 0, 6, || format!("{queued} events are left in the lane"))?;
        let counted = self.outside.journal.unjournaled.get();
        Violation::unless(self.model.unwritten == 0 || counted > 0, 4, || {
            "signals were processed without a record, and none is counted".to_owned()
        })?;
        // After a failed write, what is done is written with the next record only.
        if disk_is_full || self.disk_failed {
            return Ok(());
        }
        self.model.check_nothing_open(self.outside.disk.image())
    }

    /// A write to the full disk never ends: a fault.
    fn blocks(&self) -> bool {
        self.outside.fault == Some(Sabotage::FullDiskBlocks) && self.outside.disk.health() == Health::Full
    }

    /// Everything that can happen now.
    fn possible(&mut self) -> Vec<Step> {
        let blocks = self.blocks();
        let life = &mut self.life;
        let mut steps = Vec::with_capacity(32);
        let polls = life.tasks.iter().enumerate().filter(|(_, task)| task.is_woken());
        steps.extend(polls.map(|(at, _)| Step::Poll(at)));
        let hops = life.to_workers.iter().enumerate().filter(|(_, hop)| hop.is_due());
        steps.extend(hops.map(|(at, _)| Step::ToWorker(at)));
        let pending = life.receiver.pending();
        for (is_possible, step) in [
            (life.to_delivery.is_due(), Step::ToDelivery),
            (life.to_lane.is_due(), Step::ToLane),
            (life.writer.is_due() && !blocks, Step::Write),
            (pending > 0, Step::Accept),
            (pending > 0, Step::Refuse),
            (true, Step::ReceiverDies),
            (true, Step::Swap),
            (self.deaths_left > 0, Step::RouterDies),
            (true, Step::DiskChanges),
            (true, Step::Tick),
        ] {
            steps.extend(is_possible.then_some(step));
        }
        for (at, source) in self.sources.iter().enumerate() {
            for (is_possible, step) in [
                (source.can_send(), Step::Send(at)),
                (source.has_acks(), Step::Ack(at)),
                (source.can_report(), Step::Report(at)),
            ] {
                steps.extend(is_possible.then_some(step));
            }
        }
        steps
    }

    /// Draws by weight; with none that has a weight, one of those that bring the run forward.
    fn draw(&mut self, steps: &[Step]) -> Option<Step> {
        let total: usize = steps.iter().map(|step| self.weights[step.kind()]).sum();
        let is_moving = steps.iter().any(|step| !step.is_wild());
        if total == 0 || !is_moving {
            let moving: Vec<&Step> = steps.iter().filter(|step| !step.is_wild()).collect();
            let at = moving.len().checked_sub(1)?;
            return Some(*moving[self.random.between(0, at)]);
        }
        let mut left = self.random.below(total);
        steps.iter().copied().find(|step| {
            let weight = self.weights[step.kind()];
            let is_drawn = left < weight;
            left = left.wrapping_sub(weight);
            is_drawn
        })
    }

    fn step(&mut self, step: Step) -> Result<(), Violation> {
        self.trace.steps += 1;
        if self.model.is_verbose {
            println!("{} {step:?}, disk {:?}", self.trace.steps, self.outside.disk.health());
        }
        let kind = step.kind() as u64;
        self.trace.sum = (self.trace.sum ^ kind).wrapping_mul(0x0100_0000_01b3).rotate_left(7);
        let fault = self.outside.fault;
        match step {
            Step::Poll(at) => self.poll(at)?,
            Step::ToWorker(at) => self.pass_to_worker(at),
            Step::ToDelivery => self.pass_to_delivery()?,
            Step::ToLane => self.pass_to_lane(),
            Step::Write => self.life.writer.step(),
            Step::Send(at) => self.sources[at].send(&mut self.model, fault),
            Step::Ack(at) => self.sources[at].receive_ack(&mut self.model)?,
            Step::Report(at) => self.sources[at].report(),
            Step::Accept => self.life.receiver.accept(&mut self.random, &mut self.model, fault)?,
            Step::Refuse => self.life.receiver.refuse(&mut self.random),
            Step::ReceiverDies => {
                self.life.receiver.lose(&mut self.random, &mut self.model)?;
                self.model.died();
                self.life.receiver.restart();
            }
            Step::Swap => self.swap(),
            Step::RouterDies => self.restart()?,
            Step::DiskChanges => {
                let health = [Health::Well, Health::Fails, Health::Full][self.random.below(3)];
                self.disk_failed |= health != Health::Well;
                self.outside.disk.set_health(health);
            }
            Step::Tick if self.blocks() => {}
            Step::Tick => {
                let next = self.outside.clock.until_next().unwrap_or(1);
                let part = self.random.between(1, 100) as u64;
                self.outside.clock.advance((next * part).div_ceil(100));
            }
        }
        self.check()
    }

    /// What must hold after every step.
    fn check(&mut self) -> Result<(), Violation> {
        for image in self.outside.disk.take_images() {
            self.model.check_image(image)?;
        }
        if self.outside.disk.is_dead() {
            self.restart()?;
        }
        let queued = self.life.sink.queued();
        // Each death has the TaskOOM of every container repeated, on top of what the lane holds.
        let repeats = CONTAINERS * usize::try_from(self.model.deaths()).unwrap();
        Violation::unless(queued <= (LANE + repeats) as u64, 6, || {
            format!("{queued} events are in the lane, which holds {LANE} and {repeats} repeats")
        })?;
        self.trace.operations = self.outside.disk.operations();
        Ok(())
    }

    fn poll(&mut self, at: usize) -> Result<(), Violation> {
        let task = &mut self.life.tasks[at];
        if task.poll() {
            return Err(Violation::new(6, format!("task {} ended", task.name)));
        }
        let skipped = std::mem::take(&mut *self.life.skipped.lock().unwrap());
        skipped.iter().for_each(|id| self.model.skipped(id));
        Ok(())
    }

    fn pass_to_worker(&mut self, at: usize) {
        let hop = &mut self.life.to_workers[at];
        let Ok(task) = hop.from.try_recv() else { return };
        if let WorkerTask::Rule(named) = &task {
            self.model.sent_to_worker(&named.envelope.signal, self.generation);
            let first = std::mem::take(&mut self.swapped);
            if first && self.outside.fault == Some(Sabotage::SwapDropsSignal) {
                return;
            }
        }
        hop.pass(task);
    }

    fn pass_to_delivery(&mut self) -> Result<(), Violation> {
        let Ok(mut output) = self.life.to_delivery.from.try_recv() else { return Ok(()) };
        if let WorkerOutput::Ruled(ruled) = &mut output {
            self.spoil(ruled);
            self.model.ruled(ruled, self.generation)?;
        }
        self.life.to_delivery.pass(output);
        Ok(())
    }

    /// Faults of a ruled signal.
    fn spoil(&mut self, ruled: &mut RuledSignal) {
        match (self.outside.fault, &mut ruled.record.signal.event) {
            (Some(Sabotage::LateKillUnmarked), Event::OomKill(kill)) => kill.late = false,
            (Some(Sabotage::ExitDroppedAtPolicyFault), Event::Exited(_))
                if ruled.record.rulings.iter().any(|it| it.fault.is_some()) =>
            {
                ruled.record.actions.retain(|action| !matches!(action, Action::TaskExit(_)));
            }
            _ => {}
        }
    }

    fn pass_to_lane(&mut self) {
        let hop = &mut self.life.to_lane;
        let Ok(task) = hop.from.try_recv() else { return };
        let is =
            |wanted: &str| matches!(&task, coroner_sinks::Task::Publish(it) if it.event.topic() == wanted);
        match self.outside.fault {
            Some(Sabotage::QueueEntryLost) if self.random.chance(5) => {}
            Some(Sabotage::ExitBeforeKill) if is("/tasks/oom") && self.kept_back.is_none() => {
                self.kept_back = Some(task);
            }
            Some(Sabotage::ExitBeforeKill) if is("/tasks/exit") => {
                hop.pass(task);
                if hop.to.capacity() > 0
                    && let Some(kept_back) = self.kept_back.take()
                {
                    hop.pass(kept_back);
                }
            }
            _ => hop.pass(task),
        }
    }

    fn swap(&mut self) {
        self.generation += 1;
        self.swapped = true;
        let generation = self.generation;
        let snapshot = match self.has_policies {
            true => policies::snapshot(generation),
            false => ChainSnapshot { generation, policies: Vec::new() },
        };
        self.outside.chain.store(snapshot);
    }

    /// The router dies, and the next one starts on what is on the disk.
    fn restart(&mut self) -> Result<(), Violation> {
        self.life.receiver.lose(&mut self.random, &mut self.model)?;
        self.sources.iter_mut().for_each(SimulatedSource::disconnect);
        self.kept_back = None;
        self.trace.deaths += 1;
        self.deaths_left = self.deaths_left.saturating_sub(1);
        let image = self.outside.disk.reopen();
        let again = self.outside.disk.operations() + 1 + self.random.below(40) as u64;
        self.outside.disk.die_at((self.deaths_left > 0).then_some(again));
        self.life = Life::start(&self.outside, image, &mut self.sources, &mut self.model);
        self.check()
    }
}
