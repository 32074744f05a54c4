//! Lines that fit beside each other on a screen: at most 100 columns on pages and in comments.

use std::collections::BTreeMap;
use std::fs;

use super::links::prose;
use super::tree;

/// Columns of a line. Blocks of code and output are shown as they are.
const WIDEST: usize = 100;

/// Comment lines that are still wider, by area. A number is only ever lowered.
const WIDE_COMMENTS: &[(&str, usize)] =
    &[("guest-agent", 2), ("plugins", 8), ("router", 11), ("sdk", 15), ("tests", 1), ("xtask", 1)];

/// `[text](target)` as it is read: `text`. A code span with a path in it counts as a target.
fn without_targets(line: &str) -> String {
    let spans = line.split('`').enumerate();
    let line: String =
        spans.map(|(at, span)| if at % 2 == 1 && span.contains('/') { "" } else { span }).collect();
    let mut parts = line.split("](");
    let mut read = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        read.push_str(part.split_once(')').map_or("", |(_, rest)| rest));
    }
    read.replace('[', "")
}

#[test]
fn lines_of_pages_fit_into_100_columns() {
    let root = tree::root();
    let mut wide = Vec::new();
    for path in tree::files(&root).into_iter().filter(|it| it.extension().is_some_and(|it| it == "md")) {
        for (number, line) in prose(&fs::read_to_string(&path).unwrap()) {
            // Rows of tables and lists of links cannot be broken: targets and paths do not count.
            let whole = line.starts_with('|') || line.trim_start().starts_with("- [");
            let line = if whole { without_targets(line) } else { line.to_owned() };
            if line.chars().count() > WIDEST && !line.contains("://") {
                let path = path.strip_prefix(&root).unwrap().display();
                wide.push(format!("{path}:{number}: {} columns", line.chars().count()));
            }
        }
    }
    assert!(wide.is_empty(), "{}", wide.join("\n"));
}

#[test]
fn wide_comments_stay_within_their_ratchet() {
    let root = tree::root();
    let mut areas: BTreeMap<String, usize> = BTreeMap::new();
    for path in tree::files(&root) {
        let is_code = path.extension().is_some_and(|it| it == "rs" || it == "proto" || it == "wit");
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        let (Some((area, _)), true) = (name.split_once('/'), is_code) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        let is_wide = |line: &&str| line.trim_start().starts_with("//") && line.chars().count() > WIDEST;
        *areas.entry(area.to_owned()).or_default() += text.lines().filter(is_wide).count();
    }
    let mut above = Vec::new();
    for (area, count) in &areas {
        println!("{area:<12} {count:>5} comment lines above {WIDEST} columns");
        let bound = WIDE_COMMENTS.iter().find(|(name, _)| name == area).map_or(0, |it| it.1);
        if *count > bound {
            above.push(format!("{area}: {count} comment lines above {WIDEST} columns, at most {bound}"));
        }
    }
    assert!(above.is_empty(), "{}", above.join("\n"));
}
