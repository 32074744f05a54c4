//! The command line, as a person or a script uses it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use coroner_tests::binary;
use serde_json::Value;

fn coroner() -> Command {
    Command::new(binary::find("coroner", "coroner-cli").unwrap())
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
fn demo_rules_a_real_kill_before_the_exit() {
    let output = coroner().args(["demo", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output);
    let (kill, exit) = (ruled(&lines, "oom-kill"), ruled(&lines, "exited"));
    let place = |it: &Value| lines.iter().position(|line| line == it).unwrap();
    assert!(place(kill) < place(exit));
    let event = &kill["signal"]["event"]["oom-kill"];
    assert_eq!((&event["evidence"], event["total"].as_u64() >= Some(1)), (&"counter".into(), true));
    assert_eq!(kill["actions"], serde_json::json!(["task-oom"]));
    assert_eq!(exit["signal"]["event"]["exited"]["status"], 1);
    assert_eq!(exit["actions"], serde_json::json!([{"task-exit": null}]));
    for record in [kill, exit] {
        let ruling = &record["rulings"][0];
        assert_eq!(ruling["policy"], "00-kubernetes");
        assert!(!ruling["ruling"]["decide"]["because"].as_str().unwrap().is_empty());
        let bundled = binary::digest(&binary::bundled_policy("kubernetes").unwrap()).unwrap();
        assert_eq!(ruling["digest"], bundled);
        // The container has no owner, and kill requests are not seen here.
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
    // Where the kernel's log is read, the victim is this program under a name of its own.
    let log_is_read = kill["case"]["known"].as_array().unwrap().contains(&"victim".into());
    let victim = event["victim"]["comm"].as_str();
    assert_eq!(victim, log_is_read.then_some("demo-victim"), "{event}");
}

#[test]
fn demo_names_its_receiver() {
    let output = coroner().arg("demo").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("A stand-in for containerd, part of this demo, receives"), "{text}");
    assert!(text.contains("The process demo-victim in a cgroup"), "{text}");
    for topic in ["/tasks/oom", "/tasks/exit"] {
        assert!(text.contains(&format!("stand-in took {topic}: 1 try")), "{text}");
    }
    let receivers: Vec<&str> = text.lines().filter(|line| line.contains("containerd")).collect();
    assert!(receivers.iter().all(|line| line.contains("stand-in")), "{receivers:?}");
}

#[test]
fn demo_without_cgroup_rights_announces_its_replay() {
    // A folder that all users may read: the build's own may be root's alone.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("coroner");
    fs::copy(binary::find("coroner", "coroner-cli").unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["demo", "--json"])
        .current_dir("/")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("takes root") && stderr.contains("REPLAY"), "{stderr}");
    let lines = lines(&output);
    assert_eq!(ruled(&lines, "oom-kill")["source"], "recording");
    assert_eq!(ruled(&lines, "exited")["actions"], serde_json::json!([{"task-exit": null}]));
}

#[test]
fn embedded_router_rules_its_shims_status() {
    let folder = tempfile::tempdir().unwrap();
    let program = binary::find("embed", "embed").unwrap();
    let output = Command::new(program).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("policies       00-kubernetes, 90-exit-code-map\n"), "{text}");
    assert!(text.contains("real status    137\nruled status   247\n"), "{text}");
    let audit = fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    let records: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (kill, exit) = (ruled(&records, "oom-kill"), ruled(&records, "exited"));
    let place = |it: &Value| records.iter().position(|record| record == it).unwrap();
    assert!(place(kill) < place(exit));
    assert_eq!((&kill["source"], &kill["mode"]), (&"my-shim".into(), &"sole".into()));
    assert_eq!(kill["signal"]["event"]["oom-kill"]["total"], 1);
    assert_eq!(exit["actions"], serde_json::json!([{"task-exit": 247}]));
}

fn scratch_cgroup(pid: u32) -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/memory");
    let mount = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
    mount.join(format!("coroner-demo-{pid}"))
}

#[test]
fn interrupted_demo_removes_what_it_created() {
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
    let stdout = String::from_utf8_lossy(&text.stdout);
    for key in ["nod: ", "source[0].mode: ", "source[0].address: "] {
        assert!(stdout.contains(key), "{stdout}");
    }
    let json = coroner().args(["check", "--json", "--config"]).arg(&config).output().unwrap();
    let report = &lines(&json)[0];
    assert_eq!((&report["ok"], report["mistakes"].as_array().unwrap().len()), (&false.into(), 3), "{report}");
    let run = coroner().args(["run", "--config"]).arg(&config).output().unwrap();
    assert_eq!(run.status.code(), Some(2), "the router does not start with what check refuses");
}

#[test]
fn check_and_run_refuse_wrapped_shims_without_lifecycle_sink() {
    let folder = tempfile::tempdir().unwrap();
    let (config, socket) = (folder.path().join("coroner.toml"), folder.path().join("shim.sock"));
    for mode in ["wrapped", "proxy"] {
        let text = format!(
            "[control]\nsocket = \"{dir}/control.sock\"\n[journal]\ndirectory = \"{dir}/journal\"\n\
             [[source]]\nname = \"pods\"\ntype = \"shim\"\nmode = \"{mode}\"\naddress = \"unix://{}\"\n\
             [[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"{dir}/audit.jsonl\"\n",
            socket.display(),
            dir = folder.path().display(),
        );
        fs::write(&config, text).unwrap();
        let refused = |command: &str| {
            let output = coroner().args([command, "--config"]).arg(&config).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{command} {mode}: {output:?}");
            String::from_utf8(if command == "check" { output.stdout } else { output.stderr }).unwrap()
        };
        let (checked, run) = (refused("check"), refused("run"));
        let lines: Vec<&str> = checked.lines().collect();
        assert_eq!(lines, run.lines().collect::<Vec<_>>(), "both report the same");
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let source = format!("sink: source `pods` of mode \"{mode}\" needs a sink of type \"containerd\"");
        assert!(line.contains(&source) && line.contains("\"oom-file\" on CRI-O"), "{line}");
        assert!(!socket.exists(), "no shim can connect");
    }
}

#[test]
fn check_names_what_is_missing_on_this_machine() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("coroner.toml");
    let text = r#"
        [journal]
        directory = "@DIR@/coroner.toml/journal"
        [containerd]
        address = "@DIR@/containerd.sock"
        [[source]]
        name = "node"
        type = "agent"
        mode = "beside"
        address = "unix://@DIR@/agent.sock"
        [[sink]]
        name = "containerd"
        type = "containerd"
        [[sink]]
        name = "audit"
        type = "jsonl"
        path = "@DIR@/gone/audit.jsonl"
        [[sink]]
        name = "pager"
        type = "webhook"
        url = "https://example.com/x"
        token_file = "@DIR@/gone/token"
        [[route]]
        topics = ["audit"]
        sinks = ["pager"]
    "#;
    fs::write(&config, text.replace("@DIR@", &folder.path().display().to_string())).unwrap();
    let output = coroner().args(["check", "--json", "--config"]).arg(&config).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let report = &lines(&output)[0];
    let keys: Vec<_> =
        report["mistakes"].as_array().unwrap().iter().map(|it| it["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["journal.directory", "sink[1].path", "sink[2].token_file"], "{report}");
}

#[test]
fn check_names_the_chain_and_what_is_wrong_with_a_policy() {
    let folder = tempfile::tempdir().unwrap();
    let policies = folder.path().join("policies.d");
    fs::create_dir(&policies).unwrap();
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/coroner.toml")).unwrap();
    let config = folder.path().join("coroner.toml");
    let text = text.replace("/etc/coroner/policies.d", &policies.display().to_string());
    fs::write(&config, text.replace("/var/log/coroner", &folder.path().display().to_string())).unwrap();
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
    about("60-text is not a WebAssembly component");
    about("README is not a policy file");
    assert_eq!(report["chain"][0]["error"], Value::Null, "the others run");
}

#[test]
fn help_shows_examples() {
    for (name, package) in [("coroner", "coroner-cli"), ("coroner-agent", "coroner-agent")] {
        let output = Command::new(binary::find(name, package).unwrap()).arg("--help").output().unwrap();
        assert!(output.status.success());
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.contains("Examples:") && stdout.contains(&format!("{name} check")), "{stdout}");
        let unknown = Command::new(binary::find(name, package).unwrap()).arg("frobnicate").output().unwrap();
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    }
}

/// A control socket that answers every request with this document.
fn answering(socket: &Path, document: &Value) {
    let (listener, body) = (UnixListener::bind(socket).unwrap(), document.to_string());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 4096];
            // A request without a body is one write.
            if stream.read(&mut request).is_ok_and(|read| read > 0) {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap_or(());
            }
        }
    });
}

/// Every command that prints, and its exit code when its output is read.
fn printing(folder: &Path) -> Vec<(Command, i32)> {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR")).join("../router/cli/src");
    let answers: Value =
        serde_json::from_str(&fs::read_to_string(cli.join("client/answers.json")).unwrap()).unwrap();
    let recording = cli.join("demo/recording.jsonl").display().to_string();
    let none = folder.join("none").display().to_string();
    let queries: [(&str, &[&str]); 4] = [
        ("status", &["status"]),
        ("list", &["policy", "list"]),
        ("inspect", &["policy", "inspect", "70-trap"]),
        ("guests", &["guest", "list"]),
    ];
    let mut commands: Vec<(Command, i32)> = Vec::new();
    for (name, arguments) in queries {
        let socket = folder.join(name);
        answering(&socket, &answers[name]);
        for json in [&[][..], &["--json"]] {
            let mut command = coroner();
            command.args(arguments).args(json).env("CORONER_SOCKET", &socket);
            commands.push((command, 0));
        }
    }
    let others: [(&[&str], i32); 4] = [
        (&["explain", "0000", "--file", &recording], 0),
        (&["check", "--config", &none], 2),
        (&["policy", "check", &none], 2),
        (&["demo"], 0),
    ];
    for (arguments, code) in others {
        for json in [&[][..], &["--json"]] {
            let mut command = coroner();
            command.args(arguments).args(json);
            commands.push((command, code));
        }
    }
    let mut page = coroner();
    page.args(["explain", "0000", "--html", "-", "--file", &recording]);
    commands.push((page, 0));
    commands
}

#[test]
fn full_disk_is_one_line_and_code_1_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for (mut command, _) in printing(folder.path()) {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        let line = "coroner: cannot write to standard output: No space left on device (os error 28)\n";
        assert_eq!(said, line, "{command:?}");
    }
}

#[test]
fn closed_pipe_ends_every_command_quietly() {
    let folder = tempfile::tempdir().unwrap();
    for (mut command, code) in printing(folder.path()) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command.stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{command:?}: {output:?}");
    }
}
