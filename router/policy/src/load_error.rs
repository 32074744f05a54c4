//! Why a policy is not in the chain.

use std::path::PathBuf;

use super::compile::CompileError;
use super::contract::ContractError;
use super::policy_config::keys;
use super::pure::VectorError;

/// Why a policy is not in the chain.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory cannot be listed.
    #[error("cannot read the policy directory {path}: {source}")]
    Directory {
        /// Path of the directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Another user could change it.
    #[error("{subject} is not trusted: {reason}")]
    Trust {
        /// The directory or the file.
        subject: String,
        /// The user or the right in question.
        reason: String,
    },
    /// The file is neither `NN-name.wasm` nor a file of such a policy.
    #[error(
        "{file} is not a policy file: a policy is NN-name.wasm, its configuration NN-name.toml, its vectors NN-name.jsonl"
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
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is too large.
    #[error("{file} is over {limit} bytes")]
    Size {
        /// File name.
        file: String,
        /// Largest size, in bytes.
        limit: u64,
    },
    /// The policy's `.toml` is invalid.
    #[error("{file}: {reason}")]
    Toml {
        /// File name.
        file: String,
        /// The key and its mistake.
        reason: String,
    },
    /// The digest differs from the one pinned in the policy's `.toml`.
    #[error("policy {policy} is sha256:{digest}, and {policy}.toml pins sha256:{pin}")]
    Pin {
        /// Name of the policy.
        policy: String,
        /// The pinned digest.
        pin: String,
        /// The actual digest.
        digest: String,
    },
    /// It does not keep the contract, or does not compile.
    #[error("policy {policy} {reason}")]
    Compile {
        /// Name of the policy.
        policy: String,
        /// The compile error.
        reason: CompileError,
    },
    /// A fault during the start or `describe`.
    #[error("policy {policy} failed in {call}: {reason}")]
    Start {
        /// Name of the policy.
        policy: String,
        /// `start`, `describe` or `configure`.
        call: &'static str,
        /// The fault's message.
        reason: String,
    },
    /// The description breaks a limit.
    #[error("policy {policy} describes itself with {what}")]
    Description {
        /// Name of the policy.
        policy: String,
        /// The limit and the value.
        what: String,
    },
    /// The policy refused its configuration.
    #[error("policy {policy} refuses its configuration: {}", keys(.mistakes))]
    Configure {
        /// Name of the policy.
        policy: String,
        /// Keys and messages.
        mistakes: Vec<(String, String)>,
    },
    /// The policy is not pure, or it fails one of the operator's test vectors.
    #[error("policy {policy} {reason}")]
    Vectors {
        /// Name of the policy.
        policy: String,
        /// The failed vector and the answer.
        reason: VectorError,
    },
}

impl LoadError {
    /// The policy, file or directory in question.
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

    /// Whether the same bytes would fail again, so that a retry is useless.
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
