//! Machines that are not there.

use coroner::config::Mode;

use super::super::containerd::Configuration;
use super::super::facts::{Cgroup, Daemon, Facts, Program, Router, Socket, Source};
use super::super::shims::{Kind, Shim};
use super::super::uninstall;
use super::super::wrapper::{Wrapper, called, file_of};
use super::*;

const OLD_CRI: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a]\n";
const NEW_CRI: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n";
const BY_PATH: &str =
    "runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/x/containerd-shim-coroner-v2\"\n";
const BY_TYPE: &str = "runtime_type = \"io.containerd.coroner.v2\"\n";
const STOCK: &str = "runtime_type = \"io.containerd.runc.v2\"\n";

fn socket(path: &str) -> Socket {
    Socket { path: path.into(), file: Ok((0o600, 0)) }
}

/// All is there and answers.
fn machine(configuration: &str, version: &str) -> Facts {
    let configuration = Configuration::of(&configuration.parse().unwrap());
    let program = |runtime: &Runtime| {
        let file = runtime.path.clone().or_else(|| file_of(&runtime.kind)).unwrap_or_default();
        let name = called(file.as_ref());
        let inner = name.is_some().then(|| "/x/inner".into());
        Program { wraps: name.is_some(), name: name.flatten(), inner, path: Some(file.into()) }
    };
    let source = Source {
        name: "shims".to_owned(),
        mode: Mode::Wrapped,
        socket: socket("/run/coroner/shim.sock"),
        hello: Ok("wrapped".to_owned()),
    };
    let address = "/run/containerd/containerd.sock";
    let ttrpc = "/run/containerd/containerd.sock.ttrpc";
    Facts {
        root: true,
        cgroup: Cgroup::V2,
        containerd: Daemon { address: address.into(), version: Ok(version.to_owned()), ttrpc: socket(ttrpc) },
        programs: configuration.runtimes.iter().map(program).collect(),
        configuration: Ok(configuration),
        path_is_seen: true,
        wrapper: Ok(Wrapper::default()),
        installed: Some("/x/containerd-shim-coroner-v2".into()),
        router: Ok(Router {
            containerd: Some((address.into(), ttrpc.into())),
            control: Some(socket("/run/coroner/control.sock")),
            sources: vec![source],
        }),
        shims: Vec::new(),
    }
}

fn bad(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.level != Level::Ok).collect()
}

/// One finding is not ok: of this level, whose message and change hold these.
fn check(facts: &Facts, level: Level, message: &str, change: &str) {
    let findings = all(facts);
    let bad = bad(&findings);
    let [finding] = bad.as_slice() else { panic!("{message}: {bad:?}") };
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.message.contains(message), "{finding:?} has no `{message}`");
    assert!(finding.change.as_deref().unwrap_or_default().contains(change), "{finding:?} has no `{change}`");
}

#[test]
fn a_doctor_finds_each_example_right_for_its_version_and_no_other() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/deploy/containerd-");
    for (file, right, wrong) in [
        ("1.6", ["1.6.20~ds1", "1.7.0"], ["2.0.0", "2.1.9"]),
        ("1.7", ["1.7.1", "1.7.24"], ["1.6.20", "1.7.0"]),
        ("2", ["2.0.0", "v2.1.9"], ["1.6.20", "1.7.24"]),
    ] {
        let text = std::fs::read_to_string(format!("{examples}{file}.toml")).unwrap();
        for version in right {
            let facts = machine(&text, version);
            assert_eq!(wrapped(&facts).count(), 2, "{file}: runc and Kata");
            assert_eq!(bad(&all(&facts)), Vec::<&Finding>::new(), "{file} with {version}");
        }
        // containerd 2 takes what was written for 1.6.
        for version in wrong.into_iter().filter(|_| file != "1.6") {
            let findings = all(&machine(&text, version));
            assert!(findings.iter().any(|it| it.level == Level::Wrong), "{file} with {version}");
        }
    }
}

#[test]
fn a_doctor_says_how_each_version_is_to_start_the_wrapper() {
    let options =
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a.options]\nSystemdCgroup = true\n";
    let new_in_old = NEW_CRI.replace("version = 3", "version = 2");
    let old_in_new = OLD_CRI.replace("version = 2", "version = 3");
    let kata =
        "runtime_type = \"io.containerd.kata.v2\"\nruntime_path = \"/x/containerd-shim-coroner-kata-v2\"\n";
    let default = OLD_CRI.replace("runtimes.a", "runtimes.runc") + &kata.replace("runtime_path", "none");
    for (version, text, level, message, change) in [
        ("1.6.20", format!("{OLD_CRI}{kata}"), Level::Wrong, "ignores", "\"io.containerd.coroner-kata.v2\""),
        ("1.7.24", default, Level::Warn, "uses the wrapper", kata.trim_end()),
        (
            "1.6.20",
            format!("{OLD_CRI}{BY_PATH}"),
            Level::Wrong,
            "ignores `runtime_path`",
            "runtimes.a]\nruntime_type = \"io.containerd.coroner.v2\"",
        ),
        (
            "1.7.0",
            format!("{OLD_CRI}{BY_PATH}"),
            Level::Wrong,
            "ignores `runtime_path`",
            "io.containerd.coroner.v2",
        ),
        (
            "1.6.20",
            format!("{OLD_CRI}{STOCK}"),
            Level::Warn,
            "no runtime of containerd uses",
            "\"io.containerd.coroner.v2\"",
        ),
        (
            "1.7.1",
            format!("{OLD_CRI}{STOCK}"),
            Level::Warn,
            "no runtime of containerd uses",
            "cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/x/",
        ),
        (
            "2.0.0",
            format!("{NEW_CRI}{STOCK}"),
            Level::Warn,
            "no runtime of containerd uses",
            "[plugins.'io.containerd.cri.v1.runtime'.containerd",
        ),
        ("2.3.0", format!("{NEW_CRI}{BY_PATH}"), Level::Warn, "may say OOMKilled", ""),
        (
            "2.1.9",
            format!("{NEW_CRI}runtime_path = \"/x/containerd-shim-coroner-v2\""),
            Level::Wrong,
            "no `runtime_type`",
            "runc.v2",
        ),
        (
            "1.7.24",
            format!("{NEW_CRI}{BY_PATH}"),
            Level::Wrong,
            "are not read",
            "[plugins.'io.containerd.grpc.v1.cri'.",
        ),
        ("1.6.20", format!("{old_in_new}{BY_TYPE}"), Level::Warn, "containerd 2's", "version = 2"),
        (
            "1.7.24",
            format!("{new_in_old}{BY_PATH}"),
            Level::Wrong,
            "are not read",
            "[plugins.'io.containerd.grpc.v1.cri'.",
        ),
        ("2.1.9", format!("{new_in_old}{BY_PATH}"), Level::Warn, "as version 3 does", "version = 3"),
        (
            "2.1.9",
            format!("{old_in_new}{BY_PATH}"),
            Level::Wrong,
            "are not read",
            "[plugins.'io.containerd.cri.v1.runtime'.",
        ),
        (
            "1.7.24",
            format!("{OLD_CRI}{BY_TYPE}{options}"),
            Level::Warn,
            "leave out SystemdCgroup",
            "runtime_path",
        ),
        (
            "1.7.24",
            format!("disabled_plugins = [\"cri\"]\n{OLD_CRI}{BY_PATH}"),
            Level::Warn,
            "takes CRI away",
            "",
        ),
        (
            "1.6.20",
            format!(
                "{OLD_CRI}{BY_TYPE}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.b]\n{STOCK}{}",
                options.replace(".a.", ".b.")
            ),
            Level::Warn,
            "cgroups are not systemd's",
            "/opt/containerd/bin",
        ),
    ] {
        check(&machine(&text, version), level, message, change);
    }
}

#[test]
fn a_doctor_says_what_is_missing_on_a_machine() {
    type Change = fn(&mut Facts);
    let cases: [(Change, Level, &str, &str); 20] = [
        (|it| it.root = false, Level::Warn, "does not run as root", "sudo"),
        (|it| it.cgroup = Cgroup::None, Level::Warn, "no memory controller", ""),
        (|it| it.containerd.version = Err("gone".to_owned()), Level::Wrong, "cannot be asked", ""),
        (
            |it| (it.path_is_seen, it.programs[0].path) = (false, None),
            Level::Wrong,
            "at `runtime_path`",
            "install",
        ),
        (|it| it.containerd.ttrpc.file = Err("gone".to_owned()), Level::Wrong, "no socket takes them", ""),
        (|it| it.configuration = Err("gone".to_owned()), Level::Warn, "no runtime is known", ""),
        (|it| it.programs[0].path = None, Level::Wrong, "no program", "install -m 0755"),
        (|it| it.programs[0].inner = None, Level::Wrong, "no containerd-shim-runc-v2 beside it", "inner ="),
        (|it| it.wrapper = Err("odd".to_owned()), Level::Wrong, "counts as none", ""),
        (|it| it.wrapper = Wrapper::of("f".into(), "later = 1"), Level::Warn, "not known here: later", ""),
        (
            |it| it.wrapper = Wrapper::of("f".into(), "mode = \"proxy\""),
            Level::Wrong,
            "without Coroner",
            "mode = \"wrapped\"",
        ),
        (
            |it| it.wrapper = Wrapper::of("f".into(), "socket = \"/y\""),
            Level::Wrong,
            "no source at /y",
            "address = \"unix:///y\"",
        ),
        (|it| it.router = Err("gone".to_owned()), Level::Wrong, "gone", "coroner check"),
        (
            |it| it.router.as_mut().unwrap().sources.clear(),
            Level::Wrong,
            "no source at /run/coroner",
            "type = \"shim\"",
        ),
        (
            |it| it.router.as_mut().unwrap().containerd = None,
            Level::Wrong,
            "has none",
            "[containerd]\naddress",
        ),
        (|it| it.containerd.address = "/z".into(), Level::Wrong, "says otherwise", "address = \"/z\""),
        (
            |it| it.router.as_mut().unwrap().sources[0].hello = Err("gone".to_owned()),
            Level::Wrong,
            "no router answers",
            "systemctl",
        ),
        (
            |it| it.router.as_mut().unwrap().sources[0].hello = Ok("proxy".to_owned()),
            Level::Wrong,
            "in mode \"proxy\"",
            "systemctl",
        ),
        (
            |it| it.router.as_mut().unwrap().sources[0].socket.file = Ok((0o666, 0)),
            Level::Wrong,
            "others may publish",
            "chmod 0600",
        ),
        (
            |it| it.router.as_mut().unwrap().control.as_mut().unwrap().file = Ok((0o660, 0)),
            Level::Wrong,
            "others may change",
            "chmod 0600",
        ),
    ];
    for (change, level, message, expect) in cases {
        let mut facts = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
        assert_eq!(bad(&all(&facts)), Vec::<&Finding>::new(), "before");
        change(&mut facts);
        check(&facts, level, message, expect);
    }
}

#[test]
fn a_doctor_takes_nothing_for_missing_that_it_may_not_see() {
    let mut facts = machine(&format!("{OLD_CRI}{BY_TYPE}"), "1.6.20");
    (facts.path_is_seen, facts.programs[0].path) = (false, None);
    check(&facts, Level::Warn, "PATH is not seen", "");
    facts.root = false;
    facts.router.as_mut().unwrap().sources[0].socket.path = "/other.sock".into();
    facts.containerd.version = Err("permission denied".to_owned());
    assert!(all(&facts).iter().all(|finding| finding.level != Level::Wrong));
}

fn shim(kind: Kind, id: &str) -> Shim {
    let id = Some(id.to_owned());
    let namespace = Some("k8s.io".to_owned());
    Shim { pid: 1, kind, id, namespace, program: "/x".into(), address: None, inner: None }
}

#[test]
fn a_doctor_names_pods_that_the_router_was_not_there_for() {
    let mut facts = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
    facts.shims = vec![shim(Kind::Proxy, "w2")];
    facts.shims[0].address = Some("/gone.sock".into());
    check(&facts, Level::Warn, "k8s.io/w2 at /gone.sock", "");
    facts.shims = vec![shim(Kind::Wrapped, "w1"), shim(Kind::PassedBy, "p1"), shim(Kind::Stock, "s1")];
    check(&facts, Level::Warn, "as long as they live: k8s.io/p1", "");
}

#[test]
fn a_doctor_lets_the_router_go_when_no_shim_needs_it() {
    let wrong = |facts: &Facts| uninstall::judge(facts).iter().any(|it| it.level == Level::Wrong);
    let mut facts = machine(&format!("{OLD_CRI}{STOCK}"), "1.7.24");
    assert_eq!(bad(&uninstall::judge(&facts)), Vec::<&Finding>::new());
    for (kind, expect) in [
        (Kind::Stock, false),
        (Kind::PassedBy, false),
        (Kind::Unknown, false),
        (Kind::Wrapped, true),
        (Kind::Proxy, true),
    ] {
        facts.shims = vec![shim(kind, "s1")];
        assert_eq!(wrong(&facts), expect, "{kind:?}");
    }
    let pods = uninstall::judge(&facts).into_iter().find(|it| it.level == Level::Wrong).unwrap();
    assert!(pods.message.contains("k8s.io/s1"), "{pods:?}");
    assert_eq!(pods.change.as_deref(), Some("crictl rmp --force s1"));
    let still = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
    assert!(uninstall::judge(&still)[0].message.contains("name the stock shims again"));
}
