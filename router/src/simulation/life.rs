//! One life of the router: its parts as they are assembled in `assembly`, with the journal's thread, the
//! workers' threads and every channel between two parts in the hands of the scheduler.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};

use super::clock::Clock;
use super::disk::{Image, SimulatedDisk};
use super::fault::Sabotage;
use super::model::{BOOT, Model};
use super::policies;
use super::receiver::Receiver;
use super::source::SimulatedSource;
use super::tasks::PolledTask;
use crate::assembly::recovery;
use crate::counts::{JournalCounts, SinkCounts};
use crate::delivery::{Delivery, LifecycleLane};
use crate::intake::{Intake, IntakeRecovery, WorkerTask, shard};
use crate::worker::{RecoveredCase, Worker, WorkerOutput};
use coroner_containerd::Identities;
use coroner_containerd::holds::Holds;
use coroner_journal::{Journal, JournalDisk, JournalSizes, Recovered, Thread};
use coroner_policy::ActiveChain;
use coroner_sinks::{Fanout, LifecycleAccounting, Place, Records};
use coroner_sources::envelope::Envelope;
use coroner_sources::ownership::{Ownership, Registered};
use coroner_sources::shim::UnmanagedPods;

/// Small, so that back-pressure reaches the sources in short runs.
const STAGE: usize = 3;
const WORKERS: usize = 2;
/// Actions that the lane holds.
pub(super) const LANE: usize = 3;
/// Small, so that segments end in short runs.
const SIZES: JournalSizes = JournalSizes { whole: 1 << 20, segment: 6000 };

/// What outlives a router.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) disk: SimulatedDisk,
    pub(super) clock: Clock,
    pub(super) chain: ActiveChain,
    pub(super) journal: Arc<JournalCounts>,
    pub(super) fault: Option<Sabotage>,
}

/// A channel between two parts: messages pass when the scheduler draws it.
#[derive(Debug)]
pub(super) struct Hop<T> {
    pub(super) from: mpsc::Receiver<T>,
    pub(super) to: mpsc::Sender<T>,
}

impl<T> Hop<T> {
    /// The hop, its input, and its output.
    fn new() -> (mpsc::Sender<T>, Self, mpsc::Receiver<T>) {
        let (input, from) = mpsc::channel(STAGE);
        let (to, output) = mpsc::channel(STAGE);
        (input, Self { from, to }, output)
    }

    pub(super) fn is_due(&self) -> bool {
        !self.from.is_empty() && self.to.capacity() > 0
    }

    pub(super) fn pass(&self, message: T) {
        assert!(self.to.try_send(message).is_ok(), "the task behind a channel has ended");
    }
}

/// Ids of the duplicates that the workers skipped.
pub(super) type Skipped = Arc<Mutex<VecDeque<String>>>;

/// The parts of a router.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) tasks: Vec<PolledTask>,
    pub(super) writer: Thread<SimulatedDisk>,
    pub(super) to_workers: Vec<Hop<WorkerTask>>,
    pub(super) to_delivery: Hop<WorkerOutput>,
    pub(super) to_lane: Hop<coroner_sinks::Task>,
    pub(super) skipped: Skipped,
    pub(super) receiver: Receiver,
    pub(super) sink: Arc<SinkCounts>,
    pub(super) late_kills: Arc<crate::counts::Count>,
    /// Turns true when the lane must end; kept so that it does not.
    _over: watch::Sender<bool>,
}

impl Life {
    /// Starts a router on what its disk has.
    pub(super) fn start(
        outside: &Surroundings,
        image: Image,
        sources: &mut [SimulatedSource],
        model: &mut Model,
    ) -> Self {
        let from = JournalDisk { disk: outside.disk.clone(), files: image, boot: BOOT.to_owned() };
        let timer = outside.clock.timer();
        let (journal, writer, mut recovered) =
            coroner_journal::open_on(from, SIZES, timer, Arc::clone(&outside.journal));
        model.started(&recovered);
        if outside.fault == Some(Sabotage::IdsForgottenAtRecovery) {
            recovered.ids.clear();
        }
        let (envelopes, from_sources) = mpsc::channel(STAGE);
        for source in sources {
            let cursor = recovered.cursors.get(source.name());
            source.connect(envelopes.clone(), journal.clone(), cursor);
        }
        let (outputs, to_delivery, from_workers) = Hop::new();
        let (lane, to_lane, actions) = Hop::new();
        let (workers, skipped) = workers(outside, std::mem::take(&mut recovered.cases), &outputs);
        let (over, give_up) = watch::channel(false);
        let capacity = if outside.fault == Some(Sabotage::QueueUnbounded) { usize::MAX } else { LANE };
        let (receiver, in_process) = Receiver::open(capacity);
        let sink = Arc::<SinkCounts>::default();
        let accounting = LifecycleAccounting {
            sink: "containerd".to_owned(),
            records: Records::default(),
            counts: Arc::clone(&sink),
        };
        let holds = Holds::default();
        let place = Place::InProcess(in_process, std::mem::take(&mut recovered.published));
        let publisher = coroner_sinks::Lifecycle { place, accounting, holds: holds.clone(), give_up };
        let delivery = delivery(from_workers, journal.clone(), &mut recovered, lane, holds);
        let late_kills = Arc::clone(&delivery.late_kills);
        let (inputs, to_workers, mut tasks) = workers;
        tasks.push(PolledTask::new("intake", intake(from_sources, inputs, journal, recovered)));
        tasks.push(PolledTask::new("delivery", delivery.run()));
        tasks.push(PolledTask::new("lane", async move {
            publisher.run(actions).await;
        }));
        Self {
            tasks,
            writer,
            to_workers,
            to_delivery,
            to_lane,
            skipped,
            receiver,
            sink,
            late_kills,
            _over: over,
        }
    }
}

fn delivery(
    outputs: mpsc::Receiver<WorkerOutput>,
    journal: Journal,
    recovered: &mut Recovered,
    lane: mpsc::Sender<coroner_sinks::Task>,
    holds: Holds,
) -> Delivery {
    let lifecycle = LifecycleLane {
        sink: "containerd".to_owned(),
        namespace: "k8s.io".to_owned(),
        is_oom_file: false,
        lane,
    };
    Delivery {
        outputs,
        fanout: Fanout::default(),
        journal: Some(journal),
        resumed: std::mem::take(&mut recovered.undelivered),
        unruled: recovery::unruled(&recovered.unruled),
        lifecycle: Some(lifecycle),
        holds,
        late_kills: Arc::default(),
    }
}

fn intake(
    from_sources: mpsc::Receiver<Envelope>,
    workers: Vec<mpsc::Sender<WorkerTask>>,
    journal: Journal,
    recovered: Recovered,
) -> impl Future<Output = ()> {
    let resumed = recovery::envelopes(recovered.unruled, Some(&journal));
    let recovery = IntakeRecovery { resumed, seen: recovered.ids, journal: Some(journal) };
    let ownership = Ownership::new(Registered::default());
    let context = (Identities::new(None), UnmanagedPods::of(&[]));
    Intake::new(from_sources, ownership, context, workers, recovery).run()
}

type Workers = (Vec<mpsc::Sender<WorkerTask>>, Vec<Hop<WorkerTask>>, Vec<PolledTask>);

/// The workers as tasks; a worker's thread makes the same steps.
fn workers(
    outside: &Surroundings,
    cases: Vec<RecoveredCase>,
    outputs: &mpsc::Sender<WorkerOutput>,
) -> (Workers, Skipped) {
    let skipped = Skipped::default();
    let mut of_worker: Vec<Vec<RecoveredCase>> = vec![Vec::new(); WORKERS];
    for case in cases {
        of_worker[shard(&case.0, WORKERS)].push(case);
    }
    let (mut inputs, mut hops, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
    for (at, cases) in of_worker.into_iter().enumerate() {
        let (input, hop, mut output) = Hop::new();
        let mut worker = Worker::new(policies::host(), outside.chain.clone(), cases);
        let (outputs, skipped) = (outputs.clone(), Arc::clone(&skipped));
        let run = async move {
            while let Some(task) = output.recv().await {
                let Some(output) = worker.step(task) else { continue };
                if let WorkerOutput::Skipped { id, .. } = &output {
                    skipped.lock().unwrap().push_back(id.clone());
                }
                if outputs.send(output).await.is_err() {
                    return;
                }
            }
        };
        inputs.push(input);
        hops.push(hop);
        tasks.push(PolledTask::new(format!("worker {at}"), run));
    }
    ((inputs, hops, tasks), skipped)
}
