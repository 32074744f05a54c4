//! `coroner explain` on files, with no router running.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use coroner_tests::binary;
use coroner_tests::report::print;
use serde_json::{Value, json};

use super::{Fixture, text};

fn coroner() -> Command {
    Command::new(binary::find("coroner", "coroner-cli").unwrap())
}

fn explain(arguments: &[&str], file: &Path) -> Output {
    coroner().arg("explain").args(arguments).arg("--file").arg(file).output().unwrap()
}

#[test]
fn demo_output_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.jsonl");
    let demo = coroner().args(["demo", "--json"]).output().unwrap();
    assert!(demo.status.success(), "{demo:?}");
    let mut written = demo.stdout.clone();
    written.extend_from_slice(b"{\"v\":3,\"record\":\"rul\n");
    fs::write(&file, &written).unwrap();

    let output = explain(&["0000"], &file);
    let (out, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "coroner: 1 broken lines were skipped\n");
    for due in [
        "container  0000",
        "limit 32 MiB",
        "verdict    exited 1",
        "after an OOM kill of a child",
        "stand-in knows of the kill",
        "  /tasks/exit queued for stand-in",
        "stand-in took /tasks/exit: 1 try",
    ] {
        assert!(out.contains(due), "{due}\n{out}");
    }
    let document: Value = serde_json::from_slice(&explain(&["0000", "--json"], &file).stdout).unwrap();
    let records: Vec<Value> =
        text(&demo.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours: Vec<&Value> = records.iter().filter(|it| it["record"] != "chain").collect();
    assert_eq!(document["records"].as_array().unwrap().iter().collect::<Vec<_>>(), ours);
    assert!(document["container"].as_str().unwrap().starts_with("0000"));

    let verdict = &document["verdict"];
    let found = [&verdict["ended-by"], &verdict["published"]["reason"], &verdict["kill"]["hit-init"]];
    assert_eq!(found, [&json!("code"), &json!("OOMKilled"), &json!(false)], "{verdict:#}");
    assert!(out.contains(verdict["sentence"].as_str().unwrap()), "{verdict:#}");

    let unknown = explain(&["shop/web/app"], &file);
    assert_eq!((unknown.status.code(), text(&unknown.stdout)), (Some(2), String::new()));
    assert_eq!(explain(&["a/b"], &file).status.code(), Some(2));
    assert_eq!(explain(&["0"], &folder.path().join("none")).status.code(), Some(1));
}

#[test]
fn page_is_written_to_a_file_or_to_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../router/cli/src/explain/fixtures");
    let records = fixtures.join("pod-limit.jsonl");
    let file = folder.path().join("death.html");
    let written = explain(&["batch/report-5d2f/renderer", "--html", file.to_str().unwrap()], &records);
    assert_eq!(
        (written.status.code(), written.stdout.len(), text(&written.stderr)),
        (Some(0), 0, String::new())
    );
    let page = fs::read_to_string(&file).unwrap();
    for due in
        ["<title>batch/report-5d2f/renderer: exited 1", "chrome (pid 51877)", "limit 256 MiB", "</html>\n"]
    {
        assert!(page.contains(due), "{due}\n{page}");
    }
    let printed = explain(&["c41d", "--html", "-"], &records);
    assert_eq!(text(&printed.stdout).trim_end(), page.trim_end());

    let elsewhere = explain(&["c41d", "--html", "/no/such/folder/death.html"], &records);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(text(&elsewhere.stderr).contains("cannot write /no/such/folder/death.html"), "{elsewhere:?}");
    assert_eq!(explain(&["c41d", "--json", "--html", "-"], &records).status.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_audit_files_are_read_rotated_ones_first() {
    let mut fixture = Fixture::start().await;
    fixture.kill("web", 1);
    fixture.kill("webber", 1);
    fixture.written("/tasks/oom", 2).await;
    fixture.dealt_with().await;
    fixture.router.stop().await.unwrap();
    fs::rename(fixture.router.path("audit.jsonl"), fixture.router.path("audit.jsonl.1")).unwrap();
    fixture.router.start_again().await.unwrap();
    fixture.exit("web", 1);
    fixture.written("/tasks/exit", 1).await;
    fixture.router.stop().await.unwrap();

    let config = fixture.router.path("coroner.toml");
    let explain = |subject: &str| {
        fixture.router.command(&["explain", subject, "--config", config.to_str().unwrap()]).unwrap()
    };
    let output = explain("web");
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(out.contains("exited 1, 2 ms after an OOM kill of a child"), "{out}");
    let place = |what: &str| out.find(what).unwrap_or_else(|| panic!("{what}\n{out}"));
    assert!(place("OOM kill, counter") < place("containerd took /tasks/oom"));
    assert!(place("containerd took /tasks/oom") < place("exited with status 1"));

    let several = explain("we");
    assert_eq!(several.status.code(), Some(2));
    assert!(text(&several.stderr).contains("several containers begin so: web, webber"), "{several:?}");
    assert_eq!(explain("job").status.code(), Some(2));
    let elsewhere = fixture.router.command(&["explain", "web", "--config", "/no/such.toml"]).unwrap();
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(text(&elsewhere.stderr).contains("--file"), "{elsewhere:?}");
}

#[test]
fn audit_larger_than_the_memory_limit_is_streamed() {
    const MIB: u64 = 1 << 20;
    const FILE: u64 = 600 * MIB;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let recording = include_str!("../../../router/cli/src/demo/recording.jsonl");
    let container = recording.split(":0000").nth(1).unwrap().split(':').next().unwrap();
    let container = format!("0000{container}");
    let others = recording.replace(&container, "f00d");
    let mut out = BufWriter::new(File::create(&file).unwrap());
    out.write_all(recording.as_bytes()).unwrap();
    for _ in 0..FILE / others.len() as u64 {
        out.write_all(others.as_bytes()).unwrap();
    }
    out.into_inner().unwrap().sync_all().unwrap();

    let start = Instant::now();
    // The shell's ulimit is of address space: what is read into memory is in it, whatever becomes
    // of it.
    let limit = 300 * 1024;
    let program = binary::find("coroner", "coroner-cli").unwrap();
    let script = format!("ulimit -v {limit}; exec \"$0\" explain {container} --json --file \"$1\"");
    let output = Command::new("sh").args(["-c", &script]).arg(&program).arg(&file).output().unwrap();
    let took = start.elapsed();
    assert!(output.status.success(), "{output:?}");
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["records"].as_array().unwrap().len(), recording.lines().count());
    print(format_args!("600 MiB of audit read in {took:.1?}, in at most {limit} KiB of address space"));
}
