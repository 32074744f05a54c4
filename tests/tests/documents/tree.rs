//! The files of the tree, as a person sees them.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders that hold nothing that was written here, and this folder, which lists the words to avoid.
const LEFT_OUT: &[&str] = &["src/generated", "tests/tests/documents"];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every file below `root`, in order, but for hidden folders and what builds leave behind.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(root, &mut found);
    assert!(found.len() > 100, "the walk found the tree: {}", root.display());
    found.sort();
    found
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let built = name == "target" || name.starts_with("target-") || name == "artifacts";
        if name.starts_with('.') || built || LEFT_OUT.iter().any(|it| path.ends_with(it)) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}
