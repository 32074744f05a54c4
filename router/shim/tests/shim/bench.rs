//! A folder with a wrapper, its configuration and an inner shim that writes down how it was called.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// What containerd passes besides the action.
const ARGUMENTS: [&str; 8] = [
    "-namespace",
    "k8s.io",
    "-address",
    "/run/containerd/containerd.sock",
    "-publish-binary",
    "/usr/bin/containerd",
    "-id",
    "c1",
];
/// containerd's own address for events.
pub(crate) const STOCK: &str = "/run/containerd/containerd.sock.ttrpc";

pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    /// With an inner shim that ends in `inner`, a piece of shell.
    pub(crate) fn new(inner: &str) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.at("bundle")).unwrap();
        bench.inner(inner);
        bench
    }

    pub(crate) fn inner(&self, inner: &str) {
        let heard = self.at("heard");
        // Written down as they came, each argument on its line.
        let script = format!(
            "#!/bin/sh\n{{ for it in \"$0\" \"$@\"; do printf '%s\\n' \"$it\"; done; echo \"env $TTRPC_ADDRESS $EXTRA\"; \
             echo \"in $(cat)\"; echo \"cwd $PWD\"; }} > {}\n{inner}\n",
            heard.display()
        );
        fs::write(self.at("containerd-shim-inner-v2"), script).unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.at("containerd-shim-inner-v2"), mode).unwrap();
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.at("bundle")
    }

    /// The configuration: the inner shim, the router's socket and the log's file are set.
    pub(crate) fn configure(&self, more: &str) {
        let text = format!(
            "inner = {:?}\nsocket = {:?}\nlog = {:?}\n{more}\n",
            self.at("containerd-shim-inner-v2"),
            self.at("router.sock"),
            self.at("log"),
        );
        fs::write(self.at("shim.toml"), text).unwrap();
    }

    /// Calls the wrapper as containerd does.
    pub(crate) fn call(&self, action: &[&str]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_containerd-shim-coroner-v2"))
            .args(ARGUMENTS)
            .args(action)
            .current_dir(self.bundle())
            .env("CORONER_SHIM_CONFIG", self.at("shim.toml"))
            .env("TTRPC_ADDRESS", STOCK)
            .env("EXTRA", "more")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who does not run does not read.
        child.stdin.take().unwrap().write_all(b"options").ok();
        child.wait_with_output().unwrap()
    }

    /// How the inner shim was called.
    pub(crate) fn heard(&self) -> String {
        fs::read_to_string(self.at("heard")).unwrap()
    }

    /// What it hears when nothing was changed but the address for events.
    pub(crate) fn expected(&self, action: &[&str], address: &Path) -> String {
        let inner = self.at("containerd-shim-inner-v2").display().to_string();
        let lines: Vec<&str> =
            [inner.as_str()].into_iter().chain(ARGUMENTS).chain(action.iter().copied()).collect();
        format!(
            "{}\nenv {} more\nin options\ncwd {}\n",
            lines.join("\n"),
            address.display(),
            self.bundle().display()
        )
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }
}
