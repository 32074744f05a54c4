//! The texts that are printed: the score card in each format, and the list of cases.

mod json;
mod junit;
mod table;
mod tap;

use std::io::stdout;

use crate::args::Format;
use crate::card::{Card, Death};
use crate::case::Case;
use crate::screen::{columns, has_colours};

/// The score card in a format.
pub(crate) fn text(format: Format, card: &Card) -> String {
    match format {
        Format::Table => table::text(card, has_colours(&stdout())),
        Format::Tap => tap::text(card),
        Format::Junit => junit::text(card),
        Format::Json => json::text(card),
    }
}

/// The cases as a table.
pub(crate) fn list(cases: &[Case]) -> String {
    let headings = ["CASE", "MEMORY", "FAULT", "EXPECTED", "PROOF", "DEATH"].map(str::to_owned);
    let rows = cases.iter().map(|case| {
        let memory = format!("{} MiB", case.memory >> 20);
        let (fault, expected, proof) =
            (case.fault.to_string(), case.expected.to_string(), case.proof.to_string());
        vec![case.name.clone(), memory, fault, expected, proof, case.about.clone()]
    });
    lines(columns(std::iter::once(headings.to_vec()).chain(rows)))
}

/// One line about a container: its verdict, its readings and what proves them.
fn sentence(death: &Death) -> String {
    let (first, last) = death.readings();
    format!(
        "{} {}: first {first}, final {last}, expected {}; {}",
        death.short_id(),
        death.verdict.name(),
        death.expected,
        death.evidence,
    )
}

fn lines(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().flat_map(|line| [line, "\n".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    #[test]
    fn list_has_a_line_for_each_case() {
        let cases = case::load(None).unwrap();
        let text = list(&cases);
        assert_eq!(text.lines().count(), cases.len() + 1);
        assert!(text.starts_with("CASE "), "{text}");
        let line = text.lines().find(|line| line.starts_with("stop-ignores-term ")).unwrap();
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        assert_eq!(cells[1..5], ["16 MiB", "stop, 1 s", "Error/137", "none"]);
    }
}
