//! Columns under their headings, as wide as what is in them.

/// Lines of a table; colours do not count as width.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let heading: Vec<String> = headings.iter().map(|it| (*it).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&heading).chain(rows).collect();
    let widths: Vec<usize> = (0..headings.len())
        .map(|at| all.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let line = |row: &&Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> =
            cells.map(|(cell, width_of)| format!("{cell}{}", " ".repeat(width_of - width(cell)))).collect();
        cells.join("  ").trim_end().to_owned()
    };
    all.iter().map(line).collect()
}

/// Characters that are seen.
fn width(text: &str) -> usize {
    let mut inside = false;
    let seen = text.chars().filter(|c| {
        let shown = !inside && *c != '\u{1b}';
        inside = (inside || *c == '\u{1b}') && *c != 'm';
        shown
    });
    seen.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_colours_have_no_width() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["a", "\u{1b}[31mbad\u{1b}[0m", "x"]), row(["longer", "ok", ""])];
        let lines = table(&["NAME", "STATE", "WHY"], &rows);
        assert_eq!(lines, ["NAME    STATE  WHY", "a       \u{1b}[31mbad\u{1b}[0m    x", "longer  ok"]);
    }
}
