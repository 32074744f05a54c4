//! Every link leads somewhere: from page to page, from README into the book, and from code to a page.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::tree;

/// A page: the anchors of its headings, and the links on it.
struct Page {
    anchors: BTreeSet<String>,
    headings: BTreeSet<String>,
    links: Vec<(usize, String)>,
}

impl Page {
    fn read(text: &str) -> Self {
        let mut page = Self { anchors: BTreeSet::new(), headings: BTreeSet::new(), links: Vec::new() };
        for (line, text) in prose(text) {
            if let Some(heading) = text.strip_prefix('#') {
                let heading = heading.trim_start_matches('#').trim();
                let anchor = anchor(heading);
                let number = (0..).find(|n| !page.anchors.contains(&numbered(&anchor, *n)));
                page.anchors.insert(numbered(&anchor, number.unwrap_or(0)));
                page.headings.insert(heading.to_owned());
            }
            page.links.extend(links(text).into_iter().map(|link| (line, link)));
        }
        page
    }
}

/// The lines of a page that are not in a fenced block, with their numbers.
pub(crate) fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((at + 1, line));
        }
    }
    lines
}

/// The second heading of the same words is `words-1`.
fn numbered(anchor: &str, number: usize) -> String {
    if number == 0 { anchor.to_owned() } else { format!("{anchor}-{number}") }
}

/// As forges and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .collect::<String>();
    kept.replace(' ', "-")
}

/// The targets of `[text](target)`, those outside of the tree left out.
fn links(line: &str) -> Vec<String> {
    let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|it| !it.contains("://") && !it.starts_with("mailto:")).map(str::to_owned).collect()
}

/// `a/b/../c` without its detour.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        if part == Component::ParentDir {
            tidy.pop();
        } else {
            tidy.push(part);
        }
    }
    tidy
}

fn pages(root: &Path) -> BTreeMap<PathBuf, Page> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|it| it == "md");
    let read = |path: PathBuf| {
        let page = Page::read(&fs::read_to_string(&path).unwrap());
        (path.strip_prefix(root).unwrap().to_owned(), page)
    };
    tree::files(root).into_iter().filter(is_page).map(read).collect()
}

#[test]
fn links_of_pages_lead_to_files_and_headings() {
    let root = tree::root();
    let pages = pages(&root);
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, page) in &pages {
        for (line, link) in &page.links {
            count += 1;
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { path.clone() } else { tidy(&path.parent().unwrap().join(file)) };
            let in_book = |path: &Path| path.starts_with("docs");
            let problem = if !root.join(&target).exists() {
                "is not a file"
            } else if in_book(path) && !in_book(&target) {
                "leaves the book; name the file instead"
            } else if !heading.is_empty()
                && !pages.get(&target).is_some_and(|it| it.anchors.contains(heading))
            {
                "is not a heading there"
            } else {
                continue;
            };
            wrong.push(format!("{}:{line}: {link} {problem}", path.display()));
        }
    }
    println!("{count} links on {} pages", pages.len());
    assert!(count > 50 && wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_page_is_in_the_summary() {
    let root = tree::root();
    let pages = pages(&root);
    let summary = &pages[Path::new("docs/SUMMARY.md")];
    let listed: BTreeSet<PathBuf> =
        summary.links.iter().map(|(_, link)| Path::new("docs").join(link)).collect();
    let there: BTreeSet<PathBuf> =
        pages.keys().filter(|it| it.starts_with("docs") && !it.ends_with("SUMMARY.md")).cloned().collect();
    assert_eq!(listed, there, "left: docs/SUMMARY.md, right: the files");
    assert_eq!(summary.links.len(), listed.len(), "a page is listed twice");
}

#[test]
fn code_names_pages_and_headings_that_exist() {
    let root = tree::root();
    let pages = pages(&root);
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in tree::files(&root) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (line, text) in text.lines().enumerate() {
            for (page, heading) in references(text) {
                count += 1;
                let known = pages.get(Path::new(&page));
                let problem = match (known, &heading) {
                    (None, _) => "is not a page",
                    (Some(known), Some(heading))
                        if !known.headings.contains(heading) && !known.anchors.contains(heading) =>
                    {
                        "has no such heading"
                    }
                    _ => continue,
                };
                wrong.push(format!("{}:{}: {page} {problem}: {heading:?}", path.display(), line + 1));
            }
        }
    }
    println!("{count} references from files to pages");
    assert!(count > 30 && wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `docs/PAGE.md` in a line, with the heading in `docs/PAGE.md#heading` or `docs/PAGE.md, "Heading"`.
fn references(line: &str) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    for (at, _) in line.match_indices("docs/") {
        // A part of another path, `../docs/` say, is resolved by what reads it.
        let own = line[..at].ends_with(|c: char| c.is_alphanumeric() || "/._-".contains(c));
        let rest = &line[at..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/_-.".contains(c))).unwrap_or(rest.len());
        let page = rest[..end].trim_end_matches('.');
        if own || !page.ends_with(".md") {
            continue;
        }
        let after = &rest[page.len()..];
        let heading = if let Some(anchor) = after.strip_prefix('#') {
            let end =
                anchor.find(|c: char| !(c.is_alphanumeric() || "-_".contains(c))).unwrap_or(anchor.len());
            Some(anchor[..end].to_owned())
        } else {
            after
                .strip_prefix(", \"")
                .and_then(|it| it.split_once('"'))
                .map(|(heading, _)| heading.to_owned())
        };
        found.push((page.to_owned(), heading));
    }
    found
}

#[test]
fn pages_name_files_that_exist() {
    let root = tree::root();
    let top =
        ["router/", "guest-agent/", "sdk/", "plugins/", "examples/", "tests/", "xtask/", "fuzz/", ".ci/"];
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in pages(&root).into_keys() {
        if path.ends_with("CHANGELOG.md") {
            continue; // It names what was there at the time.
        }
        let text = fs::read_to_string(root.join(&path)).unwrap();
        for (line, text) in prose(&text) {
            for name in text.split('`').skip(1).step_by(2) {
                let is_pattern =
                    name.contains(|c: char| c.is_whitespace() || "*<>{}".contains(c) || c.is_uppercase());
                if is_pattern || !top.iter().any(|it| name.starts_with(it)) {
                    continue;
                }
                count += 1;
                let file = name.split(['#', ':']).next().unwrap();
                if !root.join(file).exists() {
                    wrong.push(format!("{}:{line}: {name}", path.display()));
                }
            }
        }
    }
    println!("{count} files named on pages");
    assert!(count > 20 && wrong.is_empty(), "not in the tree:\n{}", wrong.join("\n"));
}

#[test]
fn code_map_names_every_package() {
    let root = tree::root();
    let workspace = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let members = workspace.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let map = fs::read_to_string(root.join("docs/internals/architecture.md")).unwrap();
    // Policies are packages too, and are built apart: their folder is on the map.
    let members = members.split('"').skip(1).step_by(2);
    let missing: Vec<&str> = members
        .filter(|it| !it.starts_with("plugins/") && !it.starts_with("examples/"))
        .filter(|it| !map.contains(&format!("| `{it}/` |")))
        .collect();
    assert!(missing.is_empty(), "docs/internals/architecture.md, \"Packages\", lacks {missing:?}");
}

#[test]
fn anchors_and_references_are_read_as_written() {
    assert_eq!(anchor("`ruled`: one line a signal"), "ruled-one-line-a-signal");
    assert_eq!(anchor("Kata's calls"), "katas-calls");
    assert_eq!(links("[a](b.md#c), [d](https://e) and [f](../g.md)"), ["b.md#c", "../g.md"]);
    let page = Page::read("# A\n## B b\n```\n# no\n```\n## B b\n");
    assert_eq!(page.anchors, ["a", "b-b", "b-b-1"].map(str::to_owned).into());
    let read = |line: &str| references(line).pop().unwrap();
    assert_eq!(read("see docs/a/b.md."), ("docs/a/b.md".to_owned(), None));
    assert_eq!(read("docs/a.md, \"The journal\""), ("docs/a.md".to_owned(), Some("The journal".to_owned())));
    assert_eq!(read("docs/a.md#the-journal)"), ("docs/a.md".to_owned(), Some("the-journal".to_owned())));
    assert!(references("\"../../docs/a.md\"").is_empty());
}
