//! Which shim is the inner one: never the wrapper itself, under whatever name.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Why there is no inner shim. Such a pod does not start: another runtime than the one that was meant is no way to fail.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InnerError {
    /// Neither beside the wrapper nor in `PATH`.
    #[error("no `{0}` beside the wrapper or in PATH, and no `inner` in the configuration")]
    Nowhere(String),
    /// `inner` names the wrapper: started, it would start itself for ever.
    #[error("`inner` is `{0}`, which is the wrapper itself")]
    Itself(PathBuf),
    /// The wrapper's own file cannot be read.
    #[error("cannot read the wrapper's own file: {0}")]
    Own(#[source] io::Error),
}

/// NAME, of a wrapper called as `containerd-shim-coroner-NAME-v2`.
pub(crate) fn name(called_as: &OsStr) -> Option<String> {
    let file = Path::new(called_as).file_name()?.to_str()?;
    let name = file.strip_prefix("containerd-shim-coroner-")?.strip_suffix("-v2")?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Where to look.
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
    pub(crate) fn find(&self, configured: Option<&Path>, name: Option<&str>) -> Result<PathBuf, InnerError> {
        if let Some(inner) = configured {
            // One that is not there is told by the kernel, when it is to be run.
            return match inner.exists() && self.is_own(inner)? {
                true => Err(InnerError::Itself(inner.to_owned())),
                false => Ok(inner.to_owned()),
            };
        }
        let file = format!("containerd-shim-{}-v2", name.unwrap_or("runc"));
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

    /// Whether a file is the wrapper: the same file, a link to it, or a copy. Two copies that find each other would loop.
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
    fn the_name_is_that_of_the_wrapper() {
        for (called, expect) in [
            ("containerd-shim-coroner-v2", None),
            ("/usr/bin/containerd-shim-coroner-kata-v2", Some("kata")),
            ("containerd-shim-coroner-kata-fc-v2", Some("kata-fc")),
            ("containerd-shim-coroner--v2", None),
            ("containerd-shim-runc-v2", None),
            ("/", None),
        ] {
            assert_eq!(name(OsStr::new(called)).as_deref(), expect, "{called}");
        }
    }

    #[test]
    fn the_inner_shim_is_beside_the_wrapper_or_in_path() {
        let folder = tempfile::tempdir().unwrap();
        let at = |path: &str| folder.path().join(path);
        program(&at("own/containerd-shim-coroner-v2"), "wrapper");
        program(&at("path/containerd-shim-runc-v2"), "runc");
        program(&at("path/containerd-shim-kata-v2"), "kata");
        let own = at("own/containerd-shim-coroner-v2");
        let lookup = Lookup { called_as: own.as_os_str(), own: &own, path: Some(at("path").into()) };
        assert_eq!(lookup.find(None, None).unwrap(), at("path/containerd-shim-runc-v2"));
        assert_eq!(lookup.find(None, Some("kata")).unwrap(), at("path/containerd-shim-kata-v2"));
        program(&at("own/containerd-shim-runc-v2"), "runc too");
        assert_eq!(lookup.find(None, None).unwrap(), at("own/containerd-shim-runc-v2"));
        assert_eq!(lookup.find(Some(Path::new("/x")), None).unwrap(), Path::new("/x"));
        assert!(matches!(lookup.find(None, Some("gone")), Err(InnerError::Nowhere(_))));
    }

    #[test]
    fn the_wrapper_never_finds_itself_a_link_or_a_copy() {
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
        assert_eq!(lookup.find(None, None).unwrap(), at("real/containerd-shim-runc-v2"));
        let link = at("link/containerd-shim-runc-v2");
        assert!(matches!(lookup.find(Some(&link), None), Err(InnerError::Itself(_))));
    }
}
