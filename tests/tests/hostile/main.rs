//! Guests that lie, flood, stall and break, against the real `coroner run`: it stays up and small,
//! and a good guest beside them is served as before.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod clock;
#[expect(dead_code, reason = "shared with another suite, which uses the rest")]
#[path = "../routing/fakes.rs"]
mod fakes;
mod floods;
mod forged;
mod frames;
mod link;
mod malformed;
mod names;
mod patience;
mod published;
mod fixture;

use coroner_proto::agent::{self, NextSignalsResponse, Signal, signal::Event};

/// The stream most bad guests have.
const STREAM: &str = "bad";

fn agent_signal(seq: u64, container: &str, event: Event) -> Signal {
    Signal { seq, container_id: container.to_owned(), event: Some(event), ..Signal::default() }
}

fn kill(seq: u64, container: &str) -> Signal {
    agent_signal(
        seq,
        container,
        Event::OomKill(agent::OomKill { total: 1, added: 1, ..agent::OomKill::default() }),
    )
}

fn exit(seq: u64, container: &str) -> Signal {
    let exited =
        agent::Exited { pid: Some(7), is_init: Some(true), status: Some(137), ..agent::Exited::default() };
    agent_signal(seq, container, Event::Exited(exited))
}

fn answer(signals: Vec<Signal>) -> NextSignalsResponse {
    NextSignalsResponse { stream_id: STREAM.to_owned(), signals, ..NextSignalsResponse::default() }
}
