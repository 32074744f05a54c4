//! Records of pods that started without the router. The wrapper writes them, the router lists them.
//!
//! A record is one file, `unmanaged/NAMESPACE:ID` beside the wrapper's `socket`. Its lines are the
//! bundle and the reason. containerd removes the bundle with the container: a record without its
//! bundle is over.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Bytes of one record at most; a path has 4,096.
const MOST: u64 = 16 << 10;
/// Bytes of a file's name: limits.h.
const NAME_MAX: usize = 255;

/// A start without the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnmanagedStart {
    /// containerd's namespace.
    pub namespace: String,
    /// Id of the container: of a pod, the sandbox's.
    pub id: String,
    /// The container's bundle, an absolute path.
    pub bundle: PathBuf,
    /// Why the router was not used.
    pub reason: String,
}

/// The folder of the records for a router's socket.
pub fn folder(socket: &Path) -> PathBuf {
    socket.with_file_name("unmanaged")
}

/// Removes the record of an earlier container of this id.
pub fn remove(folder: &Path, namespace: &str, id: &str) {
    if let Some(name) = file_name(namespace, id) {
        // Nearly always there is none.
        fs::remove_file(folder.join(name)).ok();
    }
}

impl UnmanagedStart {
    /// Writes the record, and creates the folder. A record of an earlier start under the same id is
    /// replaced.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let name = file_name(&self.namespace, &self.id).ok_or(ErrorKind::InvalidInput)?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        is_own(folder)?;
        let one_line = self.reason.replace(['\n', '\r'], " ");
        let text = format!("{}\n{one_line}\n", self.bundle.display());
        // The router may read it at any moment: it gets its name when it is whole.
        let partial = folder.join(format!(".{}", std::process::id()));
        fs::remove_file(&partial).ok();
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&partial, folder.join(name)).inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    /// The record of this container and when it was written. The container may be gone.
    pub fn read(folder: &Path, namespace: &str, id: &str) -> Option<(Self, SystemTime)> {
        let file = File::open(folder.join(file_name(namespace, id)?)).ok()?;
        let written = file.metadata().and_then(|it| it.modified()).ok()?;
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let (bundle, reason) = text.split_once('\n')?;
        let bundle = Some(PathBuf::from(bundle)).filter(|it| it.is_absolute())?;
        let (namespace, id) = (namespace.to_owned(), id.to_owned());
        Some((Self { namespace, id, bundle, reason: reason.trim_end().to_owned() }, written))
    }

    /// The records of containers that live, by id. Those of containers that are gone are removed.
    pub fn list(folder: &Path) -> Vec<(Self, SystemTime)> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.filter_map(|it| it.file_name().into_string().ok());
        let mut records: Vec<_> = names
            .filter_map(|name| {
                let (namespace, id) = name.split_once(':')?;
                Self::read(folder, namespace, id)
            })
            .filter(|(record, _)| match fs::symlink_metadata(&record.bundle) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    remove(folder, &record.namespace, &record.id);
                    false
                }
                found => found.is_ok(),
            })
            .collect();
        records.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
        records
    }
}

/// `NAMESPACE:ID`. Both are containerd's identifiers; other characters could leave the folder.
fn file_name(namespace: &str, id: &str) -> Option<String> {
    let is_identifier = |text: &str| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
            && bytes.all(|it| it.is_ascii_alphanumeric() || b"_.-".contains(&it))
    };
    let name = format!("{namespace}:{id}");
    (is_identifier(namespace) && is_identifier(id) && name.len() <= NAME_MAX).then_some(name)
}

/// An error for a folder that another user could change: the wrapper writes as root.
fn is_own(folder: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == fs::metadata("/proc/self")?.uid() {
        return Ok(());
    }
    Err(io::Error::other(format!("{} is not a folder of this user", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(scratch: &Path, id: &str) -> UnmanagedStart {
        let bundle = scratch.join(format!("bundle-{id}"));
        fs::create_dir_all(&bundle).unwrap();
        let reason = "no answer\nwithin 2s".to_owned();
        UnmanagedStart { namespace: "k8s.io".to_owned(), id: id.to_owned(), bundle, reason }
    }

    #[test]
    fn record_is_listed_until_its_bundle_is_gone() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = folder(&scratch.path().join("run/shim.sock"));
        assert_eq!(folder, scratch.path().join("run/unmanaged"));
        assert_eq!(UnmanagedStart::list(&folder), []);
        for id in ["b", "a"] {
            start(scratch.path(), id).write(&folder).unwrap();
        }
        start(scratch.path(), "a").write(&folder).unwrap();
        let listed: Vec<_> = UnmanagedStart::list(&folder).into_iter().map(|(it, _)| it).collect();
        let expect = ["a", "b"].map(|id| UnmanagedStart {
            reason: "no answer within 2s".to_owned(),
            ..start(scratch.path(), id)
        });
        assert_eq!(listed, expect);
        fs::remove_dir(&listed[0].bundle).unwrap();
        assert!(UnmanagedStart::read(&folder, "k8s.io", "a").is_some(), "until it is listed");
        assert_eq!(UnmanagedStart::list(&folder).len(), 1);
        assert_eq!(UnmanagedStart::read(&folder, "k8s.io", "a"), None);
        remove(&folder, "moby", "b");
        assert_eq!(UnmanagedStart::list(&folder).len(), 1, "another namespace");
        remove(&folder, "k8s.io", "b");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }

    #[test]
    fn id_never_leaves_the_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("unmanaged");
        for id in ["", ".", "..", "../x", "a/b", ".hidden", "a:b", &"x".repeat(300)] {
            let record = UnmanagedStart { id: id.to_owned(), ..start(scratch.path(), "a") };
            assert_eq!(record.write(&folder).unwrap_err().kind(), ErrorKind::InvalidInput, "{id}");
            assert_eq!(UnmanagedStart::read(&folder, "k8s.io", id), None, "{id}");
        }
    }

    #[test]
    fn other_files_are_neither_listed_nor_removed() {
        let scratch = tempfile::tempdir().unwrap();
        for (name, text) in [("notes", "/\n"), ("k8s.io:x", ""), ("k8s.io:y", "relative\nr\n")] {
            fs::write(scratch.path().join(name), text).unwrap();
        }
        assert_eq!(UnmanagedStart::list(scratch.path()), []);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 3);
    }

    #[test]
    fn link_in_place_of_the_folder_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("unmanaged");
        std::os::unix::fs::symlink(scratch.path(), &folder).unwrap();
        let error = start(scratch.path(), "a").write(&folder).unwrap_err();
        assert!(error.to_string().contains("is not a folder of this user"), "{error}");
    }
}
