//! What was downloaded or built once, kept outside of the tree.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The folder `name` of the cache; `make` fills it in if it is not there.
pub(crate) fn cached(name: &str, make: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let folder = folder(name)?;
    if folder.exists() {
        println!("cached: {name}");
        return Ok(folder);
    }
    // Made beside and renamed: what is there is whole.
    let partial = folder.with_extension(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
    make(&partial)?;
    match fs::rename(&partial, &folder) {
        Ok(()) => Ok(folder),
        // Another run was quicker.
        Err(_) if folder.exists() => Ok(fs::remove_dir_all(&partial).map(|()| folder)?),
        Err(error) => Err(error).with_context(|| format!("cannot make {}", folder.display())),
    }
}

/// Whether the folder `name` is there, so that [`cached`] has nothing to make.
pub(crate) fn is_cached(name: &str) -> anyhow::Result<bool> {
    Ok(folder(name)?.exists())
}

fn folder(name: &str) -> anyhow::Result<PathBuf> {
    let home = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let Some(home) = home else { bail!("no folder for downloads: set XDG_CACHE_HOME or HOME") };
    Ok(home.join("coroner").join(name))
}

/// Links `at`, where the suites read it, to what is cached.
pub(crate) fn link(to: &Path, at: &Path) -> anyhow::Result<()> {
    if at.is_symlink() {
        fs::remove_file(at)?;
    }
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot link {}", at.display()))
}
