//! The steps that the scheduler draws.

/// What can happen next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Poll(usize),
    ToWorker(usize),
    ToDelivery,
    ToLane,
    Write,
    Send(usize),
    Ack(usize),
    Report(usize),
    Accept,
    Refuse,
    ReceiverDies,
    Swap,
    RouterDies,
    DiskChanges,
    Tick,
}

/// The number of kinds of steps, for the weights.
pub(super) const KINDS: usize = 15;

impl Step {
    pub(super) fn kind(self) -> usize {
        match self {
            Self::Poll(_) => 0,
            Self::ToWorker(_) => 1,
            Self::ToDelivery => 2,
            Self::ToLane => 3,
            Self::Write => 4,
            Self::Send(_) => 5,
            Self::Ack(_) => 6,
            Self::Report(_) => 7,
            Self::Accept => 8,
            Self::Refuse => 9,
            Self::ReceiverDies => 10,
            Self::Swap => 11,
            Self::RouterDies => 12,
            Self::DiskChanges => 13,
            Self::Tick => 14,
        }
    }

    /// Whether it breaks something, or only lets time pass: never drawn for want of others.
    pub(super) fn is_wild(self) -> bool {
        self.kind() >= Self::Refuse.kind()
    }
}
