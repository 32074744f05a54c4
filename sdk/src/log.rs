//! Lines to the router's log, under the policy's name. Off wasm they go to standard error.

/// Writes an error: an operator must act.
pub fn error(text: impl AsRef<str>) {
    write(Severity::Error, text.as_ref());
}

/// Writes a warning: something was lost or replaced.
pub fn warn(text: impl AsRef<str>) {
    write(Severity::Warn, text.as_ref());
}

/// Writes an event of the policy's life cycle.
pub fn info(text: impl AsRef<str>) {
    write(Severity::Info, text.as_ref());
}

/// Writes a line for debugging the policy.
pub fn debug(text: impl AsRef<str>) {
    write(Severity::Debug, text.as_ref());
}

use crate::bindings::coroner::policy::log::Severity;

#[cfg(target_family = "wasm")]
use crate::bindings::coroner::policy::log::log as write;

#[cfg(not(target_family = "wasm"))]
fn write(severity: Severity, text: &str) {
    eprintln!("{severity:?}: {text}");
}
