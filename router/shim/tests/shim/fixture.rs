//! A folder with a wrapper, its configuration, and an inner shim that records its invocation.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;

use crate::fake_inner::FakeInner;

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

pub(crate) struct Fixture {
    folder: TempDir,
}

impl Fixture {
    /// A fixture with an inner shim: a script that ends with the shell code `inner`.
    pub(crate) fn new(inner: &str) -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(fixture.at("bundle")).unwrap();
        fixture.inner(inner);
        fixture
    }

    pub(crate) fn inner(&self, inner: &str) {
        let invocation = self.at("invocation");
        // Recorded unchanged, each argument on its line.
        let script = format!(
            "#!/bin/sh\n{{ for it in \"$0\" \"$@\"; do printf '%s\\n' \"$it\"; done; echo \"env $TTRPC_ADDRESS $EXTRA\"; \
             echo \"in $(cat)\"; echo \"cwd $PWD\"; }} > {}\n{inner}\n",
            invocation.display()
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

    /// Writes the configuration: the inner shim, the router's socket, the log file, and `more`.
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
        self.call_as("containerd-shim-coroner-v2", action)
    }

    /// Calls the wrapper under another name.
    pub(crate) fn call_as(&self, name: &str, action: &[&str]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_containerd-shim-coroner-v2"))
            .arg0(name)
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
        // An inner shim that did not run has not read it.
        child.stdin.take().unwrap().write_all(b"options").ok();
        child.wait_with_output().unwrap()
    }

    /// The last invocation of the inner shim.
    pub(crate) fn invocation(&self) -> String {
        fs::read_to_string(self.at("invocation")).unwrap()
    }

    /// The expected invocation, with only the address for events changed.
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

    /// A fixture in mode `proxy`, with an inner shim that prints its address in the older form.
    pub(crate) fn proxied() -> (Self, FakeInner) {
        let fixture = Self::new("");
        fixture.inner(&format!("touch {0}; printf unix://{0}", fixture.task().display()));
        fixture.configure("mode = \"proxy\"\nprobe = \"5s\"\nhold = \"5s\"");
        let inner = FakeInner::listen(&fixture.task());
        (fixture, inner)
    }

    /// The inner shim's socket.
    pub(crate) fn task(&self) -> PathBuf {
        self.at("task")
    }

    /// The proxy's socket.
    pub(crate) fn front(&self) -> PathBuf {
        self.at("task.c")
    }

    /// Runs `start` and returns its output.
    pub(crate) fn start(&self) -> String {
        let output = self.call(&["start"]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The running proxies of this fixture.
    pub(crate) fn proxies(&self) -> Vec<Pid> {
        let inner = format!("\0--inner\0{}\0", self.task().display());
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            String::from_utf8_lossy(&line).contains(&inner).then(|| Pid::from_raw(pid))?
        });
        processes.collect()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.at("log")).unwrap_or_default()
    }
}

impl Drop for Fixture {
    /// A proxy ends with its shim. After a failed test it may still run.
    fn drop(&mut self) {
        for pid in self.proxies() {
            if std::thread::panicking() {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
            }
        }
    }
}

/// Waits until a process has ended.
pub(crate) fn ended(pid: Pid) {
    // A missing process has ended.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "process {pid} still runs");
    }
}
