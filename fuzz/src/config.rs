//! The part of the router's configuration that a journal names.

use serde::{Deserialize, Serialize};

/// As the router has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A shim publishes too.
    Beside,
    /// Nobody else publishes.
    Sole,
}
