//! The programs of a release: containerd, ctr, and what containerd finds in its PATH.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::setting::Release;
use crate::binary;
use crate::root::Root;

/// How the programs of a release are started.
#[derive(Debug)]
pub(super) enum Programs {
    /// From this machine's PATH.
    Host,
    /// In a root of their own, with all that they load and start.
    Root(Root),
    /// From this folder; what is not in it, from this machine's PATH.
    Folder(PathBuf),
}

impl Programs {
    pub(super) async fn of(release: &Release, log: &Path) -> Result<Self> {
        Ok(match release {
            Release::Host => Self::Host,
            Release::Trixie => Self::Root(Root::start(&made("trixie")?, log).await?),
            Release::Upstream(version) => Self::Folder(made(version)?),
        })
    }

    pub(super) fn command(&self, program: &str) -> Command {
        match self {
            Self::Host => Command::new(program),
            Self::Root(root) => root.command(program),
            Self::Folder(folder) => {
                let own = folder.join(program);
                if own.exists() { Command::new(own) } else { Command::new(program) }
            }
        }
    }

    /// The PATH of containerd and its shims, with `first` before all others. Both find the shim
    /// there.
    pub(super) fn search_path(&self, first: PathBuf) -> Result<OsString> {
        let usual = env::var_os("PATH").context("PATH is not set")?;
        let own = match self {
            Self::Folder(folder) => Some(folder.clone()),
            Self::Host | Self::Root(_) => None,
        };
        Ok(env::join_paths([first].into_iter().chain(own).chain(env::split_paths(&usual)))?)
    }
}

/// The folder that `cargo xtask next NAME` has made.
fn made(name: &str) -> Result<PathBuf> {
    let folder = binary::target("next")?.join(name);
    ensure!(folder.exists(), "{} is missing: run `cargo xtask next {name}` first", folder.display());
    fs::canonicalize(&folder).with_context(|| format!("finding {}", folder.display()))
}
