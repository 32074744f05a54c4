//! Circles of imports between the files of one package.
//!
//! An import is a path from `crate`, `super` or `self`, in a `use` or in the code, resolved to the
//! file that the longest part of it names. A file may import the files of the modules that it is
//! in: a module and its submodules are one unit. Tests are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders of the packages with files to read.
const FOLDERS: &[&str] = &["router", "guest-agent"];

/// A package's files, by the path of their modules.
type Files = BTreeMap<Vec<String>, String>;

/// Every circle of the package with these files, each sorted.
fn circles(files: &Files) -> Vec<Vec<String>> {
    let imports: BTreeMap<&[String], BTreeSet<&[String]>> =
        files.iter().map(|(module, text)| (module.as_slice(), imports(files, module, text))).collect();
    let reached: BTreeMap<&[String], BTreeSet<&[String]>> =
        imports.keys().map(|module| (*module, reached(&imports, module))).collect();
    let mut found = BTreeSet::new();
    for module in reached.keys() {
        let circle =
            reached.keys().filter(|it| reached[module].contains(*it) && reached[*it].contains(module));
        let circle: Vec<String> = circle.map(|it| it.join("::")).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// Every file that this one imports, directly or through others.
fn reached<'a>(
    imports: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>,
    from: &'a [String],
) -> BTreeSet<&'a [String]> {
    let (mut reached, mut left) = (BTreeSet::new(), vec![from]);
    while let Some(module) = left.pop() {
        for next in &imports[module] {
            if reached.insert(*next) {
                left.push(next);
            }
        }
    }
    reached
}

fn imports<'a>(files: &'a Files, module: &[String], text: &str) -> BTreeSet<&'a [String]> {
    let mut found = BTreeSet::new();
    for path in paths(text) {
        let mut words = path.as_slice();
        let mut base = match words.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => module.to_vec(),
            Some("super") => module[..module.len().saturating_sub(1)].to_vec(),
            _ => continue,
        };
        words = &words[1..];
        while words.first().is_some_and(|it| it == "super") {
            base.pop();
            words = &words[1..];
        }
        base.extend_from_slice(words);
        let longest = (0..=base.len()).rev().find_map(|length| files.get_key_value(&base[..length]));
        // A file below which this one is: its own module.
        found.extend(longest.map(|(file, _)| file.as_slice()).filter(|file| !module.starts_with(file)));
    }
    found
}

/// Every path in the code, a `use` with braces as one for each leaf.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for statement in code.split(';') {
        let start = statement.rfind("use ").filter(|at| {
            statement[..*at]
                .chars()
                .next_back()
                .is_none_or(|before| !before.is_alphanumeric() && before != '_')
        });
        if let Some(start) = start {
            found.extend(leaves(statement[start + "use ".len()..].trim()));
        }
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    found.extend(code.split(|c| !word(c)).filter(|it| it.contains("::")).map(split));
    found
}

fn split(path: &str) -> Vec<String> {
    path.split("::").map(|it| it.trim().to_owned()).filter(|it| !it.is_empty()).collect()
}

/// The paths of a `use`: `a::{b, c::{d}}` is `a::b` and `a::c::d`.
fn leaves(tree: &str) -> Vec<Vec<String>> {
    let Some((before, inside)) = tree.split_once('{') else {
        return vec![split(tree.split(" as ").next().unwrap_or_default())];
    };
    let (mut parts, mut depth, mut part) = (Vec::new(), 0, String::new());
    for c in inside.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => parts.push(std::mem::take(&mut part)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                part.push(c);
            }
        }
    }
    parts.push(part);
    let parts = parts.iter().map(|it| it.trim()).filter(|it| !it.is_empty());
    parts.flat_map(|part| leaves(&format!("{before}{part}"))).collect()
}

/// The files below a package's `src`.
fn files(source: &Path) -> Files {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(source, &mut found);
    let module = |path: &Path| {
        let path = path.strip_prefix(source).unwrap().with_extension("");
        let mut words: Vec<String> = path.iter().map(|it| it.to_string_lossy().into_owned()).collect();
        if words.last().is_some_and(|it| it == "mod" || it == "lib" || it == "main") {
            words.pop();
        }
        words
    };
    found.iter().map(|path| (module(path), fs::read_to_string(path).unwrap())).collect()
}

/// Folders of packages below a folder, by name.
fn packages(folder: &Path, found: &mut Vec<PathBuf>) {
    if folder.join("Cargo.toml").exists() && folder.join("src").exists() {
        found.push(folder.to_owned());
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_some_and(|it| it != "src" && it != "target") {
            packages(&path, found);
        }
    }
}

#[test]
fn files_of_a_package_import_each_other_one_way() {
    let root = super::root();
    let mut folders = Vec::new();
    FOLDERS.iter().for_each(|it| packages(&root.join(it), &mut folders));
    assert!(folders.len() > 10, "{folders:?}");
    let mut found = Vec::new();
    for folder in folders {
        let name = folder.strip_prefix(&root).unwrap().display().to_string();
        found.extend(circles(&files(&folder.join("src"))).into_iter().map(|it| (name.clone(), it)));
    }
    assert_eq!(found, [], "no file imports one that imports it, directly or through others");
}

#[test]
fn circle_is_found_through_braces_super_and_code() {
    let files = |texts: &[(&str, &str)]| -> Files {
        texts.iter().map(|(module, text)| (split(module), (*text).to_owned())).collect()
    };
    let two = |a: &str, b: &str| circles(&files(&[("", "mod a;\nmod b;"), ("a", a), ("b", b)]));
    let circle = [vec!["a".to_owned(), "b".to_owned()]];
    assert_eq!(two("use crate::b::B;", "use super::a::A;"), circle);
    assert_eq!(two("use crate::{b::{self, B}, c};", "fn b() -> crate::a::A {}"), circle);
    let tested = "// use crate::a::A;\nmod tests {\nuse crate::a::A;";
    assert!(two("use crate::b::B;", tested).is_empty());
    // A module and the modules in it are one unit, and so is the root.
    let nested = files(&[("", "mod a;"), ("a", "use self::b::B;"), ("a::b", "use super::A;\nuse crate::X;")]);
    assert!(circles(&nested).is_empty());
    let three = files(&[("a", "use crate::b::x;"), ("b", "use crate::c::x;"), ("c", "use crate::a::x;")]);
    assert_eq!(circles(&three).concat(), ["a", "b", "c"]);
}
