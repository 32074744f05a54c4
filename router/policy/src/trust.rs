//! The trust check of files: a user who can write a policy controls rulings, and a user who can
//! write compiled code controls the router.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Writable for group or others.
const WRITABLE: u32 = 0o022;
/// In a directory with this bit, users cannot remove or rename files of others.
const STICKY: u32 = 0o1000;

/// Why a user other than root and the router's own could change or replace what is in a directory.
pub(super) fn directory(path: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    own(&real)?;
    for above in real.ancestors().skip(1) {
        let meta = fs::metadata(above).map_err(|error| format!("{}: {error}", above.display()))?;
        owner(above, &meta)?;
        if meta.mode() & WRITABLE != 0 && meta.mode() & STICKY == 0 {
            return Err(writable(above, &meta));
        }
    }
    Ok(())
}

/// The same for a file, wherever its links lead; `within` is a directory that was checked.
pub(super) fn file(path: &Path, within: &Path) -> Result<(), String> {
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    own(&real)?;
    match (real.parent(), within.canonicalize()) {
        (Some(parent), Ok(within)) if parent != within => directory(parent),
        _ => Ok(()),
    }
}

fn own(path: &Path) -> Result<(), String> {
    let meta = fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?;
    owner(path, &meta)?;
    if meta.mode() & WRITABLE != 0 { Err(writable(path, &meta)) } else { Ok(()) }
}

fn owner(path: &Path, meta: &fs::Metadata) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() == 0 || meta.uid() == own {
        return Ok(());
    }
    Err(format!(
        "{} belongs to user {}, not to root or the router's user {own}: chown root {0}",
        path.display(),
        meta.uid()
    ))
}

fn writable(path: &Path, meta: &fs::Metadata) -> String {
    format!("{} can be written by others (mode {:o}): chmod go-w {0}", path.display(), meta.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn file_writable_by_others_refused_with_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, policy) = (folder.path().join("inner"), folder.path().join("inner/50-x.wasm"));
        fs::create_dir(&inner).unwrap();
        fs::write(&policy, "x").unwrap();
        mode(&policy, 0o644);
        assert_eq!(directory(&inner), Ok(()));
        assert_eq!(file(&policy, &inner), Ok(()));
        mode(&policy, 0o664);
        let error = file(&policy, &inner).unwrap_err();
        assert!(error.contains("mode 664") && error.contains("chmod go-w"), "{error}");
        mode(&inner, 0o777);
        assert!(directory(&inner).unwrap_err().contains("inner can be written"));
        mode(&inner, 0o755);
        mode(folder.path(), 0o777);
        assert!(directory(&inner).is_err(), "a user who can write above it can replace it");
        mode(folder.path(), 0o1777);
        assert_eq!(directory(&inner), Ok(()));
        assert!(directory(&folder.path().join("absent")).unwrap_err().contains("No such file"));
    }

    #[test]
    fn symlink_trusted_as_its_target() {
        let folder = tempfile::tempdir().unwrap();
        let (good, bad) = (folder.path().join("good"), folder.path().join("bad"));
        for path in [&good, &bad] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("50-x.wasm"), "x").unwrap();
        }
        let link = good.join("60-y.wasm");
        std::os::unix::fs::symlink(bad.join("50-x.wasm"), &link).unwrap();
        assert_eq!(file(&link, &good), Ok(()));
        mode(&bad, 0o777);
        assert!(file(&link, &good).unwrap_err().contains("bad can be written"));
    }
}
