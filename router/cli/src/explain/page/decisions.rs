//! What each policy ruled, with its reason, and what became of it.

use coroner_core::audit::{Delivered, Ruled};
use coroner_core::ruling::Opinion;
use coroner_core::signal::Event;

use super::html::Html;
use super::timeline::offset;
use super::zero::Zero;
use super::{section, unknown};
use crate::explain::reading::ReadRecords;
use crate::render::record::RecordLine;
use crate::render::{self, actions, decided, is_delivered, opinion, outcome, planned};

/// Rulings that are shown, the last ones.
const RULINGS: usize = 20;

pub(super) fn write(html: &mut Html, reading: &ReadRecords) {
    section(html, "Decisions of the policies", |html| {
        let mut all: Vec<&Ruled> = reading.entries.iter().filter_map(ruling).collect();
        if all.is_empty() {
            return unknown(html, "no record has a ruling on a kill or an end.");
        }
        let left_out = all.len().saturating_sub(RULINGS);
        all.drain(..left_out);
        let zero = Zero::of_end(reading);
        for ruled in all {
            decision(html, reading, ruled, zero.as_ref());
        }
        if left_out > 0 {
            let text = format!("{left_out} earlier rulings are not shown here; coroner explain lists them.");
            html.with("p", &[("class", &"note")], text);
        }
    });
}

/// A ruling that bears on the end, or publishes something.
fn ruling(entry: &RecordLine) -> Option<&Ruled> {
    let RecordLine::Ruled(ruled) = entry else { return None };
    let is_of_end = match &ruled.signal.event {
        Event::OomKill(_) | Event::Exited(_) | Event::GuestLost(_) => true,
        Event::Pressure(_) | Event::KillRequest(_) | Event::Evidence(_) => false,
        Event::Other(_) | Event::Forwarded(_) => false,
    };
    (is_of_end || !ruled.actions.is_empty()).then_some(&**ruled)
}

fn decision<'a>(html: &mut Html, reading: &'a ReadRecords, ruled: &'a Ruled, zero: Option<&Zero<'a>>) {
    html.element("article", &[], |html| {
        html.element("h3", &[], |html| {
            if let Some(zero) = zero {
                html.with("span", &[("class", &"time")], offset(zero.to(&ruled.signal) as f64 / 1e9));
                html.text(" ");
            }
            html.text(render::happened(&ruled.signal));
        });
        html.element("ul", &[("class", &"rulings")], |html| {
            if ruled.rulings.is_empty() {
                html.with("li", &[], decided(ruled));
            }
            for it in &ruled.rulings {
                one(html, it);
            }
            if let Some(why) = &ruled.illegal {
                let done = actions(&ruled.actions);
                let text = format!("not legal, so the native default counts: {done}; {why}");
                html.with("li", &[("class", &"failed")], text);
            }
        });
        let delivered = |it: &'a RecordLine| match it {
            RecordLine::Delivered(it) if it.id == ruled.signal.id => Some(it),
            _ => None,
        };
        let delivered: Vec<&Delivered> = reading.entries.iter().filter_map(delivered).collect();
        html.element("ul", &[("class", &"deliveries")], |html| {
            let queued = if delivered.is_empty() { planned(ruled) } else { Vec::new() };
            queued.iter().for_each(|it| html.with("li", &[], it));
            for it in delivered {
                let class = if is_delivered(it) { "" } else { "failed" };
                html.with("li", &[("class", &class)], outcome(it));
            }
        });
    });
}

fn one(html: &mut Html, it: &Opinion) {
    let class = if it.fault.is_some() { "failed" } else { "" };
    html.with("li", &[("class", &class)], opinion(it));
}
