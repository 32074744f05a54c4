//! The router as systemd runs it: with sockets that outlive it, and notifications of ready and
//! stopping.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use coroner_proto::shim::HelloRequest;
use coroner_proto::shim_ttrpc::ShimClient;
use coroner_tests::binary;
use coroner_tests::process::Process;
use coroner_tests::scratch::Scratch;
use coroner_tests::wait::until;
use coroner_transport::Address;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;
use ttrpc::asynchronous::Client;
use ttrpc::context;

use super::text;

const PATIENCE: Duration = Duration::from_secs(30);

/// systemd hands sockets over from descriptor 3, and names the process they are for by its pid
/// (sd_listen_fds(3)).
const ACTIVATE: &str = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" run --config \"$1\"";

/// What a service manager has: the socket, and where it receives notifications.
struct Manager {
    scratch: Scratch,
    notified: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let toml = r#"
            node = "n"
            [policies]
            cache = "@DIR@/cache"
            [control]
            socket = "@DIR@/control.sock"
            [[source]]
            name = "node"
            type = "agent"
            address = "unix://@DIR@/agent.sock"
            mode = "beside"
            [[sink]]
            name = "audit"
            type = "jsonl"
            path = "@DIR@/audit.jsonl"
        "#;
        let directory = scratch.directory().to_string_lossy().into_owned();
        std::fs::write(scratch.path("coroner.toml"), toml.replace("@DIR@", &directory)).unwrap();
        let notified = UnixDatagram::bind(scratch.path("notify")).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { scratch, notified }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", ACTIVATE]).arg(binary::find("coroner", "coroner-cli").unwrap());
        command.arg(self.scratch.path("coroner.toml")).env("NOTIFY_SOCKET", self.scratch.path("notify"));
        command
    }

    fn start(&self, passed: impl Into<OwnedFd>) -> Process {
        let log = self.scratch.path("router.log");
        Process::with_input("coroner", &mut self.command(), Stdio::from(passed.into()), &log).unwrap()
    }

    /// The next message, a line each.
    fn notified(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.notified.recv(&mut message).expect("the manager is notified in time");
        text(&message[..length]).lines().map(str::to_owned).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path("router.log")).unwrap()
    }
}

/// Waits until a client is in the socket's queue.
async fn until_queued(listener: &UnixListener) {
    until("a client to wait at the socket", PATIENCE, async || {
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(polled[0].revents().contains(PollFlags::IN).then_some(()))
    })
    .await
    .unwrap();
}

/// `coroner status`, which has connected and waits.
async fn waiting_status(socket: &Path, listener: &UnixListener) -> Child {
    let mut status = Command::new(binary::find("coroner", "coroner-cli").unwrap());
    status.args(["status", "--json"]).env("CORONER_SOCKET", socket);
    let mut status = status.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_queued(listener).await;
    assert!(status.try_wait().unwrap().is_none(), "it waits instead of failing");
    status
}

fn pid_of(status: Child) -> u64 {
    let output = status.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["pid"].as_u64().unwrap()
}

#[tokio::test]
async fn socket_outlives_the_router_and_queues_requests() {
    let manager = Manager::new();
    let path = manager.scratch.path("control.sock");
    let listener = UnixListener::bind(&path).unwrap();

    let status = waiting_status(&path, &listener).await;
    let mut first = manager.start(listener.try_clone().unwrap());
    assert_eq!(pid_of(status), u64::from(first.pid()));
    assert_eq!(manager.notified(), ["READY=1", "STATUS=serving 1 source and 0 configured guests, 1 sink"]);

    first.kill().unwrap();
    let status = waiting_status(&path, &listener).await;
    let mut second = manager.start(listener.try_clone().unwrap());
    assert_eq!(pid_of(status), u64::from(second.pid()));
    assert_eq!(manager.notified()[0], "READY=1");

    assert!(second.terminate(PATIENCE).await.unwrap().success());
    assert_eq!(manager.notified()[0], "STOPPING=1");
    assert!(path.exists(), "it is not the router's to remove");
    let status = waiting_status(&path, &listener).await;
    let _third = manager.start(listener.try_clone().unwrap());
    pid_of(status);
    assert!(manager.log().contains("the service manager passed a socket"));
}

#[tokio::test]
async fn invalid_socket_fails_the_start_before_ready() {
    let manager = Manager::new();
    manager.notified.set_nonblocking(true).unwrap();
    for (passed, why) in [
        (OwnedFd::from(File::open("/dev/null").unwrap()), "is not a unix socket: fd 3 is not a socket"),
        (OwnedFd::from(UnixDatagram::unbound().unwrap()), "is not a unix socket: fd 3 is not a valid"),
    ] {
        let mut failed = manager.start(passed);
        let status = until("the router to fail", PATIENCE, async || Ok(failed.check_running().err())).await;
        assert!(status.unwrap().to_string().contains("exit status: 1"));
        assert!(manager.log().contains(why), "{}", manager.log());
    }
    let mut nothing = [0; 16];
    assert!(manager.notified.recv(&mut nothing).is_err(), "READY was not sent");
}

/// A pod that starts while the router restarts is not unmanaged for life: the wrapper's probe waits
/// in the socket's queue.
#[tokio::test]
async fn probe_of_a_wrapper_waits_for_the_router_that_starts() {
    let manager = Manager::new();
    let path = manager.scratch.path("shim.sock");
    let toml = r#"
        [policies]
        cache = "@DIR@/cache"
        [containerd]
        address = "@DIR@/containerd.sock"
        [[source]]
        name = "shims"
        type = "shim"
        address = "unix://@DIR@/shim.sock"
        mode = "wrapped"
        [[sink]]
        name = "containerd"
        type = "containerd"
    "#;
    let directory = manager.scratch.directory().to_string_lossy().into_owned();
    std::fs::write(manager.scratch.path("coroner.toml"), toml.replace("@DIR@", &directory)).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let link = coroner_transport::connect(&Address::Unix(path.clone())).await.unwrap();
        let client = ShimClient::new(Client::new(link));
        let request = HelloRequest::default();
        let (hello, mut router) =
            tokio::join!(client.hello(context::with_duration(PATIENCE), &request), async {
                until_queued(&listener).await;
                manager.start(listener.try_clone().unwrap())
            });
        assert_eq!(hello.unwrap().mode, "wrapped");
        router.kill().unwrap();
    }
    assert!(path.exists(), "it is not the router's to remove");
}

#[tokio::test]
async fn unreachable_service_manager_is_a_warning() {
    let manager = Manager::new();
    let listener = UnixListener::bind(manager.scratch.path("control.sock")).unwrap();
    let missing: PathBuf = manager.scratch.path("missing");
    let log = manager.scratch.path("router.log");
    let mut command = manager.command();
    command.env("NOTIFY_SOCKET", missing);
    let mut router =
        Process::with_input("coroner", &mut command, Stdio::from(OwnedFd::from(listener)), &log).unwrap();
    router.wait_ready(PATIENCE).await.unwrap();
    assert!(router.terminate(PATIENCE).await.unwrap().success());
    assert!(manager.log().contains("cannot be notified (NOTIFY_SOCKET)"), "{}", manager.log());
}
