//! The units in examples/deploy/systemd: systemd accepts them, and what they forbid is not needed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use coroner::node::config::SourceKind;
use coroner_tests::binary;
use coroner_tests::report::print;
use tempfile::TempDir;

use super::text;

const UNITS: [&str; 4] =
    ["coroner.service", "coroner.socket", "coroner-agent.service", "coroner-shim.socket"];

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(path)
}

/// The keys of a unit; one that is given more than once has its values joined.
fn keys(unit: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(example(&format!("deploy/systemd/{unit}"))).unwrap();
    let mut keys = BTreeMap::new();
    for (key, value) in
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
    {
        let all: &mut String = keys.entry(key.to_owned()).or_default();
        *all = format!("{all} {value}").trim().to_owned();
    }
    keys
}

/// A root folder with the units, what they start, and systemd's own units, as on a node.
fn root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for folder in ["etc/systemd/system", "usr/sbin", "usr/bin", "usr/lib/systemd"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    symlink("usr/bin", at("bin")).unwrap();
    // Not on every machine that builds: what counts here is that it is an executable.
    fs::write(at("usr/bin/kill"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("usr/bin/kill"), fs::Permissions::from_mode(0o755)).unwrap();
    let copied =
        Command::new("cp").args(["-a", "/usr/lib/systemd/system"]).arg(at("usr/lib/systemd")).status();
    assert!(copied.unwrap().success());
    for unit in UNITS {
        fs::copy(example(&format!("deploy/systemd/{unit}")), at(&format!("etc/systemd/system/{unit}")))
            .unwrap();
    }
    for (name, package) in [("coroner", "coroner-cli"), ("coroner-agent", "coroner-agent")] {
        fs::copy(binary::find(name, package).unwrap(), at(&format!("usr/sbin/{name}"))).unwrap();
    }
    root
}

fn analyze(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg("--no-pager").arg("--root").arg(root);
    command.output().expect("systemd-analyze is installed")
}

#[test]
fn systemd_accepts_the_units_without_output() {
    let root = root();
    let verified = analyze(root.path(), &[&["verify", "--man=no"], UNITS.as_slice()].concat());
    assert!(verified.status.success() && verified.stderr.is_empty(), "{}", text(&verified.stderr));
    // A key that it does not know would have been reported.
    let unit = root.path().join("etc/systemd/system/coroner.service");
    let spoilt = fs::read_to_string(&unit).unwrap().replace("[Service]\n", "[Service]\nRestartSecs=1\n");
    fs::write(&unit, spoilt).unwrap();
    let spoilt = analyze(root.path(), &["verify", "--man=no", "coroner.service"]);
    assert!(text(&spoilt.stderr).contains("RestartSecs"), "{spoilt:?}");
}

#[test]
fn service_exposure_scores_stay_below_their_threshold() {
    let root = root();
    // 10 is a service without any restriction. What these cannot do without is named beside its key
    // in the unit.
    for (unit, threshold) in [("coroner.service", 25), ("coroner-agent.service", 35)] {
        let threshold = format!("--threshold={threshold}");
        let scored = analyze(root.path(), &["security", "--offline=true", &threshold, unit]);
        let report = text(&scored.stdout);
        let score = report.lines().rev().find(|line| line.contains("Overall exposure level")).unwrap();
        print(score.trim_start_matches(['→', ' ']));
        assert!(scored.status.success(), "{report}");
    }
}

#[test]
fn units_match_the_operations_page() {
    let (service, socket, agent) = (keys(UNITS[0]), keys(UNITS[1]), keys(UNITS[2]));
    for (key, value) in [
        ("Type", "notify"),
        ("RestartSec", "100ms"),
        ("OOMScoreAdjust", "-999"),
        ("RuntimeDirectory", "coroner"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("CacheDirectory", "coroner"),
        ("StateDirectory", "coroner"),
    ] {
        assert_eq!(service[key], value, "{key}");
    }
    assert!(service.contains_key("MemoryMax") && agent.contains_key("MemoryMax"));
    assert_eq!((&agent["OOMScoreAdjust"], &agent["RestartSec"]), (&"-999".to_owned(), &"100ms".to_owned()));
    // Unit and programs agree on where things are.
    let text = fs::read_to_string(example("coroner.toml")).unwrap();
    let config = coroner::node::config::Config::parse(&text).unwrap();
    assert_eq!(Path::new(&socket["ListenStream"]), config.control.unwrap());
    assert_eq!(socket["SocketMode"], "0600");
    assert!(text.contains(agent["ExecStart"].split("--listen ").nth(1).unwrap()));
    // The package's configuration has a source at each socket of wrapped shims.
    let text = fs::read_to_string(example("deploy/debian/coroner.toml")).unwrap();
    let config = coroner::node::config::Config::parse(&text).unwrap();
    let shims = config.sources.iter().filter(|it| it.kind == SourceKind::Shim);
    let addresses: Vec<String> = shims.map(|it| it.address.to_string()).collect();
    let sockets = keys(UNITS[3])["ListenStream"].clone();
    assert_eq!(addresses, sockets.split(' ').map(|it| format!("unix://{it}")).collect::<Vec<_>>());
}

/// A command with the capabilities that a unit leaves, and no way to more.
fn confined(unit: &str) -> Command {
    let left = keys(unit)["CapabilityBoundingSet"].to_lowercase();
    let left: String = left.split(' ').map(|it| format!(",+{}", it.trim_start_matches("cap_"))).collect();
    let mut command = Command::new("setpriv");
    command.args(["--no-new-privs", &format!("--bounding-set=-all{left}"), "--inh-caps=-all"]);
    command
}

#[test]
fn agent_with_its_units_capabilities_loses_no_feature() {
    let agent = binary::find("coroner-agent", "coroner-agent").unwrap();
    let capabilities = |command: &mut Command| {
        let output = command.arg("check").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        // Containers come and go; what can be known does not.
        let stdout = text(&output.stdout);
        let lines = stdout.lines().take_while(|line| !line.starts_with("container"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let free = capabilities(&mut Command::new(&agent));
    assert!(free.iter().any(|line| line.contains("sidecar")), "{free:?}");
    assert_eq!(capabilities(confined(UNITS[2]).arg(&agent)), free);
    let mut none = Command::new("setpriv");
    none.args(["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]).arg(&agent);
    assert_ne!(capabilities(&mut none), free, "the capabilities make a difference");
}

#[test]
fn router_with_its_units_capabilities_runs_policies() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.d");
    fs::create_dir(&policies).unwrap();
    let bundled = binary::bundled_policy("sigkill-is-oom").unwrap();
    fs::copy(bundled, policies.join("50-sigkill-is-oom.wasm")).unwrap();
    let text = fs::read_to_string(example("coroner.toml")).unwrap();
    let config = folder.path().join("coroner.toml");
    let text = text.replace("/etc/coroner/policies.d", &policies.display().to_string());
    // The unit makes the folder.
    fs::write(&config, text.replace("/var/log/coroner", &folder.path().display().to_string())).unwrap();
    let mut check = confined(UNITS[0]);
    check.arg(binary::find("coroner", "coroner-cli").unwrap()).args(["check", "--config"]).arg(&config);
    let output = check.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn check_names_the_socket_that_the_units_lack() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coroner.toml");
    let policies = folder.path().join("policies.d");
    fs::create_dir(&policies).unwrap();
    let example = fs::read_to_string(example("coroner.toml")).unwrap();
    let example = example.replace("/etc/coroner/policies.d", &policies.display().to_string());
    let example = example.replace("/var/log/coroner", &folder.path().display().to_string());
    let check = |toml: &str| {
        fs::write(&config, toml).unwrap();
        let mut command = Command::new(binary::find("coroner", "coroner-cli").unwrap());
        text(&command.args(["check", "--config"]).arg(&config).output().unwrap().stdout)
    };
    let unit = &keys(UNITS[1])["ListenStream"];
    let stdout = check(&format!("{example}\n[control]\nsocket = \"/run/other.sock\"\n"));
    assert!(stdout.contains(&format!("ListenStream=/run/other.sock in place of {unit}")), "{stdout}");
    let stdout = check(&example);
    assert!(stdout.ends_with("good\n") && !stdout.contains("ListenStream"), "{stdout}");
}
