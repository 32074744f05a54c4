//! Memory against its limit in the minute before a kill, and pressure below it on the same seconds.

use coroner_core::signal::{KillEvidence, Level, MemorySample};
use coroner_core::verdict::KillFacts;

use super::html::{Html, points};
use super::plot::{self, Plot};
use super::zero::Zero;
use super::{key, section, unknown};
use crate::explain::reading::ReadRecords;
use crate::render::size;

/// A limit that is so many times as high as what was used is left out of the picture.
const FAR: u64 = 4;
/// Columns of a limit's name; the next one begins after it.
const NAME: f64 = 150.0;

/// The facts of both pictures, with times in seconds from their zero.
struct Minute<'a> {
    evidence: &'a KillEvidence,
    kill: &'a KillFacts,
    /// The boot clock at the zero.
    zero_ns: u64,
    zero: &'static str,
    kill_at: f64,
    from: f64,
    to: f64,
}

pub(super) fn write(html: &mut Html, reading: &ReadRecords) {
    let minute = Minute::of(reading);
    section(html, "Memory before the kill", |html| match &minute {
        Err(because) => unknown(html, because),
        Ok(minute) => minute.memory(html),
    });
    section(html, "Memory pressure before the kill", |html| match &minute {
        Err(because) => unknown(html, because),
        Ok(minute) => minute.pressure(html),
    });
}

impl<'a> Minute<'a> {
    fn of(reading: &'a ReadRecords) -> Result<Self, &'static str> {
        let kill = reading
            .verdict
            .kill
            .as_ref()
            .ok_or("no OOM kill is recorded, and memory is kept for kills alone.")?;
        let evidence =
            reading.verdict.evidence.as_deref().ok_or("no record has the evidence of the kill.")?;
        let [first, .., last] = evidence.samples.as_slice() else {
            return Err(
                "no sample was taken: a container is sampled each second while above half of its limit.",
            );
        };
        let (Some(zero), Some(killed)) = (Zero::near_kill(reading), Zero::of_kill(reading)) else {
            return Err("the record of the kill is lost.");
        };
        let kill_ns =
            killed.at.boot_ns.ok_or("the time of the kill on its machine's clock was not recorded.")?;
        let after = killed.until(&zero);
        let zero_ns = kill_ns.saturating_add_signed(after);
        let mut minute = Self { evidence, kill, zero_ns, zero: zero.name, kill_at: 0.0, from: 0.0, to: 0.0 };
        minute.kill_at = minute.seconds(kill_ns);
        minute.from = minute.seconds(first.boot_ns).min(minute.kill_at);
        minute.to = minute.seconds(last.boot_ns).max(minute.kill_at).max(0.0);
        Ok(minute)
    }

    fn seconds(&self, boot_ns: u64) -> f64 {
        let distance = boot_ns.abs_diff(self.zero_ns) as f64 / 1e9;
        if boot_ns < self.zero_ns { -distance } else { distance }
    }

    fn memory(&self, html: &mut Html) {
        let samples: Vec<(f64, u64)> =
            self.evidence.samples.iter().map(|it| (self.seconds(it.boot_ns), it.usage_bytes)).collect();
        let used = samples.iter().map(|it| it.1).max().unwrap_or(0);
        let above = self.kill.limit.bytes.filter(|_| self.kill.limit.level == Level::Ancestor);
        let near = |limit: &u64| *limit <= used.max(above.unwrap_or(0)).saturating_mul(FAR);
        let steps = self.limits();
        let highest = steps.iter().filter_map(|it| it.1).filter(near).chain(above).max();
        let ticks = plot::bytes(used.max(highest.unwrap_or(0)));
        let top = ticks.last().map_or(1.0, |it| it.0);
        let plot = Plot::new(280.0, self.from, self.to, top);
        html.element("figure", &[], |html| {
            html.element("p", &[("class", &"keys")], |html| {
                key(html, "key usage", "memory in use by the container");
                if steps.iter().any(|it| it.1.is_some()) {
                    key(html, "key limit", "its limit");
                }
                if let Some(above) = above {
                    key(html, "key above", &format!("limit of {} above it", size(above)));
                }
                key(html, "key kill", "OOM kill");
            });
            plot.draw(html, "Memory in use against the limit, over time", &ticks, |html| {
                usage(html, &plot, &samples);
                if let Some(above) = above {
                    let y = plot.y(above as f64);
                    plot::line(html, "above", (plot.left(), y), (plot.right(), y));
                }
                draw_limits(html, &plot, &steps, self.to, near);
                plot.mark(html, "kill", self.kill_at, "OOM kill");
            });
            self.caption(html, &steps, near);
        });
    }

    fn caption(&self, html: &mut Html, steps: &[(f64, Option<u64>)], near: impl Fn(&u64) -> bool) {
        let far = steps.iter().filter_map(|it| it.1).find(|limit| !near(limit));
        let far = far.map(|it| format!(" Its own limit of {} is above the picture.", size(it)));
        let text = format!(
            "Seconds before and after {}. Samples of the container's cgroup; between two of them it may \
             have been higher.{}",
            self.zero,
            far.unwrap_or_default()
        );
        html.with("figcaption", &[], text);
    }

    /// The limit of the container's cgroup from these seconds on; `None`: it had no limit.
    fn limits(&self) -> Vec<(f64, Option<u64>)> {
        let mut steps: Vec<(f64, Option<u64>)> = Vec::new();
        if self.evidence.limits.is_empty() {
            for sample in &self.evidence.samples {
                if let Some(limit) = sample.limit_bytes
                    && steps.last().is_none_or(|it| it.1 != Some(limit))
                {
                    steps.push((self.seconds(sample.boot_ns), Some(limit)));
                }
            }
            return steps;
        }
        for change in &self.evidence.limits {
            let at = self.seconds(change.boot_ns).max(self.from);
            steps.retain(|it| it.0 < at);
            steps.push((at, change.limit_bytes));
        }
        steps
    }

    fn pressure(&self, html: &mut Html) {
        let stalls = |of: fn(&MemorySample) -> Option<u64>| self.stalls(of);
        let (some, full) = (stalls(|it| it.some_us), stalls(|it| it.full_us));
        if some.is_empty() && full.is_empty() {
            return unknown(html, "the agent could not read memory.pressure (PSI) of the container.");
        }
        let most = some.iter().chain(&full).map(|it| it.2).fold(0.0, f64::max);
        let ticks = plot::percent(most);
        let plot = Plot::new(170.0, self.from, self.to, ticks.last().map_or(1.0, |it| it.0));
        html.element("figure", &[], |html| {
            html.element("p", &[("class", &"keys")], |html| {
                key(html, "key some", "some process waited for memory");
                key(html, "key full", "all of them waited");
                key(html, "key kill", "OOM kill");
            });
            plot.draw(html, "Share of each second in which processes waited for memory", &ticks, |html| {
                stall_bars(html, &plot, "some", &some);
                stall_bars(html, &plot, "full", &full);
                plot.mark(html, "kill", self.kill_at, "OOM kill");
            });
            let text = format!(
                "Share of the time between two samples in which processes waited for memory (PSI). Seconds \
                 before and after {}.",
                self.zero
            );
            html.with("figcaption", &[], text);
        });
    }

    /// From when, to when, and the share of that time in percent: of the cumulative totals of two
    /// samples. A total that is lower than before has begun anew, and has no share.
    fn stalls(&self, of: fn(&MemorySample) -> Option<u64>) -> Vec<(f64, f64, f64)> {
        let share = |two: &[MemorySample]| {
            let (before, after) = (&two[0], &two[1]);
            let stalled = of(after)?.checked_sub(of(before)?)? as f64;
            let time = after.boot_ns.checked_sub(before.boot_ns).filter(|it| *it > 0)? as f64 / 1_000.0;
            let (from, to) = (self.seconds(before.boot_ns), self.seconds(after.boot_ns));
            Some((from, to, (stalled / time * 100.0).min(100.0)))
        };
        self.evidence.samples.windows(2).filter_map(share).collect()
    }
}

fn usage(html: &mut Html, plot: &Plot, samples: &[(f64, u64)]) {
    let line: Vec<(f64, f64)> =
        samples.iter().map(|(at, bytes)| (plot.x(*at), plot.y(*bytes as f64))).collect();
    let (Some(first), Some(last)) = (line.first(), line.last()) else { return };
    let mut area = line.clone();
    area.extend([(last.0, plot.bottom()), (first.0, plot.bottom())]);
    html.element("polygon", &[("class", &"usage"), ("points", &points(&area))], |_| {});
    html.element("polyline", &[("class", &"usage"), ("points", &points(&line))], |_| {});
}

/// The limit as steps, each with its size at its beginning.
fn draw_limits(
    html: &mut Html,
    plot: &Plot,
    steps: &[(f64, Option<u64>)],
    to: f64,
    near: impl Fn(&u64) -> bool,
) {
    let (mut before, mut free) = (None, f64::MIN);
    for (at, (from, limit)) in steps.iter().enumerate() {
        let Some(limit) = limit.filter(&near) else {
            before = None;
            continue;
        };
        let until = steps.get(at + 1).map_or(to, |next| next.0);
        let (x, y) = (plot.x(*from), plot.y(limit as f64));
        if let Some(before) = before.replace(y) {
            plot::line(html, "limit", (x, before), (x, y));
        }
        plot::line(html, "limit", (x, y), (plot.x(until), y));
        if x >= free && x + NAME < plot.right() {
            plot::label_at(html, "name limit start", (x + 6.0, y - 7.0), format!("limit {}", size(limit)));
            free = x + NAME;
        }
    }
}

fn stall_bars(html: &mut Html, plot: &Plot, class: &'static str, stalls: &[(f64, f64, f64)]) {
    for (from, to, share) in stalls.iter().filter(|it| it.2 > 0.0) {
        let (x, y) = (plot.x(*from), plot.y(*share));
        // A gap of one unit separates two bars.
        let width = (plot.x(*to) - x - 1.0).max(0.5);
        let corners = [(x, plot.bottom()), (x, y), (x + width, y), (x + width, plot.bottom())];
        html.element("polygon", &[("class", &class), ("points", &points(&corners))], |html| {
            html.with("title", &[], format!("{share:.1} %"));
        });
    }
}
