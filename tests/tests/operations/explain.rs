//! `coroner explain` on files, with no router running.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use coroner_tests::binary;
use coroner_tests::report::say;
use serde_json::Value;

use super::{Stand, text};

fn coroner() -> Command {
    Command::new(binary::find("coroner", "coroner").unwrap())
}

fn explain(arguments: &[&str], file: &Path) -> Output {
    coroner().arg("explain").args(arguments).arg("--file").arg(file).output().unwrap()
}

#[test]
fn the_demo_is_explained_from_what_it_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.jsonl");
    let demo = coroner().args(["demo", "--json"]).output().unwrap();
    assert!(demo.status.success(), "{demo:?}");
    let mut written = demo.stdout.clone();
    written.extend_from_slice(b"{\"v\":3,\"record\":\"rul\n");
    fs::write(&file, &written).unwrap();

    let told = explain(&["0000"], &file);
    let (out, said) = (text(&told.stdout), text(&told.stderr));
    assert_eq!(told.status.code(), Some(0), "{said}");
    assert_eq!(said, "coroner: 1 broken lines were passed over\n");
    for due in [
        "container  0000",
        "limit 32 MiB",
        "verdict    exited 1",
        "after an OOM kill of a child",
        "containerd knows of the kill",
        "  /tasks/exit queued for containerd",
        "containerd took /tasks/exit: 1 try",
    ] {
        assert!(out.contains(due), "{due}\n{out}");
    }
    let document: Value = serde_json::from_slice(&explain(&["0000", "--json"], &file).stdout).unwrap();
    let records: Vec<Value> =
        text(&demo.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours: Vec<&Value> = records.iter().filter(|it| it["record"] != "chain").collect();
    assert_eq!(document["records"].as_array().unwrap().iter().collect::<Vec<_>>(), ours);
    assert!(document["container"].as_str().unwrap().starts_with("0000"));

    let nobody = explain(&["shop/web/app"], &file);
    assert_eq!((nobody.status.code(), text(&nobody.stdout)), (Some(2), String::new()));
    assert_eq!(explain(&["a/b"], &file).status.code(), Some(2));
    assert_eq!(explain(&["0"], &folder.path().join("none")).status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_the_configuration_are_read_the_rotated_ones_first() {
    let mut stand = Stand::start().await;
    stand.kill("web", 1);
    stand.kill("webber", 1);
    stand.written("/tasks/oom", 2).await;
    stand.dealt_with().await;
    stand.router.stop().await.unwrap();
    fs::rename(stand.router.path("audit.jsonl"), stand.router.path("audit.jsonl.1")).unwrap();
    stand.router.start_again().await.unwrap();
    stand.exit("web", 1);
    stand.written("/tasks/exit", 1).await;
    stand.router.stop().await.unwrap();

    let config = stand.router.path("coroner.toml");
    let explain =
        |whom: &str| stand.router.command(&["explain", whom, "--config", config.to_str().unwrap()]).unwrap();
    let told = explain("web");
    let out = text(&told.stdout);
    assert_eq!(told.status.code(), Some(0), "{told:?}");
    assert!(out.contains("exited 1, 2 ms after an OOM kill of a child"), "{out}");
    let place = |what: &str| out.find(what).unwrap_or_else(|| panic!("{what}\n{out}"));
    assert!(place("OOM kill, counter") < place("containerd took /tasks/oom"));
    assert!(place("containerd took /tasks/oom") < place("exited with status 1"));

    let several = explain("we");
    assert_eq!(several.status.code(), Some(2));
    assert!(text(&several.stderr).contains("several containers begin so: web, webber"), "{several:?}");
    assert_eq!(explain("job").status.code(), Some(2));
    let elsewhere = stand.router.command(&["explain", "web", "--config", "/no/such.toml"]).unwrap();
    assert_eq!(elsewhere.status.code(), Some(2));
    assert!(text(&elsewhere.stderr).contains("--file"), "{elsewhere:?}");
}

#[test]
fn a_file_larger_than_memory_may_hold_is_read_in_a_stream() {
    const MIB: u64 = 1 << 20;
    const FILE: u64 = 600 * MIB;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("audit.jsonl");
    let recording = include_str!("../../../router/src/demo/recording.jsonl");
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
    // The shell's ulimit is of address space: what is read into memory is in it, whatever becomes of it.
    let limit = 300 * 1024;
    let program = binary::find("coroner", "coroner").unwrap();
    let script = format!("ulimit -v {limit}; exec \"$0\" explain {container} --json --file \"$1\"");
    let told = Command::new("sh").args(["-c", &script]).arg(&program).arg(&file).output().unwrap();
    let took = start.elapsed();
    assert!(told.status.success(), "{told:?}");
    let document: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(document["records"].as_array().unwrap().len(), recording.lines().count());
    say(format_args!("600 MiB of audit read in {took:.1?}, in at most {limit} KiB of address space"));
}
