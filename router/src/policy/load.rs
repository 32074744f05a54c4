//! From a directory of files to policies that have been started once: each is taken or refused with its reason.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::bindings::{BindingsPre, wit};
use super::host::{Host, Instance, State};
use crate::ruling::{Fault, FaultKind};

/// Bytes of a component file. Without it a stray disk image in the directory would be read into memory.
const MAX_FILE: u64 = 32 << 20;
/// Bytes of a policy's `.toml`.
const MAX_CONFIG: u64 = 1 << 20;

/// The name of the built-in default policy.
pub const BUILT_IN: &str = "00-kubernetes";
static BUILT_IN_WASM: &[u8] = include_bytes!("../../../plugins/dist/kubernetes.wasm");

/// Why a policy is not in the chain.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory cannot be listed.
    #[error("cannot read the policy directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Neither `NN-name.wasm` nor the `.toml` of one.
    #[error("{file} is no policy: a policy is named NN-name.wasm, its configuration NN-name.toml")]
    Name {
        /// File name.
        file: String,
    },
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// File name.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{file} is over {limit} bytes")]
    Size {
        /// File name.
        file: String,
        /// How large it may be.
        limit: u64,
    },
    /// The `.toml` beside it is not one of ours.
    #[error("{file}: {reason}")]
    Toml {
        /// File name.
        file: String,
        /// What is wrong where.
        reason: String,
    },
    /// Not a component.
    #[error("policy {policy} is no WebAssembly component: {reason}")]
    Component {
        /// Its name.
        policy: String,
        /// What the parser says.
        reason: String,
    },
    /// Imports more than a policy gets.
    #[error("policy {policy} imports {imports}, which a policy does not get: only coroner:policy/log@0.1.0")]
    Imports {
        /// Its name.
        policy: String,
        /// Their names.
        imports: String,
    },
    /// A component of another world.
    #[error("policy {policy} does not export coroner:policy/rules@0.1.0: {reason}")]
    World {
        /// Its name.
        policy: String,
        /// What is missing.
        reason: String,
    },
    /// It failed while it was started or described itself.
    #[error("policy {policy} failed in {call}: {reason}")]
    Start {
        /// Its name.
        policy: String,
        /// `start`, `describe` or `configure`.
        call: &'static str,
        /// What stopped it.
        reason: String,
    },
    /// It refused its configuration.
    #[error("policy {policy} refuses its configuration: {}", keys(.mistakes))]
    Configure {
        /// Its name.
        policy: String,
        /// Keys and messages.
        mistakes: Vec<(String, String)>,
    },
}

impl LoadError {
    /// The policy, file or directory it is about.
    pub fn subject(&self) -> String {
        match self {
            Self::Directory { path, .. } => path.display().to_string(),
            Self::Name { file }
            | Self::Read { file, .. }
            | Self::Size { file, .. }
            | Self::Toml { file, .. } => file.clone(),
            Self::Component { policy, .. }
            | Self::Imports { policy, .. }
            | Self::World { policy, .. }
            | Self::Start { policy, .. }
            | Self::Configure { policy, .. } => policy.clone(),
        }
    }
}

fn keys(mistakes: &[(String, String)]) -> String {
    let texts: Vec<String> =
        mistakes.iter().map(|(key, message)| format!("config.{key}: {message}")).collect();
    texts.join("; ")
}

/// A policy that was started once: what every worker's own instance is made of.
pub struct Policy {
    /// File name without `.wasm`.
    pub name: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// What it says of itself.
    pub(super) description: wit::Description,
    config: String,
    pre: BindingsPre<State>,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Its version, as it describes itself.
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// A configured instance.
    pub(super) fn start(&self, host: &Host) -> Result<Instance, Fault> {
        let as_start = |fault: Fault| Fault { kind: FaultKind::Start, ..fault };
        let mut instance = host.start(&self.name, &self.pre).map_err(as_start)?;
        instance.configure(&self.config).map_err(as_start)?.map_err(|mistakes| Fault {
            kind: FaultKind::Start,
            message: format!("it refuses the configuration it took before: {}", keys(&mistakes)),
        })?;
        Ok(instance)
    }
}

/// The policies of a directory in order, the built-in default first, and what was refused.
pub fn load(host: &Host, directory: Option<&Path>) -> (Vec<Arc<Policy>>, Vec<LoadError>) {
    let (files, mut refused) = match directory.map(list) {
        None => (Vec::new(), Vec::new()),
        Some(Ok(listed)) => listed,
        Some(Err(error)) => (Vec::new(), vec![error]),
    };
    let mut policies = Vec::new();
    if !files.iter().any(|(name, _)| name == BUILT_IN) {
        match prepare(host, BUILT_IN, BUILT_IN_WASM, "{}".to_owned()) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(error) => refused.push(error),
        }
    }
    for (name, path) in files {
        match read(&name, &path).and_then(|(bytes, config)| prepare(host, &name, &bytes, config)) {
            Ok(policy) => policies.push(Arc::new(policy)),
            Err(error) => refused.push(error),
        }
    }
    (policies, refused)
}

/// Checks, compiles, starts and configures one component.
pub fn prepare(host: &Host, name: &str, bytes: &[u8], config: String) -> Result<Policy, LoadError> {
    let policy = name.to_owned();
    let component = host
        .compile(bytes)
        .map_err(|error| LoadError::Component { policy: policy.clone(), reason: first_line(&error) })?;
    let foreign = host.foreign_imports(&component);
    if !foreign.is_empty() {
        return Err(LoadError::Imports { policy, imports: foreign.join(", ") });
    }
    let pre = host
        .link(&component)
        .map_err(|error| LoadError::World { policy: policy.clone(), reason: first_line(&error) })?;
    let failed = |call: &'static str| {
        let policy = policy.clone();
        move |fault: Fault| LoadError::Start { policy, call, reason: fault.message }
    };
    let mut instance = host.start(name, &pre).map_err(failed("start"))?;
    let description = instance.describe().map_err(failed("describe"))?;
    instance
        .configure(&config)
        .map_err(failed("configure"))?
        .map_err(|mistakes| LoadError::Configure { policy: policy.clone(), mistakes })?;
    let digest = format!("sha256:{:x}", Sha256::digest(bytes));
    Ok(Policy { name: policy, digest, description, config, pre })
}

/// The whole chain of causes on one line.
fn first_line(error: &wasmtime::Error) -> String {
    let texts: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
    super::host::shortened(&texts.join(": ").replace('\n', " "))
}

type Listed = (Vec<(String, PathBuf)>, Vec<LoadError>);

/// The `.wasm` files in name order, and what is in the directory that is no policy.
fn list(directory: &Path) -> Result<Listed, LoadError> {
    let failed = |source| LoadError::Directory { path: directory.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    let (mut files, mut refused) = (Vec::new(), Vec::new());
    for file in names.iter().filter(|name| !name.starts_with('.')) {
        match file.rsplit_once('.') {
            Some((name, "wasm")) if is_name(name) => files.push((name.to_owned(), directory.join(file))),
            Some((name, "toml")) if is_name(name) && names.contains(&format!("{name}.wasm")) => {}
            _ => refused.push(LoadError::Name { file: file.clone() }),
        }
    }
    Ok((files, refused))
}

/// `NN-name`: two digits, a dash, then letters, digits and dashes.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 3
        && bytes.len() <= 64
        && bytes[..2].iter().all(u8::is_ascii_digit)
        && bytes[2] == b'-'
        && bytes[3..].iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// A component's bytes and its configuration as JSON.
fn read(name: &str, path: &Path) -> Result<(Vec<u8>, String), LoadError> {
    let bytes = read_file(path, MAX_FILE)?;
    let toml = path.with_extension("toml");
    let config = match toml.try_exists() {
        Ok(true) => to_json(&format!("{name}.toml"), &read_file(&toml, MAX_CONFIG)?)?,
        Ok(false) => "{}".to_owned(),
        Err(source) => return Err(LoadError::Read { file: format!("{name}.toml"), source }),
    };
    Ok((bytes, config))
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, LoadError> {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let failed = |source| LoadError::Read { file: file.clone(), source };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(failed)?.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit { Err(LoadError::Size { file, limit }) } else { Ok(bytes) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    config: toml::Table,
}

fn to_json(file: &str, bytes: &[u8]) -> Result<String, LoadError> {
    let wrong = |reason: String| LoadError::Toml { file: file.to_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|error| wrong(error.to_string()))?;
    let parsed: PolicyFile =
        toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
    serde_json::to_string(&plain(toml::Value::Table(parsed.config))).map_err(|error| wrong(error.to_string()))
}

/// TOML as JSON; dates become strings.
fn plain(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(plain).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, plain(value))).collect(),
    }
}
