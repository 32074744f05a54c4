//! Ends what runs in a scratch folder and its cgroup: processes by id, cgroups, mounts, sockets,
//! files.
//!
//! It trusts nothing that the ended run may have failed to write down: everything is found by the
//! folder's name, which is unique. It runs in `Drop` and on other runs' leftovers, so it goes on
//! past every error.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

/// Programs that may be running out of a scratch folder. Others that only name it, such as an
/// editor, are left alone.
const PROGRAMS: [&str; 6] =
    ["containerd", "coroner", "coroner-agent", "deathtest", "qemu-system-x86_64", "vhost-device-vsock"];

/// How the names of shims and of their wrappers begin.
const SHIM: &str = "containerd-shim-";

/// A killed process is out of its cgroup within milliseconds; 2 s cover a core dump on a busy
/// machine.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(10);

/// Ends everything of the scratch folder `directory`, with the cgroups called `name`.
pub fn end_everything(name: &str, directory: &Path) {
    kill_until_gone(|| processes_of(directory));
    for cgroup in cgroups_named(name) {
        kill_until_gone(|| members(&cgroup));
        remove_tree_of_cgroups(&cgroup);
    }
    for mount in mounts_below(directory) {
        unmount(&mount, UnmountFlags::DETACH).ok();
    }
    remove_left_by_shims(directory);
    fs::remove_dir_all(directory).ok();
}

fn kill_until_gone(mut find: impl FnMut() -> Vec<Pid>) {
    for _ in 0..ATTEMPTS {
        let found = find();
        if found.is_empty() {
            return;
        }
        for pid in found {
            kill_process(pid, Signal::KILL).ok();
        }
        sleep(PAUSE);
    }
}

/// Processes of ours with an argument inside `directory`, or that run in it, as a shim does: in its
/// bundle. A zombie has neither. Seen from outside, a path in another root has that root before it.
fn processes_of(directory: &Path) -> Vec<Pid> {
    let directory = format!("{}/", directory.to_string_lossy());
    let ours = |process: &Path| {
        let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        let mut arguments = arguments.split('\0');
        let program = arguments.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let named = arguments.any(|argument| argument.contains(&directory));
        let runs_in =
            || fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.to_string_lossy().contains(&directory));
        (PROGRAMS.contains(&program) || program.starts_with(SHIM)) && (named || runs_in())
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| ours(&entry.path()))
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// The cgroup `name` in each hierarchy: one on version 2, one a controller on version 1.
fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return Vec::new() };
    let below = hierarchies.flatten().map(|hierarchy| hierarchy.path().join(name));
    below.chain([Path::new("/sys/fs/cgroup").join(name)]).filter(|cgroup| cgroup.is_dir()).collect()
}

fn children(cgroup: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(cgroup) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Processes in a cgroup and below it.
fn members(cgroup: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let here = list.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    here.chain(children(cgroup).iter().flat_map(|child| members(child))).collect()
}

/// A cgroup's own files cannot be removed, its folders can, from the bottom up.
fn remove_tree_of_cgroups(cgroup: &Path) {
    for child in children(cgroup) {
        remove_tree_of_cgroups(&child);
    }
    fs::remove_dir(cgroup).ok();
}

/// Mount points below `directory`, the newest first: field 5 of mountinfo (proc_pid_mountinfo(5)).
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let list = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = list.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut below: Vec<_> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    below
}

/// What shims keep outside of containerd's state: their sockets, with addresses that the bundles
/// hold, and, without a root in their options, runc's state. Those ids are random, so no other
/// owner's is met.
fn remove_left_by_shims(directory: &Path) {
    const RUNC: &str = "/run/containerd/runc/k8s.io";
    let Ok(bundles) = fs::read_dir(directory.join("state/io.containerd.runtime.v2.task/k8s.io")) else {
        return;
    };
    for bundle in bundles.flatten() {
        if let Some(socket) = address(&bundle.path()).as_deref().and_then(|it| it.strip_prefix("unix://")) {
            fs::remove_file(socket).ok();
            // A proxy's: the shim behind it listens beside it.
            fs::remove_file(socket.strip_suffix(".c").unwrap_or(socket)).ok();
        }
        fs::remove_dir_all(Path::new(RUNC).join(bundle.file_name())).ok();
    }
}

/// A shim's address: as 1.6 and 1.7 keep it in a bundle, or as 2.x does.
fn address(bundle: &Path) -> Option<String> {
    let plain = fs::read_to_string(bundle.join("address")).ok().map(|text| text.trim().to_owned());
    plain.or_else(|| {
        let bootstrap = fs::read(bundle.join("bootstrap.json")).ok()?;
        let bootstrap: serde_json::Value = serde_json::from_slice(&bootstrap).ok()?;
        Some(bootstrap["address"].as_str()?.to_owned())
    })
}
