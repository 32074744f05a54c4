//! Each mechanism carries the field's name where it is done, so that a search leads to the code.

use std::fs;

use super::tree;

/// Rows of the glossary's table: the names in the field, and the file.
fn rows(glossary: &str) -> Vec<(Vec<String>, String)> {
    let table = glossary.split_once("## Mechanisms").unwrap().1;
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let file = cells.get(3)?.strip_prefix('`')?.strip_suffix('`')?;
        let names = cells[1].split_once(" (").map_or(cells[1], |(name, _)| name);
        Some((names.split(", ").map(plain).collect(), file.to_owned()))
    };
    table.lines().filter_map(row).collect()
}

/// Lower case, one space between words, no hyphens and no marks of comments.
fn plain(text: &str) -> String {
    let text = text.to_lowercase().replace(['-', '/', '!'], " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn mechanisms_are_named_where_they_are_done() {
    let root = tree::root();
    let rows = rows(&fs::read_to_string(root.join("docs/concepts/glossary.md")).unwrap());
    let mut missing = Vec::new();
    for (names, file) in &rows {
        let text = plain(&fs::read_to_string(root.join(file)).unwrap_or_default());
        if !names.iter().any(|name| text.contains(name)) {
            missing.push(format!("{file} names none of: {}", names.join(", ")));
        }
    }
    println!("{} mechanisms", rows.len());
    assert!(rows.len() > 30 && missing.is_empty(), "{}", missing.join("\n"));
}
