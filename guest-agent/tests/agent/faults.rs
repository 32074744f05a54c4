//! Faults and limits of real processes, and a flood of signals.

use std::process::{Command, Stdio};

use coroner_proto::agent::CauseKind;
use rustix::process::Signal;

use crate::causes::{QUIET, ended, go, kill, kind, named, oom_sources};
use crate::harness::{AgentProgram, Scratch};

/// What Python ends itself by, and the cause. A real fault, of the main thread or of another one.
const FAULTS: [(&str, &str, u32, CauseKind); 7] = [
    ("abort", "os.abort()", 6, CauseKind::CAUSE_CRASH),
    ("fault", "ctypes.string_at(0)", 11, CauseKind::CAUSE_CRASH),
    (
        "thread-fault",
        "t = threading.Thread(target=ctypes.string_at, args=(0,)); t.start(); t.join()",
        11,
        CauseKind::CAUSE_CRASH,
    ),
    ("fault-by-kill", "os.kill(os.getpid(), 11)", 11, CauseKind::CAUSE_CONTAINER_PROCESS),
    // PR_SET_NO_NEW_PRIVS; PR_SET_SECCOMP with a filter that ends the process at getppid.
    ("seccomp", "forbid(); os.getppid()", 31, CauseKind::CAUSE_SECCOMP),
    (
        "file-size",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); signal.signal(25, signal.SIG_DFL); \
         os.write(os.memfd_create('x'), b'xx')",
        25,
        CauseKind::CAUSE_RESOURCE_LIMIT,
    ),
    (
        "cpu-time",
        "resource.setrlimit(resource.RLIMIT_CPU, (1, 1)); spin()",
        9,
        CauseKind::CAUSE_RESOURCE_LIMIT,
    ),
];
const PYTHON: &str = "
import ctypes, os, resource, signal, struct, sys, threading
libc = ctypes.CDLL(None)
def forbid():
    op = lambda *it: struct.pack('HBBI', *it)
    code = op(0x20, 0, 0, 0) + op(0x15, 0, 1, 110) + op(6, 0, 0, 0x80000000) + op(6, 0, 0, 0x7fff0000)
    code = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
def spin():
    while True: pass
sys.stdin.readline()
exec(sys.argv[1])
";

#[tokio::test]
async fn fault_of_a_process_is_distinguished_from_a_signal() {
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace(&scratch.name);
    let _quiet = QUIET.read().await;
    let mut reader = agent.reader().await;
    for (id, action, signal, expect) in FAULTS {
        let script = format!("exec python3 -c \"{PYTHON}\" \"{action}\"");
        let mut init = named(&reader, &scratch, id, &script).await;
        go(&mut init);
        // Its limits can be read until it is reaped.
        let exit = reader.until_exit(id).await.exited().clone();
        ended(&mut init);
        assert_eq!((exit.signal, kind(&exit)), (Some(signal), expect), "{id} {exit:?}");
    }
}

/// A process of no container that sends itself signals, which it handles. The agent reads them at
/// its own pace; kills by the OOM killer are found all the same.
#[tokio::test]
async fn flood_of_signals_hides_no_oom_kill() {
    let _loud = QUIET.write().await;
    let scratch = Scratch::new();
    let agent = AgentProgram::start_with_trace_alone(&scratch.name);
    let flood = "import os, signal
signal.signal(15, lambda *it: None)
print(flush=True)
while True: os.kill(os.getpid(), 15)";
    let mut flood = Command::new("python3").args(["-c", flood]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(flood.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    assert_eq!(oom_sources(&agent, &scratch).await, ["trace", "counter"]);
    // What is found of another signal is true, or unknown.
    let mut reader = agent.reader().await;
    let mut init = named(&reader, &scratch, "flooded", "read end").await;
    kill(&init, Signal::KILL);
    ended(&mut init);
    let exit = reader.until_exit("flooded").await.exited().clone();
    flood.kill().unwrap();
    flood.wait().unwrap();
    let kinds = [CauseKind::CAUSE_NODE_PROCESS, CauseKind::CAUSE_UNKNOWN];
    assert!(exit.by_signal == Some(true) && kinds.contains(&kind(&exit)), "{exit:?}");
}
