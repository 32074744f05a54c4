//! The command line, as a person or a script uses it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use coroner_tests::binary;
use serde_json::Value;

fn coroner() -> Command {
    Command::new(binary::find("coroner", "coroner").unwrap())
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ruled<'a>(lines: &'a [Value], kind: &str) -> &'a Value {
    let found = lines.iter().find(|it| it["record"] == "ruled" && !it["signal"]["event"][kind].is_null());
    found.unwrap_or_else(|| panic!("no {kind} in {lines:#?}"))
}

#[test]
fn the_demo_rules_a_real_kill_before_the_exit() {
    let output = coroner().args(["demo", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output);
    let (kill, exit) = (ruled(&lines, "oom-kill"), ruled(&lines, "exited"));
    let place = |it: &Value| lines.iter().position(|line| line == it).unwrap();
    assert!(place(kill) < place(exit));
    let told = &kill["signal"]["event"]["oom-kill"];
    assert_eq!((&told["evidence"], told["total"].as_u64() >= Some(1)), (&"counter".into(), true));
    assert_eq!(kill["actions"], serde_json::json!(["task-oom"]));
    assert_eq!(exit["signal"]["event"]["exited"]["status"], 1);
    assert_eq!(exit["actions"], serde_json::json!([{"task-exit": null}]));
    for record in [kill, exit] {
        let ruling = &record["rulings"][0];
        assert_eq!(ruling["policy"], "00-kubernetes");
        assert!(!ruling["ruling"]["decide"]["because"].as_str().unwrap().is_empty());
        let bundled = binary::digest(&binary::bundled_policy("kubernetes").unwrap()).unwrap();
        assert_eq!(ruling["digest"], bundled);
        // Nobody named this container, and nothing sees kill requests here.
        assert_eq!(record["signal"]["target"]["owner"], Value::Null);
        let known: Vec<_> =
            record["case"]["known"].as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
        for due in ["kill-count", "exit-status", "oom-writable", "exit-writable", "status-writable"] {
            assert!(known.contains(&due), "{known:?}");
        }
        assert!(!known.contains(&"kill-requests") && !known.contains(&"owner"), "{known:?}");
    }
    let sent: Vec<_> =
        lines.iter().filter(|it| it["record"] == "delivered").map(|it| it["topic"].clone()).collect();
    assert_eq!(sent, ["/tasks/oom", "/tasks/exit"]);
}

#[test]
fn the_demo_says_that_it_replays_where_no_cgroup_can_be_made() {
    // A folder anybody may read: the build's own may be root's alone.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("coroner");
    fs::copy(binary::find("coroner", "coroner").unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["demo", "--json"])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("takes root") && said.contains("REPLAY"), "{said}");
    let lines = lines(&output);
    assert_eq!(ruled(&lines, "oom-kill")["source"], "recording");
    assert_eq!(ruled(&lines, "exited")["actions"], serde_json::json!([{"task-exit": null}]));
}

fn scratch_cgroup(pid: u32) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let mount = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
    mount.join(format!("coroner-demo-{pid}"))
}

#[test]
fn an_interrupted_demo_clears_what_it_made() {
    // A full pipe holds the demo at its first line, with its cgroup made.
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'.'; 65536]).unwrap();
    let mut demo = coroner().arg("demo").stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    let cgroup = scratch_cgroup(demo.id());
    while !cgroup.exists() {
        assert!(demo.try_wait().unwrap().is_none(), "the demo ended early");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    let output = demo.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"), "{output:?}");
    assert!(!cgroup.exists());
}

#[test]
fn check_reports_every_mistake_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coroner.toml");
    fs::write(&config, "nod = \"x\"\n[[source]]\nname = \"a\"\ntype = \"agent\"\nmode = \"besides\"\n")
        .unwrap();
    let text = coroner().args(["check", "--config"]).arg(&config).output().unwrap();
    assert_eq!(text.status.code(), Some(2));
    let said = String::from_utf8_lossy(&text.stdout);
    for key in ["nod: ", "source[0].mode: ", "source[0].address: "] {
        assert!(said.contains(key), "{said}");
    }
    let json = coroner().args(["check", "--json", "--config"]).arg(&config).output().unwrap();
    let report = &lines(&json)[0];
    assert_eq!((&report["ok"], report["mistakes"].as_array().unwrap().len()), (&false.into(), 3), "{report}");
    let run = coroner().args(["run", "--config"]).arg(&config).output().unwrap();
    assert_eq!(run.status.code(), Some(2), "the router does not start with what check refuses");
}

#[test]
fn check_names_the_chain_and_what_is_wrong_with_a_policy() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.d");
    fs::create_dir(&policies).unwrap();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/coroner.toml")).unwrap();
    let config = folder.path().join("coroner.toml");
    fs::write(&config, text.replace("/etc/coroner/policies.d", &policies.display().to_string())).unwrap();
    let check = || {
        let output = coroner().args(["check", "--json", "--config"]).arg(&config).output().unwrap();
        (output.status.code(), lines(&output).remove(0))
    };
    let sigkill = binary::bundled_policy("sigkill-is-oom").unwrap();
    fs::copy(&sigkill, policies.join("50-sigkill-is-oom.wasm")).unwrap();
    let (code, report) = check();
    assert_eq!((code, report["ok"].as_bool()), (Some(0), Some(true)), "{report}");
    assert_eq!(report["chain"][0]["policy"], "00-kubernetes");
    assert_eq!(report["chain"][1]["digest"], binary::digest(&sigkill).unwrap());

    fs::write(policies.join("50-sigkill-is-oom.toml"), "[config]\nassume = true\n").unwrap();
    fs::write(policies.join("60-text.wasm"), "no component").unwrap();
    fs::write(policies.join("README"), "no policy").unwrap();
    let (code, report) = check();
    assert_eq!(code, Some(2));
    let errors: Vec<_> =
        report["chain"].as_array().unwrap().iter().filter_map(|it| it["error"].as_str()).collect();
    let about = |what: &str| assert!(errors.iter().any(|it| it.contains(what)), "{errors:?} lacks {what}");
    about("config.assume");
    about("60-text is no WebAssembly component");
    about("README is no policy");
    assert_eq!(report["chain"][0]["error"], Value::Null, "the others run");
}

#[test]
fn help_shows_examples() {
    for (name, package) in [("coroner", "coroner"), ("coroner-agent", "coroner-agent")] {
        let output = Command::new(binary::find(name, package).unwrap()).arg("--help").output().unwrap();
        assert!(output.status.success());
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("Examples:") && said.contains(&format!("{name} check")), "{said}");
        let unknown = Command::new(binary::find(name, package).unwrap()).arg("frobnicate").output().unwrap();
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    }
}
