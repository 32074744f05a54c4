//! One container's death as a page for a browser: one file without scripts and outside resources.

mod decisions;
mod facts;
mod html;
mod memory;
mod plot;
mod tables;
mod timeline;
mod zero;

use html::Html;

use super::kill_lines::gap;
use super::reading::ReadRecords;
use super::sentence::sentence;
use crate::render::{clock, container_name, day, short_id};

static STYLE: &str = include_str!("style.css");

/// The page.
pub(super) fn of(reading: &ReadRecords) -> String {
    let name = reading.target().map_or_else(|| short_id(&reading.container), container_name);
    let mut html = Html::default();
    html.literal("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    html.literal("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    html.with("title", &[], format!("{name}: {}", sentence(&reading.verdict)));
    html.literal("\n<style>\n");
    html.literal(STYLE);
    html.literal("</style></head><body><main>\n");
    header(&mut html, reading, &name);
    memory::write(&mut html, reading);
    timeline::write(&mut html, reading);
    tables::write(&mut html, reading);
    decisions::write(&mut html, reading);
    gaps(&mut html, reading);
    html.literal("</main></body></html>\n");
    html.finish()
}

fn header(html: &mut Html, reading: &ReadRecords, name: &str) {
    html.element("header", &[], |html| {
        html.with("h1", &[], name);
        html.with("p", &[("class", &"verdict")], sentence(&reading.verdict));
        facts::write(html, &reading.verdict, reading.own_limit());
        html.with("p", &[("class", &"meta")], about(reading));
    });
    html.literal("\n");
}

/// The container, where it ran, and when it ended.
fn about(reading: &ReadRecords) -> String {
    let mut parts = vec![format!("container {}", reading.container)];
    if let Some(target) = reading.target() {
        let owner = target.owner.as_ref();
        parts.extend(owner.and_then(|it| it.image.as_ref()).map(|it| format!("image {it}")));
        parts.push(format!("node {}", target.node));
        parts.extend(target.guest.as_ref().map(|it| format!("guest {it}")));
    }
    parts.extend(reading.last_ruled().map(|it| format!("source {}, mode {}", it.source, it.mode.name())));
    if let Some(exit) = &reading.verdict.exit {
        let at = exit.at.received_ms;
        parts.push(format!("ended {} {}", day(at), clock(at)));
    }
    let left_out = reading.left_out + reading.unread.len();
    if left_out > 0 {
        parts.push(format!("{left_out} records are not on this page"));
    }
    parts.join(" \u{b7} ")
}

fn gaps(html: &mut Html, reading: &ReadRecords) {
    section(html, "What is not known", |html| {
        if reading.verdict.unknown.is_empty() {
            return html.with("p", &[("class", &"note")], "Nothing that the verdict needs is missing.");
        }
        html.element("ul", &[], |html| {
            for it in &reading.verdict.unknown {
                html.with("li", &[], gap(it));
            }
        });
    });
}

/// A part of the page below its heading.
fn section(html: &mut Html, heading: &'static str, inside: impl FnOnce(&mut Html)) {
    html.element("section", &[], |html| {
        html.with("h2", &[], heading);
        inside(html);
    });
    html.literal("\n");
}

/// Why a part has no facts.
fn unknown(html: &mut Html, because: &str) {
    html.with("p", &[("class", &"unknown")], because);
}

/// An entry of a picture's key.
fn key(html: &mut Html, class: &'static str, name: &str) {
    html.with("span", &[("class", &class)], name);
}

#[cfg(test)]
mod tests;
