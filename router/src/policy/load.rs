//! From a component to a policy that has been started, described, configured, and found to be pure.

use std::path::PathBuf;
use std::sync::Arc;

use wasmtime::component::Component;

use super::bindings::{BindingsPre, wit};
use super::compile::CompileError;
use super::contract::ContractError;
use super::counts::Counts;
use super::directory::Found;
use super::health::Health;
use super::host::{Host, Instance, State};
use super::own_file::OwnFile;
use super::pure::{self, VectorError};
use super::talk::{Talk, shortened};
use crate::case::Known;
use crate::config::PolicyMode;
use crate::ruling::{Fault, FaultKind};

/// The name of the built-in default policy.
pub const BUILT_IN: &str = "00-kubernetes";
pub(super) static BUILT_IN_WASM: &[u8] = include_bytes!("../../../plugins/dist/kubernetes.wasm");

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
    /// Somebody else could change it.
    #[error("{subject} is not trusted: {reason}")]
    Trust {
        /// The directory or the file.
        subject: String,
        /// Who could.
        reason: String,
    },
    /// Neither `NN-name.wasm` nor what goes beside one.
    #[error(
        "{file} is no policy: a policy is named NN-name.wasm, its own file NN-name.toml, its vectors NN-name.jsonl"
    )]
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
    /// Its digest is not the one its own file names.
    #[error("policy {policy} is sha256:{digest}, and {policy}.toml pins sha256:{pin}")]
    Pin {
        /// Its name.
        policy: String,
        /// What was asked for.
        pin: String,
        /// What is there.
        digest: String,
    },
    /// It does not keep the contract, or does not compile.
    #[error("policy {policy} {reason}")]
    Compile {
        /// Its name.
        policy: String,
        /// Why.
        reason: CompileError,
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
    /// What it says of itself breaks a limit.
    #[error("policy {policy} describes itself with {what}")]
    Description {
        /// Its name.
        policy: String,
        /// What is wrong with it.
        what: String,
    },
    /// It refused its configuration.
    #[error("policy {policy} refuses its configuration: {}", keys(.mistakes))]
    Configure {
        /// Its name.
        policy: String,
        /// Keys and messages.
        mistakes: Vec<(String, String)>,
    },
    /// It is not pure, or a vector of the operator's gives another answer.
    #[error("policy {policy} {reason}")]
    Vectors {
        /// Its name.
        policy: String,
        /// Which, and what it answered.
        reason: VectorError,
    },
}

impl LoadError {
    /// The policy, file or directory it is about.
    pub fn subject(&self) -> String {
        match self {
            Self::Directory { path, .. } => path.display().to_string(),
            Self::Trust { subject, .. } => subject.clone(),
            Self::Name { file }
            | Self::Read { file, .. }
            | Self::Size { file, .. }
            | Self::Toml { file, .. } => file.clone(),
            Self::Pin { policy, .. }
            | Self::Compile { policy, .. }
            | Self::Start { policy, .. }
            | Self::Description { policy, .. }
            | Self::Configure { policy, .. }
            | Self::Vectors { policy, .. } => policy.clone(),
        }
    }

    /// Whether the bytes are to blame, so that the same bytes need not be tried again.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Compile { reason, .. } => match reason {
                CompileError::Contract(
                    ContractError::Component(_) | ContractError::World(_) | ContractError::Imports(_),
                )
                | CompileError::Refused(_)
                | CompileError::Limit(_)
                | CompileError::Ended { .. } => true,
                CompileError::NoProgram | CompileError::Run { .. } => false,
            },
            Self::Start { .. } | Self::Description { .. } | Self::Configure { .. } | Self::Vectors { .. } => {
                true
            }
            Self::Directory { .. }
            | Self::Trust { .. }
            | Self::Name { .. }
            | Self::Read { .. }
            | Self::Size { .. }
            | Self::Toml { .. }
            | Self::Pin { .. } => false,
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
    /// Whether its rulings count.
    pub mode: PolicyMode,
    /// Bytes of its component.
    pub(super) size: u64,
    /// Interfaces it imports.
    pub(super) imports: Vec<String>,
    /// What it says of itself.
    pub(super) description: wit::Description,
    pub(super) own: OwnFile,
    pub(super) vectors: Option<String>,
    pub(super) health: Arc<Health>,
    pub(super) counts: Arc<Counts>,
    talk: Arc<Talk>,
    wasi: bool,
    pre: BindingsPre<State>,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Its version, as it describes itself.
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// What it cannot work without.
    pub fn needs(&self) -> Vec<Known> {
        super::bindings::lifted_known(self.description.needs)
    }

    /// A configured instance.
    pub(super) fn start(&self, host: &Host) -> Result<Instance, Fault> {
        let as_start = |fault: Fault| Fault { kind: FaultKind::Start, ..fault };
        let mut instance = host.start(&self.pre, &self.talk, self.own.limits, self.wasi).map_err(as_start)?;
        instance.configure(host, &self.own.config).map_err(as_start)?.map_err(|mistakes| Fault {
            kind: FaultKind::Start,
            message: format!("it refuses the configuration it took before: {}", keys(&mistakes)),
        })?;
        Ok(instance)
    }
}

/// Bytes of a policy's own name and version: both are written to every audit record.
const MAX_NAME: usize = 64;
/// Bytes of its configuration's schema: it is kept.
const MAX_SCHEMA: usize = 64 << 10;

/// Starts and configures one compiled component, and holds it to its word.
pub(super) fn prepare(
    host: &Host,
    found: &Found,
    component: &Component,
    health: Arc<Health>,
    counts: Arc<Counts>,
) -> Result<Policy, LoadError> {
    let name = found.name.clone();
    let imports = host.imports(component);
    let wasi = imports.iter().any(|import| import.starts_with("wasi:"));
    let pre = host.link(component, wasi).map_err(|error| LoadError::Compile {
        policy: name.clone(),
        reason: CompileError::Contract(ContractError::World(format!(
            "does not fit its world: {}",
            one_line(&error)
        ))),
    })?;
    let failed = |call: &'static str| {
        let policy = name.clone();
        move |fault: Fault| LoadError::Start { policy, call, reason: fault.message }
    };
    let talk = Arc::new(Talk::new(name.clone(), found.own.limits.log_rate));
    let mut instance = host.start(&pre, &talk, found.own.limits, wasi).map_err(failed("start"))?;
    let description = instance.describe(host).map_err(failed("describe"))?;
    described(&description).map_err(|what| LoadError::Description { policy: name.clone(), what })?;
    instance
        .configure(host, &found.own.config)
        .map_err(failed("configure"))?
        .map_err(|mistakes| LoadError::Configure { policy: name.clone(), mistakes })?;
    let policy = Policy {
        name: name.clone(),
        digest: format!("sha256:{}", found.bytes.digest),
        mode: found.own.mode,
        size: found.bytes.size,
        imports,
        description,
        own: found.own.clone(),
        vectors: found.vectors.clone(),
        health,
        counts,
        talk,
        wasi,
        pre,
    };
    let vectors = |reason| LoadError::Vectors { policy: name.clone(), reason };
    pure::check(host, &policy, instance).map_err(vectors)?;
    if let Some(text) = &found.vectors {
        pure::operators(host, &policy, text).map_err(vectors)?;
    }
    Ok(policy)
}

fn described(description: &wit::Description) -> Result<(), String> {
    for (what, text) in [("name", &description.name), ("version", &description.version)] {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(format!("a {what} of {} bytes, not 1 to {MAX_NAME}", text.len()));
        }
    }
    match &description.config_schema {
        Some(schema) if schema.len() > MAX_SCHEMA => {
            Err(format!("a config-schema of {} bytes, over {MAX_SCHEMA}", schema.len()))
        }
        _ => Ok(()),
    }
}

/// The whole chain of causes on one line.
fn one_line(error: &wasmtime::Error) -> String {
    let texts: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
    shortened(&texts.join(": ").replace('\n', " "))
}
