//! Invariant 9: the same signals and policies give the same rulings, byte for byte: on an idle
//! machine, beside busy processes, and under a CPU quota.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coroner_core::case::Case;
use coroner_core::ruling::{FaultKind, Outcome, Ruling};
use coroner_core::signal::{ContainerId, Signal};
use coroner_policy::{QuarantineSettings, Settings};
use coroner_testkit::random;
use coroner_tests::binary::bundled_policy;
use coroner_tests::guests::component;
use coroner_tests::load::Load;
use coroner_tests::scratch::Scratch;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::museum::recording;
use super::{Dropped, dropped_with, settings};

const NAME: &str = "busy::rulings_are_equal_idle_loaded_and_under_a_quota";
/// Signals of the long form under the quota; see docs/internals/gate.md.
const SIGNALS_VARIABLE: &str = "CORONER_TEST_SIGNALS";
/// Set for the process under the quota: where it works.
const QUOTA_VARIABLE: &str = "CORONER_TEST_UNDER_QUOTA";
const SIGNALS: usize = 10_000;
/// Under the quota in the gate: a twentieth of a processor takes twenty times as long.
const SIGNALS_UNDER_QUOTA: usize = 1_000;
/// Every so many signals one policy computes until its fuel is over.
const SPINS: usize = 200;
const BUSY: usize = 8;
/// The kernel's usual period, and 5 % of it, in microseconds.
const PERIOD: u32 = 100_000;
const QUOTA: u32 = 5_000;

/// The bundled policies and one that spins, with the limits of a router. Quarantine follows the
/// clock, so there is none.
fn chain(cache: &Path) -> Dropped {
    let spinner = component("spinner").unwrap();
    let bundled = |name: &str| fs::read(bundled_policy(name).unwrap()).unwrap();
    let map = b"[[config.map]]\nfrom = 1\nto = 4\n[[config.map]]\nfrom = 137\nto = 247\nwhen = 'oom'\n";
    let quarantine = QuarantineSettings {
        faults: u32::MAX,
        burnt: Duration::from_secs(86_400),
        ..QuarantineSettings::default()
    };
    let settings = Settings { cache: Some(cache.to_owned()), quarantine, ..settings() };
    let dropped = dropped_with(
        settings,
        &[
            ("30-causal-oom.wasm", &bundled("causal-oom")),
            ("40-spinner.wasm", &spinner),
            ("50-sigkill-is-oom.wasm", &bundled("sigkill-is-oom")),
            ("50-sigkill-is-oom.toml", b"mode = 'shadow'\n[config]\nassume_no_kill_requests = true\n"),
            ("80-kill-attribution.wasm", &bundled("kill-attribution")),
            ("90-exit-code-map.wasm", &bundled("exit-code-map")),
            ("90-exit-code-map.toml", map),
        ],
    );
    assert_eq!(dropped.refused, []);
    dropped
}

/// The recording's signals under other ids, and random ones of a fixed seed, in turn.
fn signals(count: usize) -> Vec<(Signal, Case)> {
    let recorded = recording("0.1.0");
    let seed = TestRng::from_seed(RngAlgorithm::ChaCha, &[9; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
    let random = (random::signal(), random::case());
    let one = |at: usize| {
        let (mut signal, case) = match at % 2 {
            0 => {
                let kept = &recorded[at / 2 % recorded.len()];
                (kept.signal.clone(), kept.case.clone())
            }
            _ => random.new_tree(&mut runner).unwrap().current(),
        };
        signal.id = format!("n:s:c{}:{at}", at % 97);
        let container = if at.is_multiple_of(SPINS) { "spun".to_owned() } else { format!("c{}", at % 97) };
        signal.target.container_id = ContainerId::try_from(container).unwrap();
        (signal, case)
    };
    (0..count).map(one).collect()
}

/// A line for each ruling.
fn rule(dropped: &Dropped, signals: &[(Signal, Case)]) -> Vec<String> {
    let mut chain = dropped.chain();
    signals.iter().map(|(signal, case)| line(&chain.rule(signal, case))).collect()
}

fn line(outcome: &Outcome) -> String {
    let Outcome { draft, opinions, actions, illegal, shadow } = outcome;
    serde_json::to_string(&(draft, opinions, actions, illegal, shadow)).unwrap()
}

fn check(name: &str, idle: &[String], other: &[String]) {
    assert!(!other.is_empty());
    for (at, (expected, got)) in idle.iter().zip(other).enumerate() {
        assert_eq!(got, expected, "{name}: signal {at} is ruled otherwise than on an idle machine");
    }
}

/// Enough is ruled, and nothing ended by time.
fn check_idle(dropped: &Dropped, signals: &[(Signal, Case)]) {
    let mut chain = dropped.chain();
    let opinions: Vec<_> =
        signals.iter().flat_map(|(signal, case)| chain.rule(signal, case).opinions).collect();
    let decided = opinions.iter().filter(|it| matches!(it.ruling, Some(Ruling::Decide(_)))).count();
    assert!(decided > signals.len() / 2, "{decided} rulings");
    let faults: Vec<_> = opinions.iter().filter_map(|it| it.fault.as_ref()).collect();
    assert!(faults.iter().all(|it| it.kind == FaultKind::Fuel), "{faults:?}");
    assert!(faults.len() >= signals.len() / SPINS, "{} spins", faults.len());
}

#[test]
fn rulings_are_equal_idle_loaded_and_under_a_quota() {
    if let Some(folder) = std::env::var_os(QUOTA_VARIABLE) {
        return rule_under_quota(Path::new(&folder));
    }
    let scratch = Scratch::new().unwrap();
    let dropped = chain(&scratch.path("cache"));
    let signals = signals(SIGNALS);
    let idle = rule(&dropped, &signals);
    check_idle(&dropped, &signals[..SIGNALS_UNDER_QUOTA]);
    let load = Load::start(BUSY).unwrap();
    check("beside busy processes", &idle, &rule(&dropped, &signals));
    drop(load);
    check("under a quota", &idle, &under_quota(&scratch));
}

/// What another process rules that has a twentieth of a processor.
fn under_quota(scratch: &Scratch) -> Vec<String> {
    fs::write(scratch.path("procs"), limited(scratch.name()).to_str().unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME]).env(QUOTA_VARIABLE, scratch.directory());
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
    let ruled = fs::read_to_string(scratch.path("ruled")).unwrap();
    ruled.lines().map(str::to_owned).collect()
}

/// A new cgroup with the quota, on either version of cgroups: the file that takes its processes.
fn limited(name: &str) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    let version_1 = root.join("cpu");
    let cgroup = if version_1.is_dir() { version_1.join(name) } else { root.join(name) };
    if !version_1.is_dir() {
        fs::write(root.join("cgroup.subtree_control"), "+cpu").unwrap();
    }
    fs::create_dir(&cgroup).unwrap();
    if version_1.is_dir() {
        fs::write(cgroup.join("cpu.cfs_period_us"), PERIOD.to_string()).unwrap();
        fs::write(cgroup.join("cpu.cfs_quota_us"), QUOTA.to_string()).unwrap();
    } else {
        fs::write(cgroup.join("cpu.max"), format!("{QUOTA} {PERIOD}")).unwrap();
    }
    cgroup.join("cgroup.procs")
}

/// In the other process: loads the policies, joins the cgroup, and rules.
fn rule_under_quota(folder: &Path) {
    let count = std::env::var(SIGNALS_VARIABLE).map_or(SIGNALS_UNDER_QUOTA, |it| it.parse().unwrap());
    let dropped = chain(&folder.join("cache"));
    let signals = signals(count);
    let procs = fs::read_to_string(folder.join("procs")).unwrap();
    fs::write(procs, std::process::id().to_string()).unwrap();
    fs::write(folder.join("ruled"), rule(&dropped, &signals).join("\n")).unwrap();
}
