//! Deliberate faults: each breaks one promise at a seam of the simulation, to prove that the
//! simulation finds it.

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// A signal is acknowledged before it is written.
    AcknowledgedBeforeWrite,
    /// An exit passes a TaskOOM of its container between delivery and the lane.
    ExitBeforeKill,
    /// An event is lost between delivery and the lane.
    QueueEntryLost,
    /// The first signal after a swap of the policies is lost.
    SwapDropsSignal,
    /// Recovery forgets which signals were accepted, so that one that is sent again is new.
    IdsForgottenAtRecovery,
    /// A torn write is reported as done.
    TornWriteAccepted,
    /// A kill after its container's exit is not marked.
    LateKillUnmarked,
    /// A write to a full disk never ends, and has no timeout.
    FullDiskBlocks,
    /// An event that was accepted is sent again.
    DeliveredTwice,
    /// The lane does not keep its bound.
    QueueUnbounded,
    /// The exit is dropped where a policy failed.
    ExitDroppedAtPolicyFault,
    /// A new segment begins without a signal in flight.
    SegmentForgetsDelivery,
}

impl Sabotage {
    pub(super) const ALL: [Self; 12] = [
        Self::AcknowledgedBeforeWrite,
        Self::ExitBeforeKill,
        Self::QueueEntryLost,
        Self::SwapDropsSignal,
        Self::IdsForgottenAtRecovery,
        Self::TornWriteAccepted,
        Self::LateKillUnmarked,
        Self::FullDiskBlocks,
        Self::DeliveredTwice,
        Self::QueueUnbounded,
        Self::ExitDroppedAtPolicyFault,
        Self::SegmentForgetsDelivery,
    ];

    /// The invariants of which one is violated by it.
    pub(super) fn violates(self) -> &'static [u8] {
        match self {
            Self::AcknowledgedBeforeWrite | Self::FullDiskBlocks | Self::SegmentForgetsDelivery => &[4],
            // A torn record may be that of a signal, of a ruling, or of a delivery.
            Self::TornWriteAccepted => &[2, 4, 5],
            Self::ExitBeforeKill | Self::LateKillUnmarked => &[2],
            // What is lost before the lane is missed at the end, as an exit, a kill or an event.
            Self::QueueEntryLost => &[1, 2, 6],
            Self::SwapDropsSignal => &[8],
            Self::IdsForgottenAtRecovery | Self::DeliveredTwice => &[5],
            Self::QueueUnbounded => &[6],
            // The exit is done in the journal, and not published.
            Self::ExitDroppedAtPolicyFault => &[1, 4],
        }
    }
}
