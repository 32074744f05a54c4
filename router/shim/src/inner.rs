//! Finds the inner shim, which is never the wrapper itself under another name.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use coroner_shim_config::WrapperName;

/// Why no inner shim was found. The pod does not start: a fallback to another runtime would be
/// unsafe.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InnerError {
    /// Neither beside the wrapper nor in `PATH`.
    #[error("no `{0}` beside the wrapper or in PATH, and no `inner` in the configuration")]
    Nowhere(String),
    /// `inner` names the wrapper, which would start itself without end.
    #[error("`inner` is `{0}`, which is the wrapper itself")]
    Itself(PathBuf),
    /// The wrapper's own file cannot be read.
    #[error("cannot read the wrapper's own file: {0}")]
    Own(#[source] io::Error),
}

/// The places that are searched.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    /// As the wrapper was called.
    pub(crate) called_as: &'a OsStr,
    /// The wrapper's own file.
    pub(crate) own: &'a Path,
    /// `PATH`.
    pub(crate) path: Option<OsString>,
}

impl Lookup<'_> {
    /// Finds the inner shim: the configured one, or by its name beside the wrapper, or in `PATH`.
    pub(crate) fn find(&self, configured: Option<&Path>, name: &WrapperName) -> Result<PathBuf, InnerError> {
        if let Some(inner) = configured {
            // The kernel reports a missing file when it is executed.
            return match inner.exists() && self.is_own(inner)? {
                true => Err(InnerError::Itself(inner.to_owned())),
                false => Ok(inner.to_owned()),
            };
        }
        let file = name.inner();
        let beside = [Path::new(self.called_as).parent(), self.own.parent()];
        let beside = beside.into_iter().flatten().filter(|folder| folder.is_absolute()).map(Path::to_owned);
        let path = self.path.as_ref().map(|path| env::split_paths(path).collect::<Vec<_>>());
        for folder in beside.chain(path.into_iter().flatten()) {
            let candidate = folder.join(&file);
            if runs(&candidate) && !self.is_own(&candidate)? {
                return Ok(candidate);
            }
        }
        Err(InnerError::Nowhere(file))
    }

    /// Whether a file is the wrapper: the same file, a link to it, or a copy. Two copies that find
    /// each other would loop.
    fn is_own(&self, candidate: &Path) -> Result<bool, InnerError> {
        let own = fs::metadata(self.own).map_err(InnerError::Own)?;
        let Ok(other) = fs::metadata(candidate) else { return Ok(false) };
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            return Ok(true);
        }
        Ok(own.len() == other.len()
            && fs::read(self.own).map_err(InnerError::Own)? == fs::read(candidate).unwrap_or_default())
    }
}

fn runs(candidate: &Path) -> bool {
    fs::metadata(candidate).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn inner_shim_found_beside_wrapper_or_in_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        program(&at("own/containerd-shim-coroner-v2"), "wrapper");
        program(&at("path/containerd-shim-runc-v2"), "runc");
        program(&at("path/containerd-shim-kata-v2"), "kata");
        let own = at("own/containerd-shim-coroner-v2");
        let lookup = Lookup { called_as: own.as_os_str(), own: &own, path: Some(at("path").into()) };
        let (plain, named) = (WrapperName::default(), |name: &str| {
            WrapperName::of(&at(&format!("containerd-shim-{name}-v2")))
        });
        assert_eq!(lookup.find(None, &plain).unwrap(), at("path/containerd-shim-runc-v2"));
        for kata in [named("coroner-kata"), named("kata")] {
            assert_eq!(lookup.find(None, &kata).unwrap(), at("path/containerd-shim-kata-v2"));
        }
        program(&at("own/containerd-shim-runc-v2"), "runc too");
        assert_eq!(lookup.find(None, &plain).unwrap(), at("own/containerd-shim-runc-v2"));
        assert_eq!(lookup.find(Some(Path::new("/x")), &plain).unwrap(), Path::new("/x"));
        assert!(matches!(lookup.find(None, &named("gone")), Err(InnerError::Nowhere(_))));
    }

    #[test]
    fn wrapper_never_finds_itself_or_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        let own = at("own/containerd-shim-runc-v2");
        program(&own, "wrapper");
        program(&at("copy/containerd-shim-runc-v2"), "wrapper");
        program(&at("real/containerd-shim-runc-v2"), "shim!!!");
        fs::create_dir(at("link")).unwrap();
        std::os::unix::fs::symlink(&own, at("link/containerd-shim-runc-v2")).unwrap();
        let path = env::join_paths([at("link"), at("copy"), at("real")]).unwrap();
        let lookup = Lookup { called_as: own.as_os_str(), own: &own, path: Some(path) };
        let name = WrapperName::of(&own);
        assert_eq!(lookup.find(None, &name).unwrap(), at("real/containerd-shim-runc-v2"));
        let link = at("link/containerd-shim-runc-v2");
        assert!(matches!(lookup.find(Some(&link), &name), Err(InnerError::Itself(_))));
    }
}
