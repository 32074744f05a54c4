//! Names of cached folders: what a step is made of, as a digest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::workspace;

/// The digest of a step's inputs. Each input has a name and a length before it, so that no two
/// lists of inputs give the same bytes.
#[derive(Default)]
pub(super) struct Key(Sha256);

impl Key {
    pub(super) fn text(mut self, name: &str, value: &str) -> Self {
        self.add(name, value.as_bytes());
        self
    }

    pub(super) fn file(mut self, path: &Path) -> anyhow::Result<Self> {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        self.add_file(&name.to_string_lossy(), path)?;
        Ok(self)
    }

    /// All files below `folder`, by their paths in it.
    pub(super) fn folder(mut self, folder: &Path) -> anyhow::Result<Self> {
        self.add_folder(folder, folder)?;
        Ok(self)
    }

    /// `prefix` and twelve digits of the digest.
    pub(super) fn name(self, prefix: &str) -> String {
        let digest = self.0.finalize();
        let digits: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("{prefix}-{digits}")
    }

    fn add_folder(&mut self, root: &Path, folder: &Path) -> anyhow::Result<()> {
        for path in workspace::entries(folder)? {
            if path.is_dir() {
                self.add_folder(root, &path)?;
            } else {
                let name = path.strip_prefix(root).expect("it is below the root");
                self.add_file(&name.to_string_lossy(), &path)?;
            }
        }
        Ok(())
    }

    /// A file with its name and whether it can be run.
    fn add_file(&mut self, name: &str, path: &Path) -> anyhow::Result<()> {
        let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mode = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let kind = if mode.permissions().mode() & 0o111 == 0 { "data" } else { "program" };
        self.add(name, kind.as_bytes());
        self.add(name, &content);
        Ok(())
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            self.0.update(u64::try_from(part.len()).expect("a length fits").to_le_bytes());
            self.0.update(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, content) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    fn name(folder: &Path) -> String {
        Key::default().folder(folder).unwrap().name("step")
    }

    #[test]
    fn key_is_the_prefix_and_twelve_digits() {
        let key = Key::default().text("version", "1").name("step-1.2.3");
        let digits = key.strip_prefix("step-1.2.3-").unwrap();
        assert!(digits.len() == 12 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{key}");
    }

    #[test]
    fn key_distinguishes_where_one_input_ends() {
        let key = |inputs: &[(&str, &str)]| {
            let add = |key: Key, (name, value): &(&str, &str)| key.text(name, value);
            inputs.iter().fold(Key::default(), add).name("step")
        };
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
        assert_ne!(key(&[("a", "b")]), key(&[("ab", "")]));
        assert_ne!(key(&[("a", "b"), ("c", "d")]), key(&[("a", "bcd")]));
    }

    #[test]
    fn key_follows_names_contents_and_modes_of_files() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), &[("etc/a", "1"), ("b", "2")]);
        write(other.path(), &[("b", "2"), ("etc/a", "1")]);
        assert_eq!(name(one.path()), name(other.path()), "where the folder is does not count");
        let path = other.path().join("b");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_ne!(name(one.path()), name(other.path()), "mode");
        fs::remove_file(path).unwrap();
        write(other.path(), &[("etc/b", "2")]);
        assert_ne!(name(one.path()), name(other.path()), "name");
    }
}
