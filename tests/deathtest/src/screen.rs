//! Standard output and standard error: what is printed, in which colours.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use crate::NOT_RUN;

/// A colour or weight of the terminal, as its SGR code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// The line in a colour, where colours are wanted.
pub(crate) fn paint(line: &str, colour: Option<Colour>, colours: bool) -> String {
    match colour.filter(|_| colours) {
        Some(colour) => format!("\u{1b}[{}m{line}\u{1b}[0m", colour as u8),
        None => line.to_owned(),
    }
}

/// Colours are for terminals, and <https://no-color.org> turns them off.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The lines of a table: columns as wide as their widest cells. A row may have fewer cells, and its
/// last one widens no column.
pub(crate) fn columns(rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    const GAP: usize = 2;
    let clean = |row: Vec<String>| row.iter().map(|cell| visible(cell)).collect();
    let rows: Vec<Vec<String>> = rows.into_iter().map(clean).collect();
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row.split_last().map_or(&[][..], |(_, others)| others)) {
            *width = (*width).max(cell.chars().count() + GAP);
        }
    }
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<String>().trim_end_matches(' ').to_owned()
    };
    rows.iter().map(line).collect()
}

/// Replaces control characters, which a runtime's message could move the cursor with.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Prints the result; answers `code`, unless it cannot be printed. A closed pipe is not an error.
pub(crate) fn print(text: &str, code: u8) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            fail(&anyhow::anyhow!("cannot write to standard output: {error}"))
        }
        Ok(()) | Err(_) => code.into(),
    }
}

/// Prints an error with its causes; answers the exit code.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    for line in format!("{error:#}").lines() {
        note(line);
    }
    NOT_RUN.into()
}

/// Prints a line on standard error.
pub(crate) fn note(line: &str) {
    // With standard error closed too, the exit code is what is left.
    writeln!(io::stderr().lock(), "deathtest: {}", visible(line)).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_replaced() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = columns([row(["A", "B"]), row(["long\u{1b}[2J", ""]), row(["x", "y\nz"])]);
        assert_eq!(lines, ["A         B", "long\u{fffd}[2J", "x         y\u{fffd}z"]);
    }

    #[test]
    fn colours_are_optional() {
        assert_eq!(paint("x", Some(Colour::Red), true), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(paint("x", Some(Colour::Red), false), "x");
        assert_eq!(paint("x", None, true), "x");
    }
}
