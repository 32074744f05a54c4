//! What happens to the containers of one run: their signals in the order of their source.

use std::sync::Arc;

use super::random::Random;
use coroner_core::mode::Mode;
use coroner_core::signal::{
    ContainerId, Event, Evidence, Exited, Forwarded, Level, Moment, OomKilled, Pressure, PressureOf, Signal,
    Target,
};
use coroner_sources::envelope::Origin;

/// Containers of one run, at most.
pub(super) const CONTAINERS: usize = 4;

/// The signals of one source.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) origin: Arc<Origin>,
    /// In order; the sequence number is the position, from 1.
    pub(super) signals: Vec<Signal>,
}

/// Draws the signals of one or two sources.
pub(super) fn draw(random: &mut Random) -> Vec<Script> {
    let count = random.between(1, 2);
    let mut scripts: Vec<Script> = (0..count).map(|at| script(at, random)).collect();
    for at in 0..random.between(1, CONTAINERS) {
        let script = &mut scripts[at % count];
        let life = life(&format!("c{at}"), &script.origin, random);
        // Merged at random, each container's own in order.
        let mut merged = Vec::with_capacity(script.signals.len() + life.len());
        let (mut left, mut right) = (script.signals.drain(..).peekable(), life.into_iter().peekable());
        while left.peek().is_some() || right.peek().is_some() {
            let from_left = right.peek().is_none() || left.peek().is_some() && random.chance(50);
            merged.extend(if from_left { left.next() } else { right.next() });
        }
        drop(left);
        script.signals = merged;
    }
    for script in &mut scripts {
        for (at, signal) in script.signals.iter_mut().enumerate() {
            let seq = at as u64 + 1;
            signal.id = format!("n::{}:{}:{seq}", script.origin.source, signal.target.container_id);
            signal.at = Moment { boot_ns: Some(seq), wall_ms: Some(1000 + seq), received_ms: 1000 + seq };
        }
    }
    scripts
}

fn script(at: usize, random: &mut Random) -> Script {
    let mode = [Mode::Sole, Mode::Sole, Mode::Wrapped, Mode::Beside][random.below(4)];
    let origin = Origin {
        source: format!("source-{at}"),
        mode,
        known: mode.knowable(),
        guest: None,
        shim: mode == Mode::Wrapped,
    };
    Script { origin: Arc::new(origin), signals: Vec::new() }
}

/// The signals of one container.
fn life(container: &str, origin: &Origin, random: &mut Random) -> Vec<Signal> {
    let mut events = Vec::new();
    if origin.shim {
        events.push((None, forwarded("/tasks/create")));
    }
    let mut total = 0;
    for _ in 0..random.between(0, 4) {
        match random.below(4) {
            0 | 1 => events.push((None, kill(&mut total, random))),
            2 => events.push((None, pressure())),
            _ => events.push((Some(format!("e{}", events.len())), exited(random))),
        }
    }
    if random.chance(85) {
        events.push((None, exited(random)));
        for _ in 0..random.below(3) {
            events.push((None, kill(&mut total, random)));
        }
        if origin.shim && random.chance(50) {
            events.push((None, forwarded("/tasks/delete")));
        }
    }
    events.into_iter().map(|(exec, event)| signal(container, exec, event)).collect()
}

fn signal(container: &str, exec_id: Option<String>, event: Event) -> Signal {
    let target = Target {
        node: "n".to_owned(),
        guest: None,
        containerd_namespace: Some("k8s.io".to_owned()),
        sandbox_id: None,
        container_id: ContainerId::try_from(container.to_owned()).unwrap(),
        exec_id,
        owner: None,
    };
    let at = Moment { boot_ns: None, wall_ms: None, received_ms: 0 };
    Signal { id: String::new(), at, target, event, attributes: Vec::new() }
}

fn kill(total: &mut u64, random: &mut Random) -> Event {
    let added = random.between(1, 3) as u64;
    *total += added;
    Event::OomKill(OomKilled {
        added: Some(added),
        total: Some(*total),
        level: Level::Container,
        ..OomKilled::new(Evidence::Counter)
    })
}

fn exited(random: &mut Random) -> Event {
    // The policies of a run change two of them.
    let status = [0, 3, 137, 143][random.below(4)];
    Event::Exited(Exited { pid: Some(7), status: Some(status), ..Exited::unknown() })
}

fn pressure() -> Event {
    Event::Pressure(Pressure {
        of: PressureOf::Memory,
        full: true,
        avg10_centi: 1,
        avg60_centi: 1,
        total_us: 1,
        stalled_us: None,
        high_events: None,
    })
}

fn forwarded(topic: &str) -> Event {
    Event::Forwarded(Box::new(Forwarded {
        topic: topic.to_owned(),
        type_url: String::new(),
        value: Vec::new(),
        published_ns: None,
    }))
}
