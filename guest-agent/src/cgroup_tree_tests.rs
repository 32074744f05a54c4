use std::fs;

use super::*;

/// A folder laid out like a v2 hierarchy; inotify on it is real.
fn tree(roots: &[&str]) -> (tempfile::TempDir, CgroupTree) {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.controllers"), "memory\n").unwrap();
    let hierarchy = Hierarchy::at(mount.path().to_owned()).unwrap();
    let roots = roots.iter().map(|root| RootPattern::parse(root).unwrap()).collect();
    (mount, CgroupTree::new(hierarchy, roots).unwrap())
}

fn changes(tree: &mut CgroupTree) -> Vec<String> {
    let mut out = Vec::new();
    while tree.drain(&mut out) {}
    out.iter().map(short).collect()
}

fn short(change: &CgroupChange) -> String {
    match change {
        CgroupChange::Appeared { id, cgroup } => format!("+{id} {cgroup}"),
        CgroupChange::Gone { cgroup } => format!("-{cgroup}"),
        CgroupChange::ProcessEntered { cgroup } => format!(">{cgroup}"),
        CgroupChange::LimitChanged { cgroup } => format!("={cgroup}"),
        CgroupChange::CounterChanged { cgroup } => format!("#{cgroup}"),
        CgroupChange::PopulationChanged { cgroup } => format!("~{cgroup}"),
    }
}

#[test]
fn container_found_when_root_appears_late() {
    let (mount, mut tree) = tree(&["a/b*"]);
    let mut out = Vec::new();
    tree.search(&mut out);
    assert!(out.is_empty());
    // All at once: the inner folders exist before the outer one is watched.
    fs::create_dir_all(mount.path().join("a/bc/one")).unwrap();
    fs::create_dir_all(mount.path().join("a/other/two")).unwrap();
    assert_eq!(changes(&mut tree), ["+one /a/bc/one"]);
    fs::create_dir(mount.path().join("a/bc/three")).unwrap();
    assert_eq!(changes(&mut tree), ["+three /a/bc/three"]);
    fs::remove_dir(mount.path().join("a/bc/one")).unwrap();
    assert_eq!(changes(&mut tree), ["-/a/bc/one"]);
    fs::remove_dir_all(mount.path().join("a")).unwrap();
    fs::create_dir_all(mount.path().join("a/bd/three")).unwrap();
    assert_eq!(changes(&mut tree), ["-/a/bc/three", "+three /a/bd/three"]);
}

#[test]
fn cgroup_with_a_bad_id_is_not_a_container() {
    let (mount, mut tree) = tree(&["r", "docker"]);
    for bad in [
        "r/.hidden",
        "r/a b",
        &format!("r/{}", "a".repeat(250)),
        "docker/x.slice:docker:a:b",
        "docker/x.slice:other:a",
    ] {
        fs::create_dir_all(mount.path().join(bad).join("good")).unwrap();
    }
    let mut out = Vec::new();
    tree.search(&mut out);
    let found: Vec<String> = out.iter().map(short).collect();
    let long = "a".repeat(250);
    assert_eq!(found, [format!("+{long} /r/{long}")], "250 characters are good");
}

#[test]
fn short_lived_container_is_reported() {
    let (mount, mut tree) = tree(&["r"]);
    fs::create_dir(mount.path().join("r")).unwrap();
    tree.search(&mut Vec::new());
    fs::create_dir(mount.path().join("r/c1")).unwrap();
    fs::remove_dir(mount.path().join("r/c1")).unwrap();
    assert_eq!(changes(&mut tree), ["+c1 /r/c1", "-/r/c1"]);
    assert_eq!(changes(&mut tree), [""; 0]);
}

#[test]
fn counter_process_and_limit_changes_distinguished() {
    let (mount, mut tree) = tree(&["r"]);
    let folder = mount.path().join("r/c1");
    fs::create_dir_all(&folder).unwrap();
    for file in ["memory.events", "cgroup.events", "cgroup.procs", "memory.max", "memory.high"] {
        fs::write(folder.join(file), "").unwrap();
    }
    let mut out = Vec::new();
    tree.search(&mut out);
    assert_eq!(out.iter().map(short).collect::<Vec<_>>(), ["+c1 /r/c1"]);
    for (file, expect) in [
        ("memory.max", "=/r/c1"),
        ("cgroup.procs", ">/r/c1"),
        ("memory.events", "#/r/c1"),
        ("cgroup.events", "~/r/c1"),
    ] {
        fs::write(folder.join(file), "1").unwrap();
        assert!(changes(&mut tree).iter().all(|it| it == expect), "{file}");
    }
    fs::write(folder.join("memory.high"), "1").unwrap();
    assert_eq!(changes(&mut tree), [""; 0]);
}

#[test]
fn adopted_cgroup_watched_until_removed() {
    let (mount, mut tree) = tree(&["r"]);
    fs::create_dir_all(mount.path().join("x/y/c1")).unwrap();
    let mut out = Vec::new();
    assert!(!tree.adopt("/x/y/none", &mut out));
    assert!(tree.adopt("/x/y/c1", &mut out));
    assert!(tree.adopt("/x/y/c1", &mut out));
    fs::create_dir(mount.path().join("x/y/c2")).unwrap();
    fs::remove_dir(mount.path().join("x/y/c1")).unwrap();
    assert_eq!(changes(&mut tree), ["-/x/y/c1"]);
    assert!(out.is_empty());
}

#[test]
fn overflow_triggers_full_search() {
    let (mount, mut tree) = tree(&["r"]);
    fs::create_dir_all(mount.path().join("r/kept")).unwrap();
    fs::create_dir_all(mount.path().join("r/removed")).unwrap();
    fs::create_dir_all(mount.path().join("r/remade")).unwrap();
    tree.search(&mut Vec::new());
    fs::remove_dir(mount.path().join("r/removed")).unwrap();
    fs::remove_dir(mount.path().join("r/remade")).unwrap();
    fs::create_dir_all(mount.path().join("r/remade")).unwrap();
    fs::create_dir_all(mount.path().join("r/new")).unwrap();
    // The queued events are dropped, as the kernel does at an overflow.
    while rustix::io::read(&tree, &mut [0; 4096]).is_ok() {}
    let mut out = Vec::new();
    tree.handle_event(-1, ReadFlags::QUEUE_OVERFLOW, "", &mut out);
    let mut changes: Vec<String> = out.iter().map(short).collect();
    changes.sort();
    assert_eq!(changes, ["+new /r/new", "+remade /r/remade", "-/r/remade", "-/r/removed"]);
}
