//! The Debian package in a Debian trixie: what it installs, keeps, refuses and leaves behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coroner_tests::scratch::Scratch;

/// Arguments: the root, then the command. A pid namespace of its own hides this machine's shims
/// from `coroner doctor`.
const ENTER: &str = r#"root=$1; shift; exec unshare --mount --pid --fork --mount-proc="$root/proc" \
    chroot "$root" "$@""#;
/// A containerd with one runtime, which starts the wrapper.
const WRAPPED: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
    runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/usr/bin/containerd-shim-coroner-v2\"\n";

fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A trixie of its own with the package's file in it.
struct Machine {
    _scratch: Scratch,
    root: PathBuf,
}

impl Machine {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let root = scratch.path("root");
        let trixie = fs::canonicalize(tree("target-next/trixie")).expect("cargo xtask next trixie");
        let copied = Command::new("cp").args(["-a", "--reflink=auto"]).arg(trixie).arg(&root).status();
        assert!(copied.unwrap().success());
        fs::copy(tree("target-package/coroner.deb"), root.join("coroner.deb")).expect("cargo xtask package");
        Self { _scratch: scratch, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn run(&self, command: &[&str]) -> Output {
        let mut enter = Command::new("sh");
        enter.args(["-c", ENTER, "sh"]).arg(&self.root).args(command);
        enter.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        enter.output().unwrap()
    }

    fn succeeds(&self, command: &[&str]) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn status(&self) -> String {
        self.succeeds(&["dpkg-query", "-W", "-f=${db:Status-Abbrev}", "coroner"]).trim().to_owned()
    }

    /// Files that the service, containerd and the operator would have added.
    fn used(&self) -> [PathBuf; 3] {
        let files = [
            "/etc/coroner/policies.d/50-mine.wasm",
            "/var/log/coroner/audit.jsonl",
            "/var/lib/coroner/last-good/50-mine.wasm",
        ];
        files.map(|file| {
            let file = self.at(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "kept").unwrap();
            file
        })
    }
}

#[test]
fn package_installs_programs_units_pages_and_a_configuration_that_starts() {
    let machine = Machine::new();
    machine.succeeds(&["dpkg", "-i", "/coroner.deb"]);
    assert_eq!(machine.status(), "ii");
    for (program, argument) in
        [("coroner", "--version"), ("coroner-agent", "--version"), ("coroner", "--help")]
    {
        assert!(machine.succeeds(&[program, argument]).contains("oroner"), "{program}");
    }
    let checked = machine.succeeds(&["coroner", "check", "--config", "/etc/coroner/coroner.toml"]);
    assert!(checked.ends_with("good\n"), "{checked}");
    let executable = fs::metadata(machine.at("/usr/bin/containerd-shim-coroner-v2")).unwrap();
    assert_eq!(executable.permissions().mode() & 0o777, 0o755);
    let units =
        machine.succeeds(&["find", "/usr/lib/systemd/system", "-name", "coroner*", "-printf", "%f\n"]);
    let units: BTreeSet<&str> = units.lines().collect();
    let expect = ["coroner-agent.service", "coroner-shim.socket", "coroner.service", "coroner.socket"];
    assert_eq!(units, BTreeSet::from(expect));
    for file in [
        "/usr/share/man/man8/coroner.8.gz",
        "/usr/share/man/man8/coroner-policy-promote.8.gz",
        "/usr/share/man/man8/coroner-agent.8.gz",
        "/usr/share/bash-completion/completions/coroner",
        "/usr/share/zsh/vendor-completions/_coroner",
        "/usr/share/fish/vendor_completions.d/coroner.fish",
        "/usr/share/coroner/policies/causal-oom.wasm",
        "/usr/share/doc/coroner/examples/containerd-2.toml",
        "/usr/share/doc/coroner/copyright",
    ] {
        assert!(machine.at(file).is_file(), "{file}");
    }
    let wants = machine.at("/etc/systemd/system/multi-user.target.wants/coroner.service");
    assert!(!wants.is_symlink(), "an operator enables it");
    let policies = fs::metadata(machine.at("/etc/coroner/policies.d")).unwrap();
    assert_eq!(policies.permissions().mode() & 0o777, 0o755);
}

#[test]
fn upgrade_and_removal_keep_configuration_policies_and_state() {
    let machine = Machine::new();
    machine.succeeds(&["dpkg", "-i", "/coroner.deb"]);
    let used = machine.used();
    let config = machine.at("/etc/coroner/coroner.toml");
    let changed = fs::read_to_string(&config).unwrap() + "\n# changed\n";
    fs::write(&config, &changed).unwrap();
    machine.succeeds(&["dpkg", "--force-confold", "-i", "/coroner.deb"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);

    machine.succeeds(&["dpkg", "-r", "coroner"]);
    assert_eq!(machine.status(), "rc");
    assert_eq!(fs::read_to_string(&config).unwrap(), changed);
    for file in &used {
        assert_eq!(fs::read_to_string(file).unwrap(), "kept", "{}", file.display());
    }
    let left = machine.succeeds(&["find", "/usr", "/lib", "/bin", "/sbin", "-path", "*oroner*"]);
    assert_eq!(left, "", "programs, units and pages are gone");

    machine.succeeds(&["dpkg", "--purge", "coroner"]);
    assert!(!config.exists() && !machine.at("/var/log/coroner").exists());
    assert!(used[0].exists(), "a policy that was added by hand stays");
}

#[test]
fn removal_is_refused_while_containerd_starts_the_wrapper() {
    let machine = Machine::new();
    machine.succeeds(&["dpkg", "-i", "/coroner.deb"]);
    let config = machine.at("/etc/containerd/config.toml");
    fs::write(&config, WRAPPED).unwrap();
    let refused = machine.run(&["dpkg", "-r", "coroner"]);
    let text = format!("{refused:?}");
    assert!(!refused.status.success(), "{text}");
    for part in ["name the stock shims again", "coroner: not removed", "CORONER_REMOVE_ANYWAY=1"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(machine.status(), "ri", "it is installed; its removal was requested");
    machine.succeeds(&["coroner", "--version"]);

    fs::write(&config, "version = 2\n").unwrap();
    machine.succeeds(&["dpkg", "-r", "coroner"]);
    assert_eq!(machine.status(), "rc");
}

#[test]
fn removal_can_be_forced() {
    let machine = Machine::new();
    machine.succeeds(&["dpkg", "-i", "/coroner.deb"]);
    fs::write(machine.at("/etc/containerd/config.toml"), WRAPPED).unwrap();
    machine.succeeds(&["env", "CORONER_REMOVE_ANYWAY=1", "dpkg", "-r", "coroner"]);
    assert_eq!(machine.status(), "rc");
}
