//! The simulated containerd: it accepts events, refuses them, stalls, and dies with or without
//! having accepted what was in flight.

use tokio::sync::{mpsc, watch};

use super::fault::Sabotage;
use super::model::Model;
use super::random::Random;
use super::violation::Violation;
use coroner_sinks::{Forward, InProcess};

/// Events in flight, at most: more than the lane sends at once.
const IN_FLIGHT: usize = 128;

/// containerd's end of the connection to one router.
#[derive(Debug)]
pub(super) struct Receiver {
    events: mpsc::Receiver<Forward>,
    pending: Vec<Forward>,
    starts: watch::Sender<u64>,
}

impl Receiver {
    /// Both ends of a connection.
    pub(super) fn open(capacity: usize) -> (Self, InProcess) {
        let (sender, events) = mpsc::channel(IN_FLIGHT);
        let (starts, started) = watch::channel(1);
        let receiver = Self { events, pending: Vec::new(), starts };
        (receiver, InProcess { events: sender, starts: started, capacity })
    }

    /// Events that wait for an answer.
    pub(super) fn pending(&mut self) -> usize {
        while let Ok(forward) = self.events.try_recv() {
            self.pending.push(forward);
        }
        self.pending.len()
    }

    /// Accepts one event.
    pub(super) fn accept(
        &mut self,
        random: &mut Random,
        model: &mut Model,
        fault: Option<Sabotage>,
    ) -> Result<(), Violation> {
        let forward = self.pending.remove(random.below(self.pending.len()));
        let times = if fault == Some(Sabotage::DeliveredTwice) && random.chance(10) { 2 } else { 1 };
        for _ in 0..times {
            model.accepted(&forward.signal, &forward.event)?;
        }
        forward.accepted.send(true).unwrap_or(());
        Ok(())
    }

    /// Refuses one event for now.
    pub(super) fn refuse(&mut self, random: &mut Random) {
        let forward = self.pending.remove(random.below(self.pending.len()));
        forward.accepted.send(false).unwrap_or(());
    }

    /// One of both sides dies: what is in flight is accepted without an answer, or lost.
    pub(super) fn lose(&mut self, random: &mut Random, model: &mut Model) -> Result<(), Violation> {
        self.pending();
        for forward in self.pending.drain(..) {
            if random.chance(50) {
                model.accepted(&forward.signal, &forward.event)?;
            }
        }
        Ok(())
    }

    /// The receiver is there again.
    pub(super) fn restart(&mut self) {
        self.starts.send_modify(|starts| *starts += 1);
    }
}
