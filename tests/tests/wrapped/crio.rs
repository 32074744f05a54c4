//! A node with CRI-O: no containerd, and a shim that receives CRI-O's requests
//! (`internal/oci/runtime_vm.go`), through the wrapper. The shim, runc and the kernel's OOM killer
//! are real; CRI-O's part is this file.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, KillRequest, ShutdownRequest, StartRequest, StateRequest,
    StateResponse, WaitRequest,
};
use containerd_shim_protos::protobuf::Message;
use coroner_tests::report::{print, timed};
use coroner_tests::router::Router;
use coroner_tests::scratch::Scratch;
use coroner_tests::{binary, program};
use serde_json::{Value, json};
use ttrpc::Request;
use ttrpc::asynchronous::Client;

use super::fixture::{END, Mode, alone, is_ruled};

/// CRI-O's own for its shims.
const NAMESPACE: &str = "default";

/// Of one call.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container of CRI-O's: a bundle, and a shim of its own. Dropped, it is killed and deleted.
struct Container<'a> {
    id: String,
    bundle: PathBuf,
    shim: Client,
    /// What the shim logs to, both ends of it.
    _log: fs::File,
    runtime: &'a tokio::runtime::Handle,
}

/// What CRI-O makes of a container's end.
#[derive(Debug, PartialEq, Eq)]
struct Ended {
    status: u32,
    oom_killed: bool,
}

impl<'a> Container<'a> {
    async fn create(
        scratch: &Scratch,
        runtime: &'a tokio::runtime::Handle,
        name: &str,
        arguments: &str,
    ) -> Result<Self> {
        let id = format!("{}-{name}", scratch.name());
        let bundle = scratch.path(name);
        let program = bundle.join("rootfs/oomtest");
        for folder in ["proc", "dev", "sys"] {
            fs::create_dir_all(bundle.join("rootfs").join(folder))?;
        }
        fs::write(&program, program::oomtest()?)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        fs::write(bundle.join("config.json"), spec(scratch, &id, arguments)?.to_string())?;
        let log = bundle.join("log");
        rustix::fs::mkfifoat(rustix::fs::CWD, &log, rustix::fs::Mode::RWXU)?;
        let log = fs::OpenOptions::new().read(true).write(true).open(&log)?;
        // As CRI-O calls it: no containerd, so neither of its addresses.
        let output = Command::new(binary::find("containerd-shim-coroner-v2", "containerd-shim-coroner-v2")?)
            .args(["-namespace", NAMESPACE, "-address", "", "-publish-binary", "", "-id", &id, "start"])
            .current_dir(&bundle)
            .env("TTRPC_ADDRESS", "")
            .env("CORONER_SHIM_CONFIG", scratch.path("shim.toml"))
            .output()?;
        // CRI-O reads both streams as one.
        let printed = [output.stdout, output.stderr].concat();
        let address = String::from_utf8(printed)?.trim().to_owned();
        ensure!(output.status.success() && address.starts_with("unix://"), "the shim printed {address}");
        let container = Self { id, shim: Client::connect(&address).await?, bundle, _log: log, runtime };
        let request = CreateTaskRequest {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            ..CreateTaskRequest::default()
        };
        container.call("Create", &request).await?;
        Ok(container)
    }

    /// CRI-O uses the second version of the service.
    async fn call(&self, method: &str, message: &impl Message) -> Result<Vec<u8>> {
        let request = Request {
            service: "containerd.task.v2.Task".to_owned(),
            method: method.to_owned(),
            payload: message.write_to_bytes()?,
            timeout_nano: i64::try_from(PATIENCE.as_nanos())?,
            ..Request::default()
        };
        Ok(self.shim.request(request).await.with_context(|| format!("{method} of {}", self.id))?.payload)
    }

    /// Starts it, and reads its state when Wait is answered: CRI-O's state of it from then on.
    async fn run(&self) -> Result<Ended> {
        let id = || self.id.clone();
        self.call("Start", &StartRequest { id: id(), ..StartRequest::default() }).await?;
        self.call("Wait", &WaitRequest { id: id(), ..WaitRequest::default() }).await?;
        let state = self.call("State", &StateRequest { id: id(), ..StateRequest::default() }).await?;
        let status = StateResponse::parse_from_bytes(&state)?.exit_status;
        Ok(Ended { status, oom_killed: status != 0 && self.bundle.join("oom").exists() })
    }

    /// Whether its file is there in the end.
    async fn is_oom_killed_in_the_end(&self) -> Result<()> {
        let file = self.bundle.join("oom");
        coroner_tests::wait::until("the oom file", END, async || Ok(file.exists().then_some(()))).await
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let id = || self.id.clone();
        let end = async {
            let kill = KillRequest { id: id(), signal: 9, all: true, ..KillRequest::default() };
            self.call("Kill", &kill).await.ok();
            self.call("Delete", &DeleteRequest { id: id(), ..DeleteRequest::default() }).await.ok();
            self.call("Shutdown", &ShutdownRequest { id: id(), ..ShutdownRequest::default() }).await.ok();
        };
        tokio::task::block_in_place(|| self.runtime.block_on(end));
    }
}

/// `runc spec`, for our program, with 32 MiB and in the test's cgroup.
fn spec(scratch: &Scratch, id: &str, arguments: &str) -> Result<Value> {
    let folder = scratch.path("spec");
    fs::create_dir_all(&folder)?;
    let file = folder.join("config.json");
    fs::remove_file(&file).ok();
    let made = Command::new("runc").arg("spec").current_dir(&folder).status().context("runc spec")?;
    ensure!(made.success(), "runc spec: {made}");
    let mut spec: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let arguments = ["/oomtest"].into_iter().chain(arguments.split(' ')).collect::<Vec<_>>();
    spec["process"]["args"] = json!(arguments);
    spec["process"]["terminal"] = json!(false);
    spec["linux"]["cgroupsPath"] = json!(format!("/{}/{id}", scratch.name()));
    spec["linux"]["resources"]["memory"] = json!({ "limit": 32 << 20, "swap": 32 << 20 });
    spec["annotations"] = json!({
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.cri-o.SandboxID": id,
    });
    Ok(spec)
}

async fn fixture(mode: Mode) -> Result<Router> {
    let scratch = Scratch::new()?;
    let socket = scratch.path("shim.sock");
    let shim = format!("mode = \"{}\"\nsocket = \"{}\"\n", mode.name(), socket.display());
    fs::write(scratch.path("shim.toml"), shim)?;
    let config = format!(
        "node = \"test-node\"\n[policies]\ndirectory = \"@DIR@/policies\"\ncache = \"@DIR@/cache\"\n\
         [control]\nsocket = \"@DIR@/control.sock\"\n\
         [[source]]\nname = \"shims\"\ntype = \"shim\"\naddress = \"unix://{}\"\nmode = \"{}\"\n\
         [[sink]]\nname = \"crio\"\ntype = \"oom-file\"\n\
         [[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"@DIR@/audit.jsonl\"\n",
        socket.display(),
        mode.name(),
    );
    Router::start_in(scratch, &config).await
}

const KILLED: Ended = Ended { status: 137, oom_killed: true };

#[tokio::test(flavor = "multi_thread")]
async fn crio_finds_the_oom_file_when_wait_is_answered() {
    let _turn = alone().await;
    let _timed = timed("crio_finds_the_oom_file_when_wait_is_answered");
    let mut router = fixture(Mode::Proxy).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    for round in 0..5 {
        let name = format!("killed-{round}");
        let killed = Container::create(router.scratch(), &runtime, &name, "self 64").await.unwrap();
        assert_eq!(killed.run().await.unwrap(), KILLED, "round {round}");
    }
    let parent = Container::create(router.scratch(), &runtime, "parent", "child 64 1 0").await.unwrap();
    assert_eq!(parent.run().await.unwrap(), Ended { status: 1, oom_killed: true });
    let own = Container::create(router.scratch(), &runtime, "own", "exit 137").await.unwrap();
    assert_eq!(own.run().await.unwrap(), Ended { status: 137, oom_killed: false });
    let id = parent.id.clone();
    let exit = router.wait_record("the exit's ruling", END, |it| is_ruled(it, "exited", &id)).await.unwrap();
    assert_eq!(exit["delivery"][0]["because"], "CRI-O learns of exits from the shim's own answer");
    let sinks = router.request(&["status"]).unwrap()["sinks"].clone();
    let crio = sinks.as_array().unwrap().iter().find(|it| it["sink"] == "crio").unwrap();
    assert_eq!(crio["delivered"], 6, "a file for each that was killed");
    router
        .drop_in("50-causal.wasm", &fs::read(binary::bundled_policy("causal-oom").unwrap()).unwrap())
        .unwrap();
    router.wait_logged("policy=\"50-causal\"", 1, END).await.unwrap();
    let suppressed =
        Container::create(router.scratch(), &runtime, "suppressed", "child 64 5 7000").await.unwrap();
    let ended = suppressed.run().await.unwrap();
    print(format_args!("ended with 5, seven seconds after a kill: {ended:?}"));
    assert_eq!(ended, Ended { status: 5, oom_killed: false }, "the kill did not end it");
    drop((parent, own, suppressed));
    router.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn crio_finds_the_late_oom_file_of_an_events_only_shim() {
    let _turn = alone().await;
    let _timed = timed("crio_finds_the_late_oom_file_of_an_events_only_shim");
    let mut router = fixture(Mode::Wrapped).await.unwrap();
    let runtime = tokio::runtime::Handle::current();
    let killed = Container::create(router.scratch(), &runtime, "killed", "self 64").await.unwrap();
    assert_eq!(killed.run().await.unwrap().status, 137);
    killed.is_oom_killed_in_the_end().await.unwrap();
    let later = Container::create(router.scratch(), &runtime, "later", "child 64 1 100").await.unwrap();
    router.kill().unwrap();
    assert_eq!(later.run().await.unwrap(), Ended { status: 1, oom_killed: false }, "the router is dead");
    router.start_again().await.unwrap();
    later.is_oom_killed_in_the_end().await.unwrap();
    drop((killed, later));
    router.stop().await.unwrap();
}
