//! Builds the book of `docs/` with mdBook, which is installed once into the cache.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};

use crate::cache::cached;
use crate::{process, workspace};

const VERSION: &str = "0.5.4";

/// Builds the book into the target folder `target-book`; its front page is `html/index.html`.
pub(crate) fn build() -> anyhow::Result<()> {
    let book = workspace::target_dir("book").join("html");
    if book.exists() {
        fs::remove_dir_all(&book).with_context(|| format!("cannot remove {}", book.display()))?;
    }
    let mut command = std::process::Command::new(mdbook()?);
    process::run(command.current_dir(workspace::root()).args(["build", "docs", "--dest-dir"]).arg(&book))?;
    let front = book.join("index.html");
    if !front.exists() {
        bail!("mdbook left no {}: is README.md in docs/SUMMARY.md?", front.display());
    }
    println!("{}", front.display());
    Ok(())
}

/// mdBook without its server, watcher and search index, none of which the gate needs. Built without
/// optimization: it runs for half a second, and its build is what takes the time.
fn mdbook() -> anyhow::Result<PathBuf> {
    let folder = cached(&format!("mdbook-{VERSION}"), |folder| {
        let target = folder.join("target");
        let mut install = workspace::cargo();
        install.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "0");
        install.args(["install", "mdbook", "--version", VERSION, "--locked", "--debug"]);
        process::run(install.args(["--no-default-features", "--root"]).arg(folder))?;
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
    })?;
    Ok(folder.join("bin/mdbook"))
}
