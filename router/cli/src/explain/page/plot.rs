//! Axes: the scale of a picture, and round values on it.

use std::fmt::Display;

use super::html::{Html, Px};
use crate::render::size;

/// Width of every picture, in its own units.
pub(super) const WIDTH: f64 = 960.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 30.0;
/// Ticks of an axis, at most.
const TICKS: f64 = 8.0;
/// Steps between ticks in seconds, and of a share in percent.
const SECONDS: [f64; 12] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0];

/// The area between two axes. The lowest value of the vertical one is 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plot {
    height: f64,
    /// First and last second.
    from: f64,
    to: f64,
    /// Highest value.
    top: f64,
}

impl Plot {
    pub(super) fn new(height: f64, from: f64, to: f64, top: f64) -> Self {
        let to = if to - from < 0.01 { from + 0.01 } else { to };
        Self { height, from, to, top: top.max(1.0) }
    }

    pub(super) fn x(&self, seconds: f64) -> f64 {
        LEFT + (seconds - self.from) / (self.to - self.from) * (WIDTH - LEFT - RIGHT)
    }

    pub(super) fn y(&self, value: f64) -> f64 {
        self.bottom() - (value / self.top) * (self.bottom() - TOP)
    }

    pub(super) fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }

    pub(super) fn left(&self) -> f64 {
        LEFT
    }

    pub(super) fn right(&self) -> f64 {
        WIDTH - RIGHT
    }

    /// The picture with its axes, and what `inside` draws. `label` is read aloud in its place.
    pub(super) fn draw(
        &self,
        html: &mut Html,
        label: &str,
        ticks: &[(f64, String)],
        inside: impl FnOnce(&mut Html),
    ) {
        let view = format!("0 0 {WIDTH} {}", self.height);
        html.element("svg", &[("viewBox", &view), ("role", &"img"), ("aria-label", &label)], |html| {
            for (value, name) in ticks {
                let y = self.y(*value);
                line(html, "grid", (LEFT, y), (self.right(), y));
                label_at(html, "tick end", (LEFT - 8.0, y + 4.5), name);
            }
            for second in seconds(self.from, self.to) {
                let x = self.x(second);
                line(html, "grid mark", (x, self.bottom()), (x, self.bottom() + 5.0));
                label_at(html, "tick middle", (x, self.bottom() + 20.0), second_name(second));
            }
            inside(html);
            line(html, "axis", (LEFT, self.bottom()), (self.right(), self.bottom()));
        });
    }

    /// A vertical line at a moment, with its name at the top: near the right edge, before the line.
    pub(super) fn mark(&self, html: &mut Html, class: &'static str, seconds: f64, name: &str) {
        let x = self.x(seconds);
        line(html, class, (x, TOP - 6.0), (x, self.bottom()));
        if !name.is_empty() {
            let is_left = x < self.right() - 120.0;
            let (place, x) = if is_left { ("name start", x + 6.0) } else { ("name end", x - 6.0) };
            label_at(html, place, (x, TOP - 10.0), name);
        }
    }
}

pub(super) fn line(html: &mut Html, class: &'static str, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    html.element(
        "line",
        &[("class", &class), ("x1", &Px(x1)), ("y1", &Px(y1)), ("x2", &Px(x2)), ("y2", &Px(y2))],
        |_| {},
    );
}

pub(super) fn label_at(html: &mut Html, class: &'static str, at: (f64, f64), text: impl Display) {
    html.with("text", &[("class", &class), ("x", &Px(at.0)), ("y", &Px(at.1))], text);
}

/// Round seconds between two.
fn seconds(from: f64, to: f64) -> Vec<f64> {
    let fits = |step: &&f64| (to - from) / **step <= TICKS;
    let step =
        SECONDS.iter().find(fits).copied().unwrap_or_else(|| ((to - from) / TICKS / 60.0).ceil() * 60.0);
    let (first, last) = ((from / step - 0.001).ceil(), (to / step + 0.001).floor());
    std::iter::successors(Some(first), |it| Some(it + 1.0))
        .take_while(|it| *it <= last)
        .map(|it| it * step)
        .collect()
}

/// `-30 s`, `0`.
fn second_name(second: f64) -> String {
    if second.abs() < 0.001 {
        return "0".to_owned();
    }
    let sign = if second < 0.0 { "\u{2212}" } else { "+" };
    let second = second.abs();
    let decimals = if second >= 1.0 { 0 } else { 2 };
    let text = format!("{second:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{sign}{text} s")
}

/// Round sizes from 0 to at least `most`: steps of a power of two, in one unit.
pub(super) fn bytes(most: u64) -> Vec<(f64, String)> {
    let mut step: u64 = 4096;
    while most / step >= 5 {
        step *= 2;
    }
    let count = most.div_ceil(step).max(1);
    (0..=count)
        .map(|at| at * step)
        .map(|it| (it as f64, if it == 0 { "0".to_owned() } else { size(it) }))
        .collect()
}

/// Percent from 0 to at least `most`.
pub(super) fn percent(most: f64) -> Vec<(f64, String)> {
    let top = [5.0, 10.0, 20.0, 40.0, 100.0].into_iter().find(|it| *it >= most).unwrap_or(100.0);
    [0.0, 0.5, 1.0].iter().map(|it| it * top).map(|it| (it, format!("{it} %"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let names = |from, to| seconds(from, to).into_iter().map(second_name).collect::<Vec<_>>();
        assert_eq!(
            names(-59.0, 0.0),
            ["\u{2212}50 s", "\u{2212}40 s", "\u{2212}30 s", "\u{2212}20 s", "\u{2212}10 s", "0"]
        );
        assert_eq!(
            names(-0.3, 0.1),
            [
                "\u{2212}0.3 s",
                "\u{2212}0.25 s",
                "\u{2212}0.2 s",
                "\u{2212}0.15 s",
                "\u{2212}0.1 s",
                "\u{2212}0.05 s",
                "0",
                "+0.05 s",
                "+0.1 s"
            ]
        );
        let names = |most| bytes(most).into_iter().map(|it| it.1).collect::<Vec<_>>();
        assert_eq!(names(512 << 20), ["0", "128 MiB", "256 MiB", "384 MiB", "512 MiB"]);
        assert_eq!(names(300 << 20), ["0", "64 MiB", "128 MiB", "192 MiB", "256 MiB", "320 MiB"]);
        assert_eq!(names(0), ["0", "4 KiB"]);
        assert_eq!(percent(12.0).into_iter().map(|it| it.1).collect::<Vec<_>>(), ["0 %", "10 %", "20 %"]);
    }
}
