//! The evidence that a policy may read in one call: that of the signal. Not of an earlier one: a
//! ruling follows from its record alone, which has the signal, the case and the draft.

use std::sync::Arc;

use coroner_core::signal::{Event, KillEvidence, Signal};

/// Reads of one call. Fuel does not count the host's work: without this limit a policy that only
/// reads evidence would hold its worker until its time is over.
const READS: u32 = 16;

/// A policy read the evidence too often in one call.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {READS} calls of evidence.get for one signal")]
pub(super) struct EvidenceFlood;

/// The evidence of one call.
#[derive(Debug, Default)]
pub(super) struct CallEvidence {
    evidence: Option<Arc<KillEvidence>>,
    reads: u32,
}

impl CallEvidence {
    /// Of a signal; only one of the kind `evidence` has any.
    pub(super) fn of(signal: &Signal) -> Self {
        let evidence = match &signal.event {
            Event::Evidence(evidence) => Some(Arc::clone(evidence)),
            _ => None,
        };
        Self { evidence, reads: 0 }
    }

    /// Reads it. `None`: there is none.
    pub(super) fn read(&mut self) -> Result<Option<&KillEvidence>, EvidenceFlood> {
        self.reads += 1;
        if self.reads > READS { Err(EvidenceFlood) } else { Ok(self.evidence.as_deref()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn signal(event: &Value) -> Signal {
        let target = json!({ "node": "n", "container-id": "c" });
        let at = json!({ "received-ms": 1 });
        let signal = json!({ "id": "i", "at": at, "target": target, "event": event, "attributes": [] });
        serde_json::from_value(signal).unwrap()
    }

    #[test]
    fn evidence_is_of_its_own_signal_alone() {
        let evidence = json!({ "kill": "k", "detail": "full", "left-out": 0 });
        let mut read = CallEvidence::of(&signal(&json!({ "evidence": evidence })));
        assert_eq!(read.read().unwrap().map(|it| it.kill.as_str()), Some("k"));
        let lost = json!({ "guest-lost": { "reason": "gone" } });
        assert_eq!(CallEvidence::of(&signal(&lost)).read(), Ok(None));
    }

    #[test]
    fn evidence_is_read_a_bounded_number_of_times() {
        let mut evidence = CallEvidence { evidence: Some(Arc::default()), reads: 0 };
        for _ in 0..READS {
            assert_eq!(evidence.read(), Ok(Some(&KillEvidence::default())));
        }
        assert_eq!(evidence.read(), Err(EvidenceFlood));
        assert_eq!(CallEvidence::default().read(), Ok(None));
    }
}
