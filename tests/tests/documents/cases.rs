//! The page of cases: each test that it names exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::tree;

const PAGE: &str = "docs/internals/cases.md";

/// A row of the page's first table: the case, and its tests as `SUITE/FUNCTION`.
fn rows(page: &str) -> Vec<(String, Vec<String>)> {
    let proven = page.split("\n## ").find(|section| section.starts_with("Proven")).unwrap_or_default();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, case, _, tests, _] = cells[..] else { return None };
        let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned);
        Some((case.to_owned(), tests.collect()))
    };
    // Below the head and its rule.
    proven.lines().filter(|line| line.starts_with('|')).skip(2).filter_map(row).collect()
}

/// The suite of a file, else its package without `coroner-`.
fn suite(root: &Path, path: &Path) -> Option<String> {
    let below: Vec<&str> = path.strip_prefix(root).ok()?.iter().filter_map(|it| it.to_str()).collect();
    let tests = below.iter().rposition(|it| *it == "tests").filter(|_| !below.contains(&"src"));
    if let Some(name) = tests.and_then(|at| below.get(at + 1)) {
        return Some(name.trim_end_matches(".rs").to_owned());
    }
    let manifest = path.ancestors().map(|it| it.join("Cargo.toml")).find(|it| it.exists())?;
    let text = fs::read_to_string(manifest).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("name = \""))?.trim_end_matches('"');
    Some(name.strip_prefix("coroner-").unwrap_or(name).to_owned())
}

/// The functions with an attribute `test`.
fn tests(text: &str) -> Vec<&str> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn ")) {
            let name = rest.split(['(', '<']).next();
            found.extend(name.filter(|_| std::mem::take(&mut is_test)));
        }
    }
    found
}

#[test]
fn page_of_cases_names_tests_that_exist() {
    let root = tree::root();
    let mut known = BTreeSet::new();
    for path in tree::files(&root).into_iter().filter(|it| it.extension().is_some_and(|it| it == "rs")) {
        let Some(suite) = suite(&root, &path) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        known.extend(tests(&text).into_iter().map(|name| format!("{suite}/{name}")));
    }
    let rows = rows(&fs::read_to_string(root.join(PAGE)).unwrap());
    let mut wrong = Vec::new();
    for (case, tests) in &rows {
        if tests.is_empty() {
            wrong.push(format!("{case}: names no test"));
        }
        let missing = tests.iter().filter(|test| !known.contains(*test));
        wrong.extend(missing.map(|test| format!("{case}: {test} does not exist")));
    }
    println!("{} cases on the page, {} tests in the tree", rows.len(), known.len());
    assert!(rows.len() > 20 && wrong.is_empty(), "{PAGE}:\n{}", wrong.join("\n"));
}

#[test]
fn rows_and_tests_are_read_as_written() {
    let page = "# A\n\n## Proven\n\n| case | right | tests |\n|---|---|---|\n| a | b | `s/t`, `s/u` |\n| c | d | |\n\n## Open\n\n| e | f | g |\n";
    let read = rows(page);
    assert_eq!(read[0], ("a".to_owned(), vec!["s/t".to_owned(), "s/u".to_owned()]));
    assert_eq!(read[1..], [("c".to_owned(), Vec::new())]);
    let text = "fn a() {}\n    #[test]\n    #[cfg(unix)]\n    fn b() {}\n#[tokio::test(start_paused = true)]\nasync fn c() {}\nfn d() {}";
    assert_eq!(tests(text), ["b", "c"]);
    let root = tree::root();
    let suite = |path: &str| suite(&root, &root.join(path)).unwrap();
    assert_eq!(suite("tests/tests/routing/shims.rs"), "routing");
    assert_eq!(suite("tests/tests/deathtest.rs"), "deathtest");
    assert_eq!(suite("tests/load/tests/policies/museum.rs"), "policies");
    assert_eq!(suite("router/journal/src/tests/mod.rs"), "journal");
    assert_eq!(suite("plugins/causal-oom/src/tests.rs"), "policy-causal-oom");
}
