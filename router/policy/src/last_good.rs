//! The last good files of each policy, on disk: after a restart they run in place of refused ones.
//! The field's name: last known good.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::cache::Bytes;
use super::directory::FoundPolicy;
use super::policy_config::PolicyConfig;
use super::settings::Settings;
use super::trust;

/// In the cache directory.
const FOLDER: &str = "last-good";
/// Bytes of the line that has the files beside the component: each has at most a megabyte, and six
/// characters for a byte in the worst case.
const MAX_BESIDE: u64 = 16 << 20;

/// One file for each policy name: a line with the checksum of the rest, a line with the files
/// beside the component, the component's bytes.
#[derive(Debug)]
pub(super) struct LastGood {
    /// `None`: nothing is kept.
    directory: Option<PathBuf>,
}

/// The files beside the component.
#[derive(Serialize, Deserialize)]
struct Beside {
    toml: Option<String>,
    vectors: Option<String>,
}

impl LastGood {
    /// Uses a folder of the cache directory, if only this user and root can write to both.
    pub(super) fn open(settings: &Settings) -> Self {
        let (Some(cache), Some(_)) = (&settings.cache, &settings.directory) else {
            return Self { directory: None };
        };
        let directory = cache.join(FOLDER);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        let trusted = made.map_err(|error| error.to_string()).and_then(|()| trust::directory(&directory));
        Self { directory: trusted.is_ok().then_some(directory) }
    }

    /// Whether anything is kept.
    pub(super) fn is_kept(&self) -> bool {
        self.directory.is_some()
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(name))
    }

    /// Keeps the files of a policy that was loaded, in place of those of its name before.
    pub(super) fn keep(&self, found: &FoundPolicy) {
        let Some(file) = self.file(&found.name) else { return };
        if let Err(error) = write(&file, found) {
            tracing::warn!(policy = found.name, %error, "cannot keep the policy for a restart");
        }
    }

    /// The last good files of a name; `None`: there are none, or they cannot be used.
    pub(super) fn get(&self, name: &str, settings: &Settings) -> Option<FoundPolicy> {
        let (file, directory) = (self.file(name)?, self.directory.as_deref()?);
        if !file.is_file() {
            return None;
        }
        let trusted = trust::file(&file, directory).map_err(io::Error::other);
        match trusted.and_then(|()| read(&file, name, settings)) {
            Ok(found) => Some(found),
            Err(error) => {
                tracing::warn!(policy = name, %error, "the last good version of the policy cannot be used");
                None
            }
        }
    }

    /// Removes what belongs to no policy of the directory.
    pub(super) fn retain(&self, names: &HashSet<String>) {
        let Some(entries) = self.directory.as_ref().and_then(|it| fs::read_dir(it).ok()) else { return };
        for entry in entries.flatten().filter(|it| !names.contains(&*it.file_name().to_string_lossy())) {
            if let Err(error) = fs::remove_file(entry.path()) {
                let file = entry.path();
                tracing::warn!(file = %file.display(), %error, "cannot remove a policy that was kept");
            }
        }
    }
}

fn write(file: &Path, found: &FoundPolicy) -> io::Result<()> {
    let beside = Beside { toml: found.toml.clone(), vectors: found.vectors.clone() };
    let mut head = serde_json::to_vec(&beside).map_err(io::Error::other)?;
    head.push(b'\n');
    let sum = sum(head.as_slice().chain(found.bytes.open()?))?;
    if fs::read(file).is_ok_and(|kept| kept.starts_with(sum.as_bytes())) {
        return Ok(());
    }
    let mut name = OsString::from(file);
    name.push(format!(".{}", std::process::id()));
    let partial = PathBuf::from(name);
    let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    out.write_all(format!("{sum}\n").as_bytes())?;
    out.write_all(&head)?;
    io::copy(&mut found.bytes.open()?, &mut out)?;
    // Once for each change of a policy: after a power cut it is whole or the one before it.
    out.sync_all()?;
    fs::rename(&partial, file)
}

fn read(file: &Path, name: &str, settings: &Settings) -> io::Result<FoundPolicy> {
    let mut kept = BufReader::new(File::open(file)?);
    let mut expected = String::new();
    kept.by_ref().take(65).read_line(&mut expected)?;
    let rest = kept.stream_position()?;
    if sum(&mut kept)? != expected.trim_end() {
        return Err(io::Error::other("its checksum is wrong"));
    }
    kept.seek(io::SeekFrom::Start(rest))?;
    let mut head = Vec::new();
    kept.by_ref().take(MAX_BESIDE).read_until(b'\n', &mut head)?;
    let Beside { toml, vectors } = serde_json::from_slice(&head).map_err(io::Error::other)?;
    let own = match &toml {
        Some(text) => PolicyConfig::parse(text.as_bytes(), settings).map_err(io::Error::other)?,
        None => PolicyConfig::absent(settings),
    };
    let bytes = Bytes::copy(kept, settings.file)?.ok_or_else(|| io::Error::other("it is too large"))?;
    Ok(FoundPolicy { name: name.to_owned(), bytes, own, toml, vectors })
}

/// SHA-256, hex.
fn sum(mut of: impl Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut of, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(toml: Option<&str>) -> FoundPolicy {
        FoundPolicy {
            name: "50-x".to_owned(),
            bytes: Bytes::copy(&b"component\nbytes"[..], 100).unwrap().unwrap(),
            own: PolicyConfig::absent(&Settings::default()),
            toml: toml.map(str::to_owned),
            vectors: Some("{}\n".to_owned()),
        }
    }

    fn opened(cache: &Path) -> (LastGood, Settings) {
        let (cache, directory) = (Some(cache.to_owned()), Some(cache.to_owned()));
        let settings = Settings { cache, directory, ..Settings::default() };
        (LastGood::open(&settings), settings)
    }

    #[test]
    fn kept_files_are_read_as_they_were_and_removed_with_their_name() {
        let cache = tempfile::tempdir().unwrap();
        let (last_good, settings) = opened(cache.path());
        last_good.keep(&found(None));
        last_good.keep(&found(Some("mode = 'shadow'\n")));
        let read = last_good.get("50-x", &settings).unwrap();
        assert_eq!(read.bytes.digest, found(None).bytes.digest);
        assert_eq!(
            (read.toml.as_deref(), read.vectors.as_deref()),
            (Some("mode = 'shadow'\n"), Some("{}\n"))
        );
        assert_eq!(read.own.mode.name(), "shadow");
        last_good.retain(&HashSet::from(["50-x".to_owned()]));
        assert!(last_good.get("50-x", &settings).is_some());
        last_good.retain(&HashSet::new());
        assert!(last_good.get("50-x", &settings).is_none());
    }

    #[test]
    fn damaged_file_is_not_used() {
        let cache = tempfile::tempdir().unwrap();
        let (last_good, settings) = opened(cache.path());
        last_good.keep(&found(None));
        let file = cache.path().join(FOLDER).join("50-x");
        let whole = fs::read(&file).unwrap();
        for damaged in [&whole[..whole.len() - 1], b"", &[b"0", &whole[1..]].concat()] {
            fs::write(&file, damaged).unwrap();
            assert!(last_good.get("50-x", &settings).is_none());
        }
        last_good.keep(&found(None));
        assert_eq!(fs::read(&file).unwrap(), whole, "it is written anew");
    }
}
