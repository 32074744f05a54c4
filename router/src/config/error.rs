//! Why there is no configuration.

use std::path::{Path, PathBuf};

use coroner_core::table::Mistake;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The file is read, and refused.
    #[error("{}", list(.path, .mistakes))]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// All of them.
        mistakes: Vec<Mistake>,
    },
}

fn list(path: &Path, mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes
        .iter()
        .map(|it| match it.key.as_str() {
            "" => format!("{}: {}", path.display(), it.message),
            key => format!("{}: {key}: {}", path.display(), it.message),
        })
        .collect();
    lines.join("\n")
}
