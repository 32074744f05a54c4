//! What readers receive of the state: signals above a cursor, pages, and one container.

use coroner_proto::agent::{self, Exited};
use protobuf::{Message, MessageField};

use crate::state::State;
use crate::state::container::Slot;

/// Containers in one page: decoded, each takes some 300 bytes while the answer is built.
const PAGE_SIZE: usize = 64;

/// The signals above a cursor.
#[derive(Debug, Default)]
pub(crate) struct SignalBatch {
    /// Wire encoding: decoded, each takes some 400 bytes.
    pub(crate) signals: Vec<Vec<u8>>,
    pub(crate) lost: u64,
    pub(crate) pressure_lost: u64,
}

/// One page of a snapshot.
#[derive(Debug)]
pub(crate) struct SnapshotPage {
    pub(crate) containers: Vec<agent::Container>,
    pub(crate) as_of_seq: u64,
    pub(crate) more: bool,
}

/// The state of one container.
#[derive(Debug, Default)]
pub(crate) struct ContainerSummary {
    pub(crate) seq: u64,
    pub(crate) kills_total: Option<u64>,
    pub(crate) exit: Option<Exited>,
}

impl State {
    /// The signals above `after` by rising seq, at most `most` and `bytes`, and how many above it
    /// were dropped.
    pub(crate) fn next(&self, after: u64, most: usize, bytes: usize) -> SignalBatch {
        let (lost, pressure_lost) = (self.dropped.after(after), self.dropped_pressure.after(after));
        let mut batch = SignalBatch { signals: Vec::new(), lost, pressure_lost };
        let Some(first) = after.checked_add(1) else { return SignalBatch::default() };
        let slots =
            self.index.range(first..).filter_map(|(_, (id, slot))| self.containers.get(id)?.slot(slot));
        let (mut slots, mut size) = (slots.peekable(), 0);
        let mut pressure = self.pressure.iter().skip_while(|signal| signal.seq() < first).peekable();
        loop {
            let pressure_first = match (slots.peek(), pressure.peek()) {
                (None, None) => break,
                (Some(slot), Some(pressure)) => pressure.seq() < slot.seq(),
                (slot, _) => slot.is_none(),
            };
            let Some(signal) = (if pressure_first { pressure.next() } else { slots.next() }) else { break };
            size += signal.size();
            // The first is always included: it is far smaller than an answer, and without this an
            // oversized one would block all that follow.
            if batch.signals.len() >= most.max(1) || size > bytes && !batch.signals.is_empty() {
                break;
            }
            batch.signals.push(signal.bytes().to_vec());
        }
        batch
    }

    /// The first kill above `after` and its container, including retained kills.
    pub(crate) fn next_kill(&self, after: u64) -> Option<(u64, String)> {
        let above = self.index.range(after.checked_add(1)?..);
        let known =
            above.filter(|(_, (_, slot))| *slot == Slot::Kill).map(|(seq, (id, _))| (*seq, id)).next();
        let (seq, id) = known.into_iter().chain(self.kata_cursors.next_retained(after)).min()?;
        Some((seq, id.to_string()))
    }

    /// The containers after `id`, as many as fit.
    pub(crate) fn page(&self, id: &str, bytes: usize) -> SnapshotPage {
        let mut page = SnapshotPage { containers: Vec::new(), as_of_seq: self.seq, more: false };
        let mut size = 0;
        let after = (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded);
        for (id, container) in self.containers.range::<str, _>(after) {
            let container = agent::Container {
                id: id.to_string(),
                cgroup: container.cgroup.to_string(),
                init_pid: container.init_pid,
                kills_total: container.kills_total,
                exit: MessageField::from_option(container.exit()),
                limit_bytes: container.limit_bytes,
                kills_before: container.kills_before,
                ..agent::Container::default()
            };
            // Usage is added when the page is sent: a tag and at most ten bytes.
            size += encoded_size(&container) + 11;
            if page.containers.len() == PAGE_SIZE || size > bytes && !page.containers.is_empty() {
                page.more = true;
                break;
            }
            page.containers.push(container);
        }
        page
    }

    /// The state of one container; empty if it is unknown.
    pub(crate) fn summary(&self, id: &str) -> ContainerSummary {
        self.containers.get(id).map_or_else(ContainerSummary::default, |container| ContainerSummary {
            seq: container.highest(),
            kills_total: container.kills_total,
            exit: container.exit(),
        })
    }
}

/// Bytes of one element of a repeated field: tag, length and message.
fn encoded_size(message: &impl Message) -> usize {
    usize::try_from(message.compute_size()).unwrap_or(usize::MAX / 2).saturating_add(6)
}
