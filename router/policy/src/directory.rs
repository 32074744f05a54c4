//! The policy directory: its files by policy name, each trusted or refused with the reason.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::built_in::{BUILT_IN, BUILT_IN_WASM};
use super::cache::Bytes;
use super::load_error::LoadError;
use super::policy_config::PolicyConfig;
use super::settings::Settings;
use super::trust;

/// Bytes of a policy's `.toml`, and of its vectors.
const MAX_SIDE: u64 = 1 << 20;

/// The files of one policy.
pub(super) struct FoundPolicy {
    /// File name without `.wasm`.
    pub(super) name: String,
    pub(super) bytes: Bytes,
    pub(super) own: PolicyConfig,
    /// Text of `NN-name.toml`, from which `own` was read.
    pub(super) toml: Option<String>,
    /// `NN-name.jsonl`, the operator's test vectors.
    pub(super) vectors: Option<String>,
}

/// The result of one read of the directory.
#[derive(Default)]
pub(super) struct DirectoryListing {
    /// In name order: the policy's files, or why they are refused.
    pub(super) policies: BTreeMap<String, Result<FoundPolicy, LoadError>>,
    /// Files that do not belong to a policy.
    pub(super) strays: Vec<LoadError>,
}

/// Reads the directory. Without a directory the built-in default is the only policy.
pub(super) fn read(settings: &Settings) -> Result<DirectoryListing, LoadError> {
    let mut seen = DirectoryListing::default();
    let listed = match &settings.directory {
        Some(directory) => list(directory, &mut seen)?,
        None => BTreeMap::new(),
    };
    for (name, files) in listed {
        let found = read_policy(&name, files, settings);
        seen.policies.insert(name, found);
    }
    if !seen.policies.contains_key(BUILT_IN) {
        seen.policies.insert(BUILT_IN.to_owned(), built_in(settings, None));
    }
    Ok(seen)
}

/// Reads one file, for `coroner policy check`.
pub(super) fn single(
    name: &str,
    wasm: &Path,
    toml: Option<&Path>,
    settings: &Settings,
) -> Result<FoundPolicy, LoadError> {
    let (own, toml) = policy_config(name, toml, settings)?;
    let bytes = copy(wasm, settings)?;
    pinned(FoundPolicy { name: name.to_owned(), bytes, own, toml, vectors: None })
}

#[derive(Default)]
struct PolicyFiles {
    wasm: Option<PathBuf>,
    toml: Option<PathBuf>,
    vectors: Option<PathBuf>,
}

/// Lists files by policy name; only root and the router's user can change any of them.
fn list(directory: &Path, seen: &mut DirectoryListing) -> Result<BTreeMap<String, PolicyFiles>, LoadError> {
    let failed = |source| LoadError::Directory { path: directory.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(failed)?;
    trust::directory(directory)
        .map_err(|reason| LoadError::Trust { subject: directory.display().to_string(), reason })?;
    let mut listed: BTreeMap<String, PolicyFiles> = BTreeMap::new();
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    for file in names.into_iter().filter(|name| !name.starts_with('.')) {
        let path = directory.join(&file);
        match file.rsplit_once('.') {
            Some((name, "wasm")) if is_name(name) => {
                listed.entry(name.to_owned()).or_default().wasm = Some(path)
            }
            Some((name, "toml")) if is_name(name) => {
                listed.entry(name.to_owned()).or_default().toml = Some(path)
            }
            Some((name, "jsonl")) if is_name(name) => {
                listed.entry(name.to_owned()).or_default().vectors = Some(path);
            }
            _ => seen.strays.push(LoadError::Name { file }),
        }
    }
    // A file without its policy is a stray, except the configuration of the built-in default.
    listed.retain(|name, files| {
        let kept = files.wasm.is_some() || name == BUILT_IN;
        if !kept {
            let file = files.toml.as_ref().or(files.vectors.as_ref());
            let file = file.and_then(|it| it.file_name()).unwrap_or_default().to_string_lossy().into_owned();
            seen.strays.push(LoadError::Name { file });
        }
        kept
    });
    Ok(listed)
}

/// `NN-name`: two digits, a dash, then letters, digits and dashes.
pub(super) fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 3
        && bytes.len() <= 64
        && bytes[..2].iter().all(u8::is_ascii_digit)
        && bytes[2] == b'-'
        && bytes[3..].iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn read_policy(name: &str, files: PolicyFiles, settings: &Settings) -> Result<FoundPolicy, LoadError> {
    let directory = settings.directory.as_deref().expect("files were listed in it");
    for path in [&files.wasm, &files.toml, &files.vectors].into_iter().flatten() {
        trust::file(path, directory)
            .map_err(|reason| LoadError::Trust { subject: file_name(path), reason })?;
    }
    let Some(wasm) = &files.wasm else { return built_in(settings, files.toml.as_deref()) };
    let (own, toml) = policy_config(name, files.toml.as_deref(), settings)?;
    let vectors = files.vectors.as_deref().map(|path| text(path, MAX_SIDE)).transpose()?;
    pinned(FoundPolicy { name: name.to_owned(), bytes: copy(wasm, settings)?, own, toml, vectors })
}

fn built_in(settings: &Settings, toml: Option<&Path>) -> Result<FoundPolicy, LoadError> {
    let (own, toml) = policy_config(BUILT_IN, toml, settings)?;
    let failed = |source| LoadError::Read { file: BUILT_IN.to_owned(), source };
    let bytes = Bytes::copy(BUILT_IN_WASM, u64::MAX - 1).map_err(failed)?.expect("there is no limit");
    pinned(FoundPolicy { name: BUILT_IN.to_owned(), bytes, own, toml, vectors: None })
}

/// The configuration file, parsed and as it is.
fn policy_config(
    name: &str,
    toml: Option<&Path>,
    settings: &Settings,
) -> Result<(PolicyConfig, Option<String>), LoadError> {
    let Some(path) = toml else { return Ok((PolicyConfig::absent(settings), None)) };
    let text = text(path, MAX_SIDE)?;
    let own = PolicyConfig::parse(text.as_bytes(), settings)
        .map_err(|reason| LoadError::Toml { file: format!("{name}.toml"), reason })?;
    Ok((own, Some(text)))
}

fn pinned(found: FoundPolicy) -> Result<FoundPolicy, LoadError> {
    match &found.own.sha256 {
        Some(pin) if *pin != found.bytes.digest => Err(LoadError::Pin {
            policy: found.name.clone(),
            pin: pin.clone(),
            digest: found.bytes.digest.clone(),
        }),
        _ => Ok(found),
    }
}

fn copy(path: &Path, settings: &Settings) -> Result<Bytes, LoadError> {
    let failed = |source| LoadError::Read { file: file_name(path), source };
    let file = open(path).map_err(failed)?;
    // The size is checked before the file is read: a stray disk image is not copied.
    let meta = file.metadata().map_err(failed)?;
    let over = || LoadError::Size { file: file_name(path), limit: settings.file };
    if !meta.is_file() {
        return Err(LoadError::Read {
            file: file_name(path),
            source: std::io::Error::other("not a regular file"),
        });
    }
    if meta.len() > settings.file {
        return Err(over());
    }
    Bytes::copy(file, settings.file).map_err(failed)?.ok_or_else(over)
}

fn text(path: &Path, limit: u64) -> Result<String, LoadError> {
    let failed = |source| LoadError::Read { file: file_name(path), source };
    let mut bytes = Vec::new();
    open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(LoadError::Size { file: file_name(path), limit });
    }
    String::from_utf8(bytes).map_err(|error| failed(std::io::Error::other(error)))
}

/// Opens without blocking: opening a named pipe would otherwise wait for a writer.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are small");
    File::options().read(true).custom_flags(flags).open(path)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
