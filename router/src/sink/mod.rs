//! Places actions and records go, one file each; `jsonl` is the smallest and the one to read first.

pub mod containerd;
pub mod jsonl;

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::audit::Record;
use crate::counts::SinkCounts;
use crate::tap::Tap;

/// Lines a record lane holds. A disk that stalls for seconds on a busy node is ridden out; what
/// comes after is dropped and counted, because a record must never delay an exit.
pub const LINES: usize = 8192;

/// Hands audit records to every sink that takes them. Never waits.
#[derive(Clone, Debug, Default)]
pub struct Records {
    lanes: Vec<Lane>,
    tap: Tap,
}

#[derive(Clone, Debug)]
struct Lane {
    sink: String,
    lines: mpsc::Sender<Arc<str>>,
    counts: Arc<SinkCounts>,
}

impl Records {
    /// Adds a sink's lane and gives its end.
    pub fn add(&mut self, sink: &str, counts: Arc<SinkCounts>) -> mpsc::Receiver<Arc<str>> {
        let (lines, end) = mpsc::channel(LINES);
        self.lanes.push(Lane { sink: sink.to_owned(), lines, counts });
        end
    }

    /// Where the records of now are read along.
    pub fn tap(&self) -> Tap {
        self.tap.clone()
    }

    /// Tells every lane; a lane that is full drops the line and counts it.
    pub fn tell(&self, record: Record) {
        let tapped = self.tap.wants(&record);
        if self.lanes.is_empty() && tapped.is_none() {
            return;
        }
        let line: Arc<str> = record.to_line().into();
        if let Some(about) = tapped {
            self.tap.keep(about, &line);
        }
        for lane in &self.lanes {
            if lane.lines.try_send(Arc::clone(&line)).is_err() {
                lane.counts.dropped_full.one();
                let dropped = lane.counts.dropped_full.get();
                if dropped.is_power_of_two() {
                    tracing::warn!(sink = lane.sink, dropped, "audit records dropped, the sink is too slow");
                }
            }
        }
    }
}
