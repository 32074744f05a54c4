//! Compares two ways in pairs that take turns: whatever else the machine does, it does to both.

use std::time::Duration;

/// What a pair of variants took, once for each pair.
pub(crate) struct Pairs {
    /// What is measured.
    pub(crate) what: String,
    /// The name of the variant that the other is compared with.
    pub(crate) baseline: &'static str,
    /// Nanoseconds: the baseline, and the other.
    took: Vec<(f64, f64)>,
}

impl Pairs {
    pub(crate) fn new(what: impl Into<String>, baseline: &'static str) -> Self {
        Self { what: what.into(), baseline, took: Vec::new() }
    }

    /// Whether the baseline goes first in the next pair: what goes second finds warm caches.
    pub(crate) fn baseline_first(&self) -> bool {
        self.took.len().is_multiple_of(2)
    }

    /// A pair in which each did the same `times` times.
    pub(crate) fn add(&mut self, baseline: Duration, wasm: Duration, times: u32) {
        let each = |took: Duration| took.as_secs_f64() * 1e9 / f64::from(times);
        self.took.push((each(baseline), each(wasm)));
    }

    fn row(&self) -> [String; 9] {
        let native = Spread::of(self.took.iter().map(|(native, _)| *native));
        let wasm = Spread::of(self.took.iter().map(|(_, wasm)| *wasm));
        let added = Spread::of(self.took.iter().map(|(native, wasm)| wasm - native));
        [
            self.what.clone(),
            self.baseline.to_owned(),
            self.took.len().to_string(),
            microseconds(native.median),
            microseconds(wasm.median),
            format!("{:.2}", wasm.median / native.median),
            microseconds(added.median),
            format!("{} to {}", microseconds(added.lower), microseconds(added.upper)),
            format!("{:.1} %", added.median / native.median * 100.0),
        ]
    }
}

/// The middle half of some figures.
struct Spread {
    lower: f64,
    median: f64,
    upper: f64,
}

impl Spread {
    fn of(figures: impl Iterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let at = |quarters: usize| figures[(figures.len() - 1) * quarters / 4];
        Self { lower: at(1), median: at(2), upper: at(3) }
    }
}

fn microseconds(nanoseconds: f64) -> String {
    format!("{:.3} us", nanoseconds / 1e3)
}

/// Prints one line a comparison: medians, and the difference within a pair as a share of the
/// baseline.
#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
pub(crate) fn print(title: &str, other: &str, comparisons: &[Pairs]) {
    let heads = [
        "what",
        "baseline",
        "pairs",
        "baseline takes",
        &format!("{other} takes"),
        "ratio",
        &format!("{other} adds"),
        "middle half of that",
        "share",
    ];
    let mut lines = vec![heads.map(str::to_owned)];
    lines.extend(comparisons.iter().map(Pairs::row));
    println!("\n{title}");
    for line in &lines {
        let cell = |(at, text): (usize, &String)| {
            let width = lines.iter().map(|it| it[at].len()).max().unwrap_or(0);
            format!("{text:<width$}")
        };
        println!("  {}", line.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end());
    }
}
