//! Everything that a command prints for a person: one text for a signal, a ruling and a delivery,
//! and one screen for lines, tables and colours.

mod screen;
pub(crate) mod record;
mod ruling;
mod signal;
mod time;

pub(crate) use ruling::{
    actions, decided, is_delivered, on_failure, opinion, opinions, outcome, planned, recovered,
};
pub(crate) use screen::{
    Colour, Screen, Text, errors, fail, has_colours, note, paint, row, visible, written,
};
pub(crate) use signal::{cause, container_name, container_of, happened, limit, marks, signal_name};
pub(crate) use time::{clock, day, seconds, short_digest, short_id, size, span};
