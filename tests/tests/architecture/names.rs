//! One name means one thing: no two types of the router share a name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The types that a file defines. Associated types are left out: traits name them.
fn types(text: &str) -> impl Iterator<Item = &str> {
    let keywords = ["struct ", "enum ", "trait ", "union "];
    text.lines().filter_map(move |line| {
        let (is_nested, line) = (line.starts_with(' '), line.trim_start());
        let line = match line.strip_prefix("pub(") {
            Some(rest) => rest.split_once(") ")?.1,
            None => line.strip_prefix("pub ").unwrap_or(line),
        };
        let alias = line.strip_prefix("type ").filter(|_| !is_nested);
        let name = keywords.iter().find_map(|keyword| line.strip_prefix(keyword)).or(alias)?;
        name.split(|c: char| !c.is_alphanumeric()).next()
    })
}

/// The names of several types, each with its files.
fn shared(files: &[(PathBuf, String)]) -> BTreeMap<&str, Vec<&Path>> {
    let mut names: BTreeMap<&str, Vec<&Path>> = BTreeMap::new();
    for (path, text) in files {
        types(text).for_each(|name| names.entry(name).or_default().push(path));
    }
    names.retain(|_, files| files.len() > 1);
    names
}

fn files(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

#[test]
fn type_name_is_used_once_in_the_router() {
    let mut found = Vec::new();
    files(&super::root().join("router"), &mut found);
    let names = shared(&found);
    assert!(names.is_empty(), "{names:#?}");
}

#[test]
fn shared_type_name_is_found() {
    let check = |texts: &[&str], expect: &[&str]| {
        let files: Vec<_> = texts.iter().map(|it| (PathBuf::new(), (*it).to_owned())).collect();
        assert_eq!(shared(&files).into_keys().collect::<Vec<_>>(), expect, "{texts:?}");
    };
    check(&["struct A;", "pub enum A {"], &["A"]);
    check(&["pub(crate) struct A<T>(T);", "    pub(super) trait A: B {"], &["A"]);
    check(&["struct A;", "struct AB;\nenum B {}"], &[]);
    check(&["type A = B;", "pub type A = C;"], &["A"]);
    check(&["    type Err = A;", "    type Err = B;"], &[]);
    check(&["// struct A;", "struct A;"], &[]);
}
