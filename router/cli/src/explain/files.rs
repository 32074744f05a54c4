//! The files to read, and their order: those that a sink has rotated before the one that it writes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use coroner::node::config::{Config, SinkKind};

/// The files of one sink, the oldest first, all of them open: one that is renamed meanwhile is read
/// too.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) files: Vec<(PathBuf, File)>,
    pub(super) bytes: u64,
}

/// Those of each sink that writes audit records to a file.
pub(super) fn of(config: &Config) -> Result<Vec<Files>, String> {
    let paths: Vec<&PathBuf> = config
        .sinks
        .iter()
        .filter_map(|sink| match &sink.kind {
            SinkKind::Jsonl(settings) => settings.path.as_ref(),
            SinkKind::Containerd | SinkKind::OomFile | SinkKind::Webhook(_) | SinkKind::Unix(_) => None,
        })
        .collect();
    if paths.is_empty() {
        return Err("the configuration names no audit file: no sink of type \"jsonl\" has a path".to_owned());
    }
    let mut all = Vec::new();
    for path in paths {
        all.push(Files::open_present(&rotated(path)?)?);
    }
    if all.iter().all(|it| it.files.is_empty()) {
        return Err("no audit file of the configuration is there: did a router run with it?".to_owned());
    }
    Ok(all)
}

/// `NAME.2`, `NAME.1`, `NAME`: as many as there are.
fn rotated(path: &Path) -> Result<Vec<PathBuf>, String> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|it| it.to_str())) else {
        return Ok(vec![path.to_owned()]);
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot read {}: {error}", folder.display())),
    };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok())
        .collect();
    numbers.sort_unstable_by(|one, other| other.cmp(one));
    let older = numbers.into_iter().map(|number| folder.join(format!("{name}.{number}")));
    Ok(older.chain([path.to_owned()]).collect())
}

impl Files {
    /// These, in this order.
    pub(super) fn open(paths: &[PathBuf]) -> Result<Self, String> {
        let mut opened = Self::default();
        for path in paths {
            let file =
                File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            opened.bytes += file.metadata().map_or(0, |it| it.len());
            opened.files.push((path.clone(), file));
        }
        Ok(opened)
    }

    /// Those of them that are there.
    fn open_present(paths: &[PathBuf]) -> Result<Self, String> {
        let mut opened = Self::default();
        let mut seen = BTreeSet::new();
        // The newest first: a file that is renamed between two of these is met twice, not missed,
        // and known by its inode.
        for path in paths.iter().rev() {
            // A sink may write to a pipe or a device, which keep nothing. Opened for reading, a
            // pipe would block.
            let opening = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
            let file = match opening {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
            };
            let about =
                file.metadata().map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            if about.is_file() && seen.insert((about.dev(), about.ino())) {
                opened.bytes += about.len();
                opened.files.insert(0, (path.clone(), file));
            }
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_read_before_the_current_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        for name in
            ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.10", "audit.jsonl.old", "audit"]
        {
            fs::write(folder.path().join(name), name).unwrap();
        }
        // Renamed between two opens.
        fs::hard_link(&path, folder.path().join("audit.jsonl.3")).unwrap();
        let opened = Files::open_present(&rotated(&path).unwrap()).unwrap();
        let names: Vec<_> =
            opened.files.iter().map(|(path, _)| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["audit.jsonl.10", "audit.jsonl.2", "audit.jsonl.1", "audit.jsonl"]);
        assert_eq!(opened.bytes, 11 + 13 + 13 + 14);
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        assert!(Files::open_present(&[pipe]).unwrap().files.is_empty(), "a pipe does not block");
        assert!(rotated(&folder.path().join("none/audit.jsonl")).unwrap().is_empty());
        assert!(Files::open(&[folder.path().join("none")]).unwrap_err().contains("none"));
    }
}
