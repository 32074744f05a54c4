//! Which shim is the real one: by configuration, or by the name the wrapper was called by.

use std::env;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

const PREFIX: &str = "containerd-shim-";
const WRAPPER: &str = "coroner";
const SUFFIX: &str = "-v2";
/// The shim of a wrapper that was called by no other's name.
const USUAL: &str = "runc";

/// Why there is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InnerError {
    #[error("{0} is not beside the wrapper and not in PATH: set `inner` in /etc/coroner/shim.toml")]
    Nowhere(String),
    #[error("`inner` is {0}, which is the wrapper itself")]
    Itself(PathBuf),
}

/// How the wrapper was called.
#[derive(Debug)]
pub(crate) struct Called {
    /// `kata` of `containerd-shim-coroner-kata-v2`.
    pub(crate) name: Option<String>,
    path: PathBuf,
}

impl Called {
    pub(crate) fn of(path: &Path) -> Self {
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let middle = file.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(SUFFIX));
        let name = middle.and_then(|middle| middle.strip_prefix(WRAPPER)?.strip_prefix('-'));
        Self { name: name.filter(|name| !name.is_empty()).map(str::to_owned), path: path.to_owned() }
    }

    /// The real shim's path.
    pub(crate) fn inner(&self, configured: Option<&Path>) -> Result<PathBuf, InnerError> {
        let own = env::current_exe().and_then(|path| path.canonicalize()).ok();
        let is_itself = |path: &Path| own.is_some() && path.canonicalize().ok() == own;
        if let Some(path) = configured {
            return if is_itself(path) {
                Err(InnerError::Itself(path.to_owned()))
            } else {
                Ok(path.to_owned())
            };
        }
        let file = format!("{PREFIX}{}{SUFFIX}", self.name.as_deref().unwrap_or(USUAL));
        let beside = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_owned);
        let search = env::var_os("PATH").unwrap_or_default();
        beside
            .into_iter()
            .chain(env::split_paths(&search))
            .map(|folder| folder.join(&file))
            .find(|path| access(path, Access::EXEC_OK).is_ok() && !path.is_dir() && !is_itself(path))
            .ok_or(InnerError::Nowhere(file))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_name_is_between_the_wrappers_and_the_version() {
        for (path, expect) in [
            ("/usr/bin/containerd-shim-coroner-v2", None),
            ("containerd-shim-coroner-kata-v2", Some("kata")),
            ("/x/containerd-shim-coroner-kata-qemu-v2", Some("kata-qemu")),
            ("containerd-shim-runc-v2", None),
            ("containerd-shim-coroner--v2", None),
            ("", None),
        ] {
            assert_eq!(Called::of(Path::new(path)).name.as_deref(), expect, "{path}");
        }
    }

    #[test]
    fn the_shim_beside_the_wrapper_goes_first_and_the_wrapper_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let shim = folder.path().join("containerd-shim-odd-v2");
        let called = Called::of(&folder.path().join("containerd-shim-coroner-odd-v2"));
        assert_eq!(called.inner(None), Err(InnerError::Nowhere("containerd-shim-odd-v2".to_owned())));
        fs::write(&shim, "").unwrap();
        fs::set_permissions(&shim, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(called.inner(None), Ok(shim));
        let own = env::current_exe().unwrap();
        assert_eq!(called.inner(Some(&own)), Err(InnerError::Itself(own.clone())));
        assert_eq!(called.inner(Some(Path::new("/x"))), Ok(PathBuf::from("/x")));
    }
}
