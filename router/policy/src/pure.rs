//! The purity check: a policy must give the same answer to the same signal, whatever came before.
//! Also runs the operator's test vectors.
//! The field's name: determinism check.

use super::host::{Host, Instance};
use super::limits::CallBudget;
use super::policy::Policy;
use coroner_core::audit::{Line, READ, Record, Ruled};
use coroner_core::ruling::{Action, Fault, FaultKind, Ruling};

/// Signals of every kind, with full and with empty cases.
static BUNDLED: &str = include_str!("vectors.jsonl");
/// Seed of the order of calls to a used instance: any order will do, if it is always the same.
const SHUFFLE: u64 = 0x2545_f491_4f6c_dd1d;

/// Why a policy's answers are refused.
#[derive(Debug, thiserror::Error)]
pub enum VectorError {
    /// The same signal got two answers.
    #[error(
        "is not pure: a new instance answers {signal} with {fresh}, a used one with {used}. A policy has no memory of its own: use the case file"
    )]
    Impure {
        /// The signal's id.
        signal: String,
        /// Answer of a new instance.
        fresh: String,
        /// Answer of a used instance.
        used: String,
    },
    /// The second start failed.
    #[error("cannot be started a second time: {0}")]
    Restart(String),
    /// A line of the operator's vectors is not a `ruled` record.
    #[error("has a vector that is not an audit record, line {line}: {reason}")]
    Line {
        /// Line number, from 1.
        line: usize,
        /// The parser's error.
        reason: String,
    },
    /// An operator's vector got another answer.
    #[error("answers vector {line} ({signal}) with {answer}; the vector expects {expect}")]
    Answer {
        /// Line number, from 1.
        line: usize,
        /// The signal's id.
        signal: String,
        /// The actual answer.
        answer: String,
        /// The expected answer.
        expect: String,
    },
}

/// The bundled vectors.
pub(super) fn bundled() -> Vec<Ruled> {
    let parsed =
        BUNDLED.lines().map(|line| serde_json::from_str::<Line>(line).expect("a unit test reads them"));
    let ruled = parsed.map(|line| match line.record {
        Record::Ruled(ruled) => *ruled,
        Record::Delivered(_) | Record::Chain(_) | Record::Recovered(_) | Record::Resumed(_) => {
            unreachable!("a unit test reads them")
        }
    });
    ruled.collect()
}

/// Calls a new instance for each vector, and one used instance for all of them in another sequence.
pub(super) fn check(host: &Host, policy: &Policy, used: Instance) -> Result<(), VectorError> {
    let vectors = bundled();
    let wanted: Vec<&Ruled> =
        vectors.iter().filter(|it| policy.description.wants.include(&it.signal.event)).collect();
    let mut fresh = Vec::new();
    for vector in &wanted {
        let mut instance = policy.start(host).map_err(|fault| VectorError::Restart(fault.message))?;
        fresh.push(answer_of(host, &mut instance, vector));
    }
    let mut used = Some(used);
    let mut late = 0;
    for at in shuffled(wanted.len()) {
        let mut instance = match used.take() {
            Some(instance) => instance,
            None => policy.start(host).map_err(|fault| VectorError::Restart(fault.message))?,
        };
        let answer = answer_of(host, &mut instance, wanted[at]);
        if is_late(&answer) || is_late(&fresh[at]) {
            late += 1;
        }
        if same(&answer, &fresh[at]) {
            // A faulty instance is not used again, as in a worker.
            used = answer.is_ok().then_some(instance);
            continue;
        }
        return Err(VectorError::Impure {
            signal: wanted[at].signal.id.clone(),
            fresh: shown(&fresh[at]),
            used: shown(&answer),
        });
    }
    if late > 0 {
        tracing::warn!(
            policy = policy.name,
            late,
            "calls of the purity check ended by time, not by fuel: they prove nothing about the policy"
        );
    }
    Ok(())
}

/// Checks the operator's vectors: each line is an audit record with a `draft`, and with the
/// `actions` expected as the answer to it.
pub(super) fn operators(host: &Host, policy: &Policy, text: &str) -> Result<(), VectorError> {
    let mut instance = policy.start(host).map_err(|fault| VectorError::Restart(fault.message))?;
    for (at, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let wrong = |reason: String| VectorError::Line { line: at + 1, reason };
        let line: Line = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        if !READ.contains(&line.v) {
            return Err(wrong(format!("it is of version {}", line.v)));
        }
        let Record::Ruled(vector) = line.record else { continue };
        if !policy.description.wants.include(&vector.signal.event) {
            continue;
        }
        let answer = answer_of(host, &mut instance, &vector);
        let actions: Option<&[Action]> = match &answer {
            Ok(Ruling::Pass) => Some(&vector.draft),
            Ok(Ruling::Decide(decision)) => Some(&decision.actions),
            Err(_) => None,
        };
        if actions != Some(&vector.actions) {
            return Err(VectorError::Answer {
                line: at + 1,
                signal: vector.signal.id.clone(),
                answer: shown(&answer),
                expect: json(&vector.actions),
            });
        }
    }
    Ok(())
}

/// One call of `rule`, as a worker makes it.
pub(super) fn answer_of(host: &Host, instance: &mut Instance, vector: &Ruled) -> Result<Ruling, Fault> {
    instance.rule(host, CallBudget::OWN, &vector.signal, &vector.case, &vector.draft).0
}

/// Compares byte for byte. A call that ended by time proves nothing, and is equal to any other: the
/// caller reports it.
fn same(one: &Result<Ruling, Fault>, other: &Result<Ruling, Fault>) -> bool {
    is_late(one) || is_late(other) || one == other
}

fn is_late(answer: &Result<Ruling, Fault>) -> bool {
    matches!(answer, Err(fault) if fault.kind == FaultKind::Time)
}

fn shown(answer: &Result<Ruling, Fault>) -> String {
    match answer {
        Ok(ruling) => json(ruling),
        Err(fault) => json(fault),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    super::policy_log::shortened(&serde_json::to_string(value).expect("rulings are JSON"))
}

/// Every index twice, in a shuffled order.
fn shuffled(count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).chain((0..count).rev()).collect();
    let mut state = SHUFFLE;
    for at in (1..places.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        places.swap(at, usize::try_from(state % (at as u64 + 1)).expect("at most a place"));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::signal::Event;

    #[test]
    fn bundled_vectors_have_every_kind_and_are_legal() {
        let vectors = bundled();
        assert!(vectors.len() >= 12, "{}", vectors.len());
        let has = |is: fn(&Event) -> bool| vectors.iter().any(|it| is(&it.signal.event));
        assert!(has(|it| matches!(it, Event::OomKill(_))) && has(|it| matches!(it, Event::Exited(_))));
        assert!(has(|it| matches!(it, Event::Pressure(_))) && has(|it| matches!(it, Event::KillRequest(_))));
        assert!(has(|it| matches!(it, Event::GuestLost(_))) && has(|it| matches!(it, Event::Other(_))));
        assert!(has(|it| matches!(it, Event::Evidence(_))));
        for vector in &vectors {
            let native = coroner_core::native_default::default_ruling(&vector.signal, &vector.case);
            assert_eq!(native.actions, vector.draft, "{}", vector.signal.id);
        }
    }

    #[test]
    fn shuffle_has_every_index_twice() {
        let mut places = shuffled(7);
        assert_ne!(places, shuffled(8)[..14]);
        places.sort_unstable();
        assert_eq!(places, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]);
    }
}
