//! What ended a process: real processes in real cgroups, and the cause as the agent states it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use coroner_proto::agent::{CauseKind, Exited, HelloRequest};
use rustix::process::{Pid, Signal};
use tokio::sync::RwLock;

use crate::harness::{AgentProgram, Reader, Scratch, enter, limit, remove, unique, watch};

const LIMIT: u64 = 16 << 20;
/// Written by the test that floods the machine with signals: all agents read them.
pub(crate) static QUIET: RwLock<()> = RwLock::const_new(());

pub(crate) fn kind(exit: &Exited) -> CauseKind {
    exit.cause.as_ref().map_or(CauseKind::CAUSE_UNKNOWN, |cause| cause.kind.enum_value().unwrap())
}

/// Runs an init over its limit, and returns what shows the cause.
pub(crate) async fn oom_sources(agent: &AgentProgram, scratch: &Scratch) -> Vec<String> {
    let mut reader = agent.reader().await;
    let mut child = reader.run(scratch, "oom", LIMIT, "exec tail /dev/zero").await;
    let reports = reader.until_exit("oom").await;
    child.wait().unwrap();
    let exit = reports.exited();
    assert_eq!((exit.status, exit.by_signal), (Some(137), Some(true)), "{exit:?}");
    assert_eq!(kind(exit), CauseKind::CAUSE_KERNEL_OOM, "{exit:?}");
    assert!(exit.cause.sender.is_none());
    exit.cause.sources.clone()
}

#[tokio::test]
async fn oom_kill_is_the_cause_by_trace_alone() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace_alone(&scratch.name);
    let _quiet = QUIET.read().await;
    assert_eq!(oom_sources(&agent, &scratch).await, ["trace", "counter"]);
}

#[tokio::test]
async fn oom_kill_is_the_cause_by_the_log_alone() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start(&scratch.name);
    assert_eq!(oom_sources(&agent, &scratch).await, ["kernel-log", "counter"]);
}

#[tokio::test]
async fn oom_kill_names_all_that_shows_it() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    assert_eq!(oom_sources(&agent, &scratch).await, ["trace", "kernel-log", "counter"]);
}

/// A child was killed before; its init then exits, and is not killed.
#[tokio::test]
async fn exit_after_a_childs_oom_kill_has_no_cause() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut child = reader.run(&scratch, "passed-on", LIMIT, "tail /dev/zero; exit 137").await;
    let reports = reader.until_exit("passed-on").await;
    child.wait().unwrap();
    assert!(!reports.kills.is_empty());
    let exit = reports.exited();
    assert_eq!((exit.status, exit.by_signal), (Some(137), Some(false)), "{exit:?}");
    assert!(exit.cause.is_none(), "{exit:?}");
}

#[tokio::test]
async fn cause_is_a_capability_where_signals_are_traced() {
    let scratch = Scratch::new();
    let capabilities = async |agent: AgentProgram| {
        let reader = agent.reader().await;
        reader.client.hello(limit(), &HelloRequest::default()).await.unwrap().capabilities
    };
    let known = ["kill-count", "memory", "exit-status", "victim"];
    assert_eq!(capabilities(AgentProgram::start(&scratch.name)).await, known);
    let known = [known.as_slice(), &["cause"]].concat();
    assert_eq!(capabilities(AgentProgram::start_with_trace(&scratch.name)).await, known);
    assert_eq!(capabilities(AgentProgram::start_with_trace_alone(&scratch.name)).await, known);
}

/// A container with an init in our own pid namespace that runs a shell script.
pub(crate) async fn named(reader: &Reader, scratch: &Scratch, id: &str, script: &str) -> Child {
    let init = enter(&scratch.cgroup(id, 64 << 20), script);
    reader.watch(watch(id, scratch.path(id), Some(init.id()), None)).await.unwrap();
    init
}

/// Adds an exec that runs a shell script.
async fn exec(reader: &Reader, scratch: &Scratch, id: &str, exec: &str, script: &str) -> Child {
    let process = enter(&scratch.folder(id), script);
    reader.watch(watch(id, String::new(), Some(process.id()), Some(exec))).await.unwrap();
    process
}

pub(crate) fn go(child: &mut Child) {
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
}

pub(crate) fn kill(child: &Child, signal: Signal) {
    rustix::process::kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits for the end of a shell that waits for a line, which it must not get from here.
pub(crate) fn ended(child: &mut Child) {
    let stdin = child.stdin.take();
    child.wait().unwrap();
    drop(stdin);
}

/// Ends a shell that waits for a line.
fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

/// A shell outside of all containers, under a name, that runs a script.
fn outside(program: &Path, script: &str) -> Child {
    Command::new(program).args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn signal_from_outside_is_of_a_node_process() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    for (id, signal) in [("killed", Signal::KILL), ("stopped", Signal::TERM), ("hung-up", Signal::HUP)] {
        let mut init = named(&reader, &scratch, id, "read end").await;
        kill(&init, signal);
        ended(&mut init);
        let reports = reader.until_exit(id).await;
        let exit = reports.exited();
        assert_eq!(exit.signal, Some(signal.as_raw() as u32));
        assert_eq!(kind(exit), CauseKind::CAUSE_NODE_PROCESS, "{exit:?}");
        let sender = &exit.cause.sender;
        // Not the thread that sent it.
        assert_eq!((sender.pid, sender.exec_id.as_ref()), (std::process::id(), None), "{exit:?}");
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(sender.comm, comm.trim_end());
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert!(cgroups.contains(&format!(":memory:{}\n", sender.cgroup)), "{exit:?} {cgroups}");
        assert_eq!(exit.cause.sources, ["trace"]);
    }
}

/// The init of a pid namespace ignores signals from within it. Another one's process can end it.
#[tokio::test]
async fn signal_from_within_names_the_exec() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "inner", "read end").await;
    let pid = init.id();
    let script = format!("read go; kill -TERM {pid}; read end");
    let mut first = exec(&reader, &scratch, "inner", "first", &script).await;
    go(&mut first);
    ended(&mut init);
    let exit = reader.until_exit("inner").await.exited().clone();
    assert_eq!(kind(&exit), CauseKind::CAUSE_CONTAINER_PROCESS, "{exit:?}");
    let sender = &exit.cause.sender;
    assert_eq!((sender.pid, sender.exec_id.as_deref()), (first.id(), Some("first")));
    assert_eq!((sender.comm.as_str(), sender.cgroup.clone()), ("sh", scratch.path("inner")));

    // A process below an exec.
    let script = format!("sh -c 'read go; kill -9 {}; read end'; true", first.id());
    let mut second = exec(&reader, &scratch, "inner", "second", &script).await;
    go(&mut second);
    ended(&mut first);
    let exit = reader.until_exec_exit("inner", "first").await;
    assert_eq!(kind(&exit), CauseKind::CAUSE_CONTAINER_PROCESS, "{exit:?}");
    assert_eq!(exit.cause.sender.exec_id.as_deref(), Some("second"));
    assert_ne!(exit.cause.sender.pid, second.id());
    end(second);
}

/// A handler that restores the default and sends the signal to itself once more.
#[tokio::test]
async fn signal_that_a_handler_raised_again_is_of_the_process_itself() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let script = "trap 'trap - TERM; kill -TERM $$' TERM; echo; read end";
    let mut init = named(&reader, &scratch, "again", script).await;
    std::io::Read::read_exact(init.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    kill(&init, Signal::TERM);
    ended(&mut init);
    let exit = reader.until_exit("again").await.exited().clone();
    assert_eq!(exit.signal, Some(15));
    assert_eq!(kind(&exit), CauseKind::CAUSE_CONTAINER_PROCESS, "{exit:?}");
    assert_eq!(exit.cause.sender.pid, init.id());
}

#[tokio::test]
async fn signal_of_a_runtime_is_classified_by_its_name() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "runtime", "read end").await;
    let folder = tempfile::tempdir().unwrap();
    let runc = folder.path().join("runc");
    // A copy could be busy: another test may just fork with it open.
    std::os::unix::fs::symlink("/bin/sh", &runc).unwrap();
    let runtime = outside(&runc, &format!("kill -9 {}; read end", init.id()));
    ended(&mut init);
    let exit = reader.until_exit("runtime").await.exited().clone();
    assert_eq!(kind(&exit), CauseKind::CAUSE_RUNTIME, "{exit:?}");
    assert_eq!((exit.cause.sender.pid, exit.cause.sender.comm.as_str()), (runtime.id(), "runc"));
    end(runtime);
}

/// `runc kill` has often exited when its signal is read. The agent read its cgroup at its start.
#[tokio::test]
async fn signal_of_a_runtime_that_exited_is_classified_by_its_start() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "runtime-gone", "read end").await;
    let folder = tempfile::tempdir().unwrap();
    let runc = folder.path().join("runc");
    std::os::unix::fs::symlink("/bin/sh", &runc).unwrap();
    let mut runtime = outside(&runc, &format!("echo; read go; kill -9 {}", init.id()));
    std::io::Read::read_exact(runtime.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    // The agent applies the events from before a request first.
    reader.final_count("runtime-gone").await;
    agent.signal(Signal::STOP);
    go(&mut runtime);
    ended(&mut runtime);
    ended(&mut init);
    agent.signal(Signal::CONT);
    let exit = reader.until_exit("runtime-gone").await.exited().clone();
    assert_eq!(kind(&exit), CauseKind::CAUSE_RUNTIME, "{exit:?}");
    assert_eq!((exit.cause.sender.pid, exit.cause.sender.comm.as_str()), (runtime.id(), "runc"));
}

/// The agent reads the signal when its sender is gone: it is not known whether that was inside.
#[tokio::test]
async fn signal_of_a_sender_that_is_gone_is_unknown() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "gone", "read end").await;
    agent.signal(Signal::STOP);
    let mut sender = outside(Path::new("/bin/sh"), &format!("kill -9 {}", init.id()));
    sender.wait().unwrap();
    ended(&mut init);
    agent.signal(Signal::CONT);
    let exit = reader.until_exit("gone").await.exited().clone();
    assert_eq!((exit.by_signal, kind(&exit)), (Some(true), CauseKind::CAUSE_UNKNOWN), "{exit:?}");
    assert_eq!((exit.cause.sender.pid, exit.cause.sender.cgroup.as_str()), (sender.id(), ""));
}

/// The kernel ends all processes of a pid namespace with its init.
#[tokio::test]
async fn end_of_the_pid_namespace_is_the_kernels() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let mut child = reader.run(&scratch, "namespace", 64 << 20, "read end").await;
    let init = reader.snapshot().await.iter().find(|it| it.id == "namespace").unwrap().init_pid.unwrap();
    let nsenter = format!("nsenter --target {init} --pid sh -c 'echo; read end'; true");
    let mut entered = enter(&scratch.folder("namespace"), &nsenter);
    std::io::Read::read_exact(entered.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let below = |pid: u32| -> u32 {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse().unwrap()
    };
    let inner = below(below(entered.id()));
    reader.watch(watch("namespace", String::new(), Some(inner), Some("inner"))).await.unwrap();
    rustix::process::kill_process(Pid::from_raw(init as i32).unwrap(), Signal::KILL).unwrap();
    let exit = reader.until_exec_exit("namespace", "inner").await;
    assert_eq!((exit.signal, kind(&exit)), (Some(9), CauseKind::CAUSE_KERNEL), "{exit:?}");
    assert!(exit.cause.sender.is_none());
    let exit = reader.until_exit("namespace").await.exited().clone();
    assert_eq!(kind(&exit), CauseKind::CAUSE_NODE_PROCESS, "{exit:?}");
    child.wait().unwrap();
    end(entered);
}

/// A v2 cgroup of the machine's second hierarchy, which has no memory controller here.
struct Killable(std::path::PathBuf);

impl Killable {
    fn new() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount =
            mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|it| it[2] == "cgroup2");
        let mount = mount.expect("this test takes a mounted cgroup2 hierarchy")[1].to_owned();
        let folder = Path::new(&mount).join(format!("coroner-agent-test-{}", unique()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.0.join(file), text).unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

#[tokio::test]
async fn write_to_cgroup_kill_is_distinguished_from_kill() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    for by_cgroup in [true, false] {
        let id = format!("killable-{by_cgroup}");
        let mut init = named(&reader, &scratch, &id, "read end").await;
        let cgroup = Killable::new();
        cgroup.write("cgroup.procs", &init.id().to_string());
        match by_cgroup {
            true => cgroup.write("cgroup.kill", "1"),
            false => kill(&init, Signal::KILL),
        }
        ended(&mut init);
        let exit = reader.until_exit(&id).await.exited().clone();
        let expect = if by_cgroup { CauseKind::CAUSE_CGROUP_KILL } else { CauseKind::CAUSE_NODE_PROCESS };
        assert_eq!(kind(&exit), expect, "{exit:?}");
        assert_eq!(exit.cause.sender.pid, std::process::id());
    }
}

/// A reader may name a process after its end.
#[tokio::test]
async fn signal_to_a_process_that_is_named_late_is_found() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    let init = named(&reader, &scratch, "late", "read end").await;
    let mut late = enter(&scratch.folder("late"), "read end");
    kill(&late, Signal::KILL);
    ended(&mut late);
    reader.watch(watch("late", String::new(), Some(late.id()), Some("late"))).await.unwrap();
    let exit = reader.until_exec_exit("late", "late").await;
    assert_eq!((exit.signal, kind(&exit)), (Some(9), CauseKind::CAUSE_NODE_PROCESS), "{exit:?}");
    end(init);
}

/// Without tracefs nothing is known of a signal.
#[tokio::test]
async fn signal_without_a_trace_has_no_cause() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start(&scratch.name);
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "untraced", "read end").await;
    kill(&init, Signal::KILL);
    ended(&mut init);
    let exit = reader.until_exit("untraced").await.exited().clone();
    assert_eq!((exit.by_signal, exit.cause.is_none()), (Some(true), true), "{exit:?}");
}
