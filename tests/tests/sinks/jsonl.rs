//! Files: rotated, renamed by others, on a disk that fills.

use std::path::{Path, PathBuf};

use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use super::fixture::{Fixture, PATIENCE, lines, named, subjects};

fn copy(path: &str, more: &str) -> String {
    format!(
        r#"
        [[sink]]
        name = "copy"
        type = "jsonl"
        path = "{path}"
        batch = 16
        {more}
        [[route]]
        topics = ["audit"]
        kinds = ["exited"]
        sinks = ["copy"]
        "#
    )
}

fn with_suffix(path: &Path, at: usize) -> PathBuf {
    PathBuf::from(format!("{}.{at}", path.display()))
}

#[tokio::test]
async fn files_are_rotated_by_size_and_the_oldest_removed() {
    let sinks = copy("@DIR@/copy.jsonl", "rotate_size = \"64KiB\"\nrotate_keep = 2\nfsync = \"batch\"");
    let mut fixture = Fixture::sole(Scratch::new().unwrap(), &sinks).await;
    const COUNT: usize = 400;
    fixture.exits("c", COUNT).await;
    fixture.sink("copy", |it| it["delivered"] == COUNT).await;
    let path = fixture.router.path("copy.jsonl");
    let files = [with_suffix(&path, 2), with_suffix(&path, 1), path.clone()];
    let kept: Vec<Value> = files.iter().flat_map(|file| lines(file)).collect();
    // The last ones, in order and without a gap.
    assert!(kept.len() < COUNT, "{} lines: nothing was removed", kept.len());
    assert_eq!(subjects(&kept), named("c", COUNT - kept.len()..COUNT));
    for full in &files[..2] {
        let length = std::fs::metadata(full).unwrap().len();
        assert!(length >= 64 << 10, "{}: {length}", full.display());
    }
    assert!(!with_suffix(&path, 3).exists());
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn file_renamed_by_logrotate_is_reopened_without_loss() {
    let mut fixture = Fixture::sole(Scratch::new().unwrap(), &copy("@DIR@/copy.jsonl", "")).await;
    let (path, old) = (fixture.router.path("copy.jsonl"), fixture.router.path("old.jsonl"));
    fixture.exits("one", 5).await;
    fixture.sink("copy", |it| it["delivered"] == 5).await;
    // As it does: the old one renamed, a new one made with the configured mode and owner.
    std::fs::rename(&path, &old).unwrap();
    std::fs::write(&path, "").unwrap();
    fixture.exits("two", 5).await;
    fixture.sink("copy", |it| it["delivered"] == 10).await;
    std::fs::remove_file(&path).unwrap();
    fixture.exits("three", 5).await;
    fixture.sink("copy", |it| it["delivered"] == 15).await;
    assert_eq!((subjects(&lines(&old)), subjects(&lines(&path))), (named("one", 0..5), named("three", 0..5)));
    fixture.router.stop().await.unwrap();
}

/// A small file system of its own, unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    fn new(at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), Some(c"size=256k")).unwrap();
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // The router that is ended right after may hold a file there.
        unmount(&self.0, UnmountFlags::DETACH).unwrap_or(());
    }
}

#[tokio::test]
async fn full_disk_is_waited_for_and_leaves_no_partial_line() {
    let scratch = Scratch::new().unwrap();
    let small = Small::new(scratch.path("small"));
    std::fs::write(small.0.join("ballast"), vec![0; 200 << 10]).unwrap();
    let mut fixture = Fixture::sole(scratch, &copy("@DIR@/small/copy.jsonl", "")).await;
    fixture.exits("c", 60).await;
    let sink = fixture.sink("copy", |it| it["failed"].as_u64() >= Some(2)).await;
    assert!(sink["delivered"].as_u64() < Some(60), "{sink}");
    let path = small.0.join("copy.jsonl");
    // Whole lines alone: what was cut short was taken back. A try may be under way: the file is
    // quiet between two.
    until("no piece of a line at the end", PATIENCE, async || {
        let text = std::fs::read_to_string(&path)?;
        Ok((text.is_empty() || text.ends_with('\n')).then_some(()))
    })
    .await
    .unwrap();
    std::fs::remove_file(small.0.join("ballast")).unwrap();
    let sink = fixture.sink("copy", |it| it["delivered"] == 60).await;
    assert_eq!(
        sink["dropped"],
        json!({"full": 0, "deadline": 0, "refused": 0, "unwritten": 0, "stopped": 0})
    );
    assert_eq!(subjects(&lines(&path)), named("c", 0..60), "each once, in order");
    fixture.router.stop().await.unwrap();
}
