//! The TOML and the commands that correct a finding.

use std::path::Path;

use coroner_shim_config::{WrapperConfig, WrapperMode};

use super::super::containerd::{NEW, OLD};
use super::super::facts::{Facts, Version};
use super::{READS_PATH, TWO};

/// Where examples/deploy has the wrapper.
const USUAL: &str = "/usr/local/bin/containerd-shim-coroner-v2";

/// A wrapped runtime, in the keys that this containerd reads. An unknown version counts as one that
/// reads `runtime_path`. `wrapped`: the name of its real shim, when that is not runc's.
pub(super) fn runtime(facts: &Facts, name: &str, wrapped: Option<&str>) -> String {
    let version = facts.containerd.version();
    let file = facts.configuration.as_ref().map_or(2, |it| it.version);
    let wrapper = facts.installed.as_deref().unwrap_or(Path::new(USUAL));
    let suffix = wrapped.map(|it| format!("-{it}")).unwrap_or_default();
    let wrapper = wrapper.with_file_name(format!("containerd-shim-coroner{suffix}-v2"));
    let is_new = version.map_or(file >= 3, |it| it >= TWO && file != 2);
    let plugin = if is_new { format!("'{NEW}'") } else { format!("\"{OLD}\"") };
    let head = format!("[plugins.{plugin}.containerd.runtimes.{name}]");
    if reads_path(version) == Some(false) {
        return format!("{head}\nruntime_type = \"io.containerd.coroner{suffix}.v2\"");
    }
    let (shim, path) = (wrapped.unwrap_or("runc"), wrapper.display());
    format!("{head}\nruntime_type = \"io.containerd.{shim}.v2\"\nruntime_path = \"{path}\"")
}

pub(super) fn reads_path(version: Option<Version>) -> Option<bool> {
    version.map(|it| it >= READS_PATH)
}

/// The wrapper, where containerd finds it.
pub(super) fn install(name: Option<&str>) -> String {
    let copy = format!("install -m 0755 containerd-shim-coroner-v2 {USUAL}");
    match name {
        None => copy,
        Some(name) => format!("{copy}\n{}", link(name)),
    }
}

/// The wrapper under the name of another runtime.
pub(super) fn link(name: &str) -> String {
    let name = name.strip_prefix("coroner-").unwrap_or(name);
    format!("ln -s containerd-shim-coroner-v2 /usr/local/bin/containerd-shim-coroner-{name}-v2")
}

/// A source that fits the wrapper's keys.
pub(super) fn source(keys: &WrapperConfig) -> String {
    let (mode, socket) = (keys.mode.name(), keys.socket.display());
    let name = if keys.mode == WrapperMode::Proxy { "proxied-shims" } else { "shims" };
    format!(
        "[[source]]\nname = \"{name}\"\ntype = \"shim\"\naddress = \"unix://{socket}\"\nmode = \"{mode}\""
    )
}

/// A mode in the wrapper's file.
pub(super) fn mode(runtime: Option<&str>, mode: &str) -> String {
    match runtime {
        None => format!("mode = \"{mode}\""),
        Some(name) => format!("[runtime.{name}]\nmode = \"{mode}\""),
    }
}
