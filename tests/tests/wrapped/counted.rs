//! What the router counts by itself: a real kernel's kills, and a played shim that does not report
//! them.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use coroner_cgroup::{Hierarchy, Version};
use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::program;
use coroner_tests::report::timed;
use coroner_tests::scratch::Scratch;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::fixture::{END, Fixture, Mode, alone, is_ruled};
use super::shim::Shim;

/// A program in a memory cgroup, which waits for a signal. Dropped, it is killed.
struct Counted {
    id: String,
    bundle: PathBuf,
    cgroup: PathBuf,
    is_deaf: bool,
    init: Child,
}

impl Counted {
    fn start(scratch: &Scratch, name: &str, arguments: &str) -> Result<Self> {
        let hierarchy = Hierarchy::find()?;
        ensure!(hierarchy.version() == Version::V1, "this test is for a host with cgroup v1");
        let id = format!("{}-{name}", scratch.name());
        let path = format!("/{}/{id}", scratch.name());
        let (bundle, cgroup) = (scratch.path(name), hierarchy.folder(&path));
        fs::create_dir_all(&cgroup)?;
        for file in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
            let file = cgroup.join(file);
            if file.exists() {
                fs::write(&file, "32M")?;
            }
        }
        fs::create_dir(&bundle)?;
        fs::write(bundle.join("config.json"), json!({ "linux": { "cgroupsPath": path } }).to_string())?;
        let program = bundle.join("oomtest");
        fs::write(&program, program::oomtest()?)?;
        // It is in the cgroup before it is what it is.
        const ENTER: &str = "echo $$ > $0/cgroup.procs && chmod 755 $1 && exec $@";
        let mut command = Command::new("sh");
        command.args(["-c", ENTER]).arg(&cgroup).arg(&program).args(arguments.split(' '));
        let mut init = command.stdout(Stdio::piped()).spawn()?;
        let mut printed = String::new();
        BufReader::new(init.stdout.take().context("a pipe")?).read_line(&mut printed)?;
        ensure!(printed == "waiting\n", "it prints {printed:?}");
        Ok(Self { id, bundle, cgroup, is_deaf: false, init })
    }

    /// No notice that memory runs out comes from now on, as of one that ran out before its counter
    /// could be read.
    fn deafen(&mut self) -> Result<()> {
        mount_bind("/dev/null", self.cgroup.join("cgroup.event_control"))?;
        self.is_deaf = true;
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.init.id())?).context("a pid")?;
        Ok(kill_process(pid, Signal::USR1)?)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.is_deaf {
            unmount(self.cgroup.join("cgroup.event_control"), UnmountFlags::DETACH).ok();
        }
        self.init.kill().ok();
        self.init.wait().ok();
    }
}

#[tokio::test]
async fn kill_is_reported_while_its_container_runs() {
    let _turn = alone().await;
    let _timed = timed("kill_is_reported_while_its_container_runs");
    let mut fixture = Fixture::start(Mode::Wrapped).await.unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let mut shim = Shim::connect(&fixture.router.path("shim.sock")).await;
    let mut parent = Counted::start(fixture.router.scratch(), "parent", "await child 64 0 60000").unwrap();
    shim.pid = parent.init.id();
    shim.begin(&parent.bundle, &parent.id).await;
    parent.go_on().unwrap();
    events.wait_for(OOM, &parent.id, 1, END).await.unwrap();
    assert!(parent.init.try_wait().unwrap().is_none(), "it has not ended");
    // What its shim reports after that is not another kill.
    shim.oom(&parent.id).await;
    shim.exit(&parent.id, 0).await;
    shim.delete(&parent.id).await;
    events.wait_for(EXIT, &parent.id, 1, END).await.unwrap();
    assert_eq!(events.of(&parent.id).iter().filter(|it| it.topic == OOM).count(), 1);
    drop(parent);
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn unnoticed_kill_is_published_before_the_exit() {
    let _turn = alone().await;
    let _timed = timed("unnoticed_kill_is_published_before_the_exit");
    for mode in [Mode::Wrapped, Mode::Proxy] {
        let mut fixture = Fixture::start(mode).await.unwrap();
        let mut shim = Shim::connect(&fixture.router.path("shim.sock")).await;
        let mut killed = Counted::start(fixture.router.scratch(), "killed", "await self 64").unwrap();
        shim.pid = killed.init.id();
        killed.deafen().unwrap();
        shim.begin(&killed.bundle, &killed.id).await;
        killed.go_on().unwrap();
        killed.init.wait().unwrap();
        if mode == Mode::Proxy {
            assert_eq!(shim.rule(&killed.id, 137, Vec::new()).await.unwrap(), 137);
            shim.release(&killed.id, 137).await;
        }
        shim.exit(&killed.id, 137).await;
        let ruled = |it: &serde_json::Value| is_ruled(it, "exited", &killed.id);
        let exit = fixture.router.wait_record("the exit's ruling", END, ruled).await.unwrap();
        assert_eq!(
            (&exit["case"]["kills"], &exit["case"]["oom-sent"]),
            (&json!(1), &json!(true)),
            "{exit:#}"
        );
        drop(killed);
        fixture.router.stop().await.unwrap();
    }
}
