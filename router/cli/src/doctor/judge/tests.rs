//! Machines that are not there.

use coroner::node::config::Mode;
use coroner_shim_config::{File, WrapperName};

use super::super::containerd::Configuration;
use super::super::facts::{Cgroup, Daemon, Facts, Program, RouterFacts, Socket, SourceFacts};
use super::super::shims::{Kind, Shim};
use super::super::wrapper::{Wrapper, called, file_of};
use super::super::{report, uninstall};
use super::*;

pub(in crate::doctor) const OLD_CRI: &str =
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a]\n";
const NEW_CRI: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.a]\n";
pub(in crate::doctor) const BY_PATH: &str =
    "runtime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/x/containerd-shim-coroner-v2\"\n";
const BY_TYPE: &str = "runtime_type = \"io.containerd.coroner.v2\"\n";
pub(in crate::doctor) const STOCK: &str = "runtime_type = \"io.containerd.runc.v2\"\n";

/// Its file has this text, and it is installed by these names.
fn wrapper(text: &str) -> Wrapper {
    let names = ["coroner", "coroner-kata", "fc"]
        .map(|it| WrapperName::of(format!("containerd-shim-{it}-v2").as_ref()));
    Wrapper { path: "shim.toml".into(), file: File::parse(text), names: names.into() }
}

fn socket(path: &str) -> Socket {
    Socket { path: path.into(), file: Ok((0o600, 0)) }
}

/// All is there and answers.
pub(in crate::doctor) fn machine(configuration: &str, version: &str) -> Facts {
    let configuration = Configuration::of(&configuration.parse().unwrap());
    let program = |runtime: &Runtime| {
        let file = runtime.path.clone().or_else(|| file_of(&runtime.kind)).unwrap_or_default();
        let wraps = called(file.as_ref()).is_some();
        let inner = wraps.then(|| "/x/inner".into());
        Program { wraps, name: WrapperName::of(file.as_ref()), inner, path: Some(file.into()) }
    };
    let source = SourceFacts {
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
        containerd: Daemon {
            address: address.into(),
            version: Ok(version.to_owned()),
            ttrpc: socket(ttrpc),
            started: Some(std::time::UNIX_EPOCH + std::time::Duration::from_secs(60)),
        },
        programs: configuration.runtimes.iter().map(program).collect(),
        configuration: Ok(configuration),
        path_is_seen: true,
        wrapper: wrapper(""),
        installed: Some("/x/containerd-shim-coroner-v2".into()),
        router: Ok(RouterFacts {
            containerd: Some((address.into(), ttrpc.into())),
            control: Some(socket("/run/coroner/control.sock")),
            sources: vec![source],
            agents: vec![("node".to_owned(), socket("/run/coroner/agent.sock"))],
            unwatched: Some(Vec::new()),
        }),
        shims: Vec::new(),
    }
}

pub(in crate::doctor) fn bad(findings: &[Finding]) -> Vec<&Finding> {
    findings.iter().filter(|finding| finding.level != Severity::Ok).collect()
}

/// One finding is not ok: it has this level, and its message and change contain these.
fn check(facts: &Facts, level: Severity, message: &str, change: &str) {
    let findings = all(facts);
    let bad = bad(&findings);
    let [finding] = bad.as_slice() else { panic!("{message}: {bad:?}") };
    assert_eq!(finding.level, level, "{finding:?}");
    assert!(finding.message.contains(message), "{finding:?} has no `{message}`");
    assert!(finding.change.as_deref().unwrap_or_default().contains(change), "{finding:?} has no `{change}`");
}

#[test]
fn example_is_right_for_its_containerd_version_only() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/deploy/containerd-");
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
            assert!(findings.iter().any(|it| it.level == Severity::Wrong), "{file} with {version}");
        }
    }
}

#[test]
fn each_version_gets_its_own_wrapper_advice() {
    let options =
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a.options]\nSystemdCgroup = true\n";
    let new_in_old = NEW_CRI.replace("version = 3", "version = 2");
    let old_in_new = OLD_CRI.replace("version = 2", "version = 3");
    let kata =
        "runtime_type = \"io.containerd.kata.v2\"\nruntime_path = \"/x/containerd-shim-coroner-kata-v2\"\n";
    let default = OLD_CRI.replace("runtimes.a", "runtimes.runc") + &kata.replace("runtime_path", "none");
    for (version, text, level, message, change) in [
        (
            "1.6.20",
            format!("{OLD_CRI}{kata}"),
            Severity::Wrong,
            "ignores",
            "\"io.containerd.coroner-kata.v2\"",
        ),
        ("1.7.24", default, Severity::Warn, "uses the wrapper", kata.trim_end()),
        (
            "1.6.20",
            format!("{OLD_CRI}{BY_PATH}"),
            Severity::Wrong,
            "ignores `runtime_path`",
            "runtimes.a]\nruntime_type = \"io.containerd.coroner.v2\"",
        ),
        (
            "1.7.0",
            format!("{OLD_CRI}{BY_PATH}"),
            Severity::Wrong,
            "ignores `runtime_path`",
            "io.containerd.coroner.v2",
        ),
        (
            "1.6.20",
            format!("{OLD_CRI}{STOCK}"),
            Severity::Warn,
            "no runtime of containerd uses",
            "\"io.containerd.coroner.v2\"",
        ),
        (
            "1.7.1",
            format!("{OLD_CRI}{STOCK}"),
            Severity::Warn,
            "no runtime of containerd uses",
            "cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"/x/",
        ),
        (
            "2.0.0",
            format!("{NEW_CRI}{STOCK}"),
            Severity::Warn,
            "no runtime of containerd uses",
            "[plugins.'io.containerd.cri.v1.runtime'.containerd",
        ),
        ("2.3.0", format!("{NEW_CRI}{BY_PATH}"), Severity::Warn, "may show OOMKilled", ""),
        (
            "2.1.9",
            format!("{NEW_CRI}runtime_path = \"/x/containerd-shim-coroner-v2\""),
            Severity::Wrong,
            "no `runtime_type`",
            "runc.v2",
        ),
        (
            "1.7.24",
            format!("{NEW_CRI}{BY_PATH}"),
            Severity::Wrong,
            "are not read",
            "[plugins.'io.containerd.grpc.v1.cri'.",
        ),
        ("1.6.20", format!("{old_in_new}{BY_TYPE}"), Severity::Warn, "containerd 2's", "version = 2"),
        (
            "1.7.24",
            format!("{new_in_old}{BY_PATH}"),
            Severity::Wrong,
            "are not read",
            "[plugins.'io.containerd.grpc.v1.cri'.",
        ),
        ("2.1.9", format!("{new_in_old}{BY_PATH}"), Severity::Warn, "as version 3 does", "version = 3"),
        (
            "2.1.9",
            format!("{old_in_new}{BY_PATH}"),
            Severity::Wrong,
            "are not read",
            "[plugins.'io.containerd.cri.v1.runtime'.",
        ),
        (
            "1.7.24",
            format!("{OLD_CRI}{BY_TYPE}{options}"),
            Severity::Warn,
            "leave out SystemdCgroup",
            "runtime_path",
        ),
        (
            "1.7.24",
            format!("disabled_plugins = [\"cri\"]\n{OLD_CRI}{BY_PATH}"),
            Severity::Warn,
            "takes CRI away",
            "",
        ),
        (
            "1.6.20",
            format!(
                "{OLD_CRI}{BY_TYPE}[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.b]\n{STOCK}{}",
                options.replace(".a.", ".b.")
            ),
            Severity::Warn,
            "cgroups are not systemd's",
            "/opt/containerd/bin",
        ),
    ] {
        check(&machine(&text, version), level, message, change);
    }
}

/// A file of this time in seconds.
pub(in crate::doctor) fn changed(at: u64) -> Option<(std::path::PathBuf, std::time::SystemTime)> {
    Some(("/etc/c.toml".into(), std::time::UNIX_EPOCH + std::time::Duration::from_secs(at)))
}

#[test]
fn what_is_missing_on_a_machine_is_found() {
    type Change = fn(&mut Facts);
    let cases: [(Change, Severity, &str, &str); 25] = [
        (|it| it.root = false, Severity::Warn, "does not run as root", "sudo"),
        (|it| it.cgroup = Cgroup::None, Severity::Warn, "no memory controller", ""),
        (|it| it.containerd.version = Err("gone".to_owned()), Severity::Wrong, "cannot be read at", ""),
        (
            |it| (it.path_is_seen, it.programs[0].path) = (false, None),
            Severity::Wrong,
            "at `runtime_path`",
            "install",
        ),
        (|it| it.containerd.ttrpc.file = Err("gone".to_owned()), Severity::Wrong, "no socket takes them", ""),
        (
            |it| it.configuration.as_mut().unwrap().changed = changed(62),
            Severity::Warn,
            "/etc/c.toml was changed after containerd started",
            "systemctl restart containerd",
        ),
        (|it| it.configuration = Err("gone".to_owned()), Severity::Warn, "no runtime is known", ""),
        (|it| it.programs[0].path = None, Severity::Wrong, "no program", "install -m 0755"),
        (
            |it| it.programs[0].inner = None,
            Severity::Wrong,
            "no containerd-shim-runc-v2 beside it",
            "inner =",
        ),
        (|it| it.wrapper = wrapper("later = 1"), Severity::Wrong, "counts as none", ""),
        (|it| it.wrapper = wrapper("hold = \"6s\""), Severity::Wrong, "`6s` is over 5s", ""),
        (|it| it.wrapper = wrapper("mode = \"both\""), Severity::Wrong, "unknown variant `both`", ""),
        (
            |it| it.wrapper = wrapper("[runtime.kata]\n[runtime.fc]\n[runtime.gvisor]"),
            Severity::Warn,
            "[runtime.gvisor] is ignored",
            "/usr/local/bin/containerd-shim-coroner-gvisor-v2",
        ),
        (
            |it| it.wrapper = wrapper("mode = \"proxy\""),
            Severity::Wrong,
            "without Coroner",
            "mode = \"wrapped\"",
        ),
        (
            |it| it.wrapper = wrapper("socket = \"/y\""),
            Severity::Wrong,
            "no source at /y",
            "address = \"unix:///y\"",
        ),
        (|it| it.router = Err("gone".to_owned()), Severity::Wrong, "gone", "coroner check"),
        (
            |it| it.router.as_mut().unwrap().sources.clear(),
            Severity::Wrong,
            "no source at /run/coroner",
            "type = \"shim\"",
        ),
        (
            |it| it.router.as_mut().unwrap().containerd = None,
            Severity::Wrong,
            "has none",
            "[containerd]\naddress",
        ),
        (|it| it.containerd.address = "/z".into(), Severity::Wrong, "differs from", "address = \"/z\""),
        (
            |it| it.router.as_mut().unwrap().sources[0].hello = Err("gone".to_owned()),
            Severity::Wrong,
            "no router answers",
            "systemctl",
        ),
        (
            |it| it.router.as_mut().unwrap().sources[0].hello = Ok("proxy".to_owned()),
            Severity::Wrong,
            "in mode \"proxy\"",
            "systemctl",
        ),
        (
            |it| it.router.as_mut().unwrap().sources[0].socket.file = Ok((0o666, 0)),
            Severity::Wrong,
            "others may publish",
            "chmod 0600",
        ),
        (
            |it| it.router.as_mut().unwrap().agents.clear(),
            Severity::Warn,
            "no source reads an agent",
            "type = \"agent\"",
        ),
        (
            |it| it.router.as_mut().unwrap().agents[0].1.file = Err("gone".to_owned()),
            Severity::Wrong,
            "no agent listens at /run/coroner/agent.sock (gone)",
            "systemctl enable --now coroner-agent",
        ),
        (
            |it| it.router.as_mut().unwrap().control.as_mut().unwrap().file = Ok((0o660, 0)),
            Severity::Wrong,
            "others may change",
            "chmod 0600",
        ),
    ];
    for (change, level, message, expect) in cases {
        let mut facts = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
        facts.configuration.as_mut().unwrap().changed = changed(60);
        assert_eq!(bad(&all(&facts)), Vec::<&Finding>::new(), "before");
        change(&mut facts);
        check(&facts, level, message, expect);
    }
}

#[test]
fn what_may_not_be_read_is_not_reported_as_missing() {
    let mut facts = machine(&format!("{OLD_CRI}{BY_TYPE}"), "1.6.20");
    (facts.path_is_seen, facts.programs[0].path) = (false, None);
    check(&facts, Severity::Warn, "PATH is not seen", "");
    facts.root = false;
    facts.router.as_mut().unwrap().sources[0].socket.path = "/other.sock".into();
    facts.containerd.version = Err("permission denied".to_owned());
    assert!(all(&facts).iter().all(|finding| finding.level != Severity::Wrong));
}

pub(in crate::doctor) fn shim(kind: Kind, id: &str) -> Shim {
    let id = Some(id.to_owned());
    let namespace = Some("k8s.io".to_owned());
    Shim { pid: 1, kind, id, namespace, program: "/x".into(), address: None, inner: None }
}

#[test]
fn pods_started_without_the_router_are_named() {
    let mut facts = machine(&format!("{OLD_CRI}{BY_PATH}"), "1.7.24");
    facts.shims = vec![shim(Kind::Proxy, "w2")];
    facts.shims[0].address = Some("/gone.sock".into());
    check(&facts, Severity::Warn, "k8s.io/w2 at /gone.sock", "");
    facts.shims = vec![shim(Kind::Wrapped, "w1"), shim(Kind::PassedBy, "p1"), shim(Kind::Stock, "s1")];
    check(&facts, Severity::Warn, "as long as they live: k8s.io/p1", "");
}

#[test]
fn shim_without_its_proxy_is_wrong_in_mode_proxy() {
    let mut facts = machine(&format!("{NEW_CRI}{BY_PATH}"), "2.1.9");
    facts.wrapper = wrapper("mode = \"proxy\"");
    let source = &mut facts.router.as_mut().unwrap().sources[0];
    (source.mode, source.hello) = (Mode::Proxy, Ok("proxy".to_owned()));
    let socket = Some(source.socket.path.clone());
    let at_source = |kind, id: &str| Shim { address: socket.clone(), ..shim(kind, id) };
    facts.shims = vec![at_source(Kind::Wrapped, "p1"), at_source(Kind::Proxy, "p1")];
    assert_eq!(bad(&all(&facts)), Vec::<&Finding>::new(), "each has one");
    facts.shims.push(at_source(Kind::Wrapped, "p2"));
    facts.shims.push(Shim { namespace: Some("other".to_owned()), ..at_source(Kind::Proxy, "p2") });
    check(&facts, Severity::Wrong, "1 s late: k8s.io/p2.", "journalctl -t containerd-shim-coroner-v2");
    facts.router.as_mut().unwrap().sources[0].mode = Mode::Wrapped;
    let about = |it: &Finding| it.message.contains("have no proxy");
    assert!(!all(&facts).iter().any(about), "mode wrapped has no proxies");
}

#[test]
fn doctors_report_has_a_line_each_and_its_change_below() {
    let mut facts = machine(&format!("{NEW_CRI}{BY_PATH}"), "2.1.9");
    let mut screen = crate::render::Screen::plain();
    all(&facts).iter().for_each(|finding| report::show(finding, &mut screen));
    screen.line("");
    facts.root = false;
    facts.router = Err("no such file".to_owned());
    facts.cgroup = Cgroup::None;
    all(&facts).iter().for_each(|finding| report::show(finding, &mut screen));
    screen.line("");
    uninstall::judge(&facts).iter().for_each(|finding| report::show(finding, &mut screen));
    insta::assert_snapshot!(screen.text());
}
