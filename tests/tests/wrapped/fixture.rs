//! What the cases share: one containerd with two runtime handlers, stock and wrapped, and a router
//! that wrapped shims publish at.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use coroner_tests::containerd::{Containerd, Setting};
use coroner_tests::cri::{Container, Cri};
use coroner_tests::router::{Router, usual};
use coroner_tests::scratch::Scratch;
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// A container's end comes within a second; this allows for a machine that builds Rust beside.
pub(crate) const END: Duration = Duration::from_secs(30);
/// Cases measure races of milliseconds: they take turns.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A mode of the wrapper, and of the source behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Wrapped,
    Proxy,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Proxy => "proxy",
        }
    }
}

/// The router is ended first: its audit is whole then.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) router: Router,
    pub(crate) containerd: Containerd,
    pub(crate) cri: Cri,
}

impl Fixture {
    pub(crate) async fn start(mode: Mode) -> Result<Self> {
        let scratch = Scratch::new()?;
        let socket: PathBuf = scratch.path("shim.sock");
        let shim = format!(
            "mode = \"{}\"\nsocket = \"{}\"\nlog = \"@DIR@/shim.log\"\n",
            mode.name(),
            socket.display()
        );
        let containerd =
            Containerd::start_as(&Setting::default().of(crate::release()).wrapped(&shim)).await?;
        let config = config(&containerd, &socket, mode);
        let router = Router::start_in(scratch, &config).await?;
        let cri = containerd.cri().await?;
        Ok(Self { router, containerd, cri })
    }

    /// Waits until a signal of this kind was ruled for the container's init, and returns its audit
    /// record.
    pub(crate) async fn ruled(&self, kind: &str, container: &Container) -> Result<Value> {
        let what = format!("the audit record of {kind} of {}", container.name);
        self.router.wait_record(&what, END, |record| is_ruled(record, kind, &container.id)).await
    }
}

/// Whether a record is the ruling on a signal of `kind` about a container's init process.
pub(crate) fn is_ruled(record: &Value, kind: &str, container: &str) -> bool {
    let signal = &record["signal"];
    record["record"] == "ruled"
        && signal["target"]["container-id"] == container
        && signal["target"]["exec-id"].is_null()
        && !signal["event"][kind].is_null()
}

fn config(containerd: &Containerd, socket: &std::path::Path, mode: Mode) -> String {
    format!(
        r#"{usual}
[[source]]
name = "shims"
type = "shim"
address = "unix://{socket}"
mode = "{mode}"
"#,
        usual = usual("test-node", &containerd.socket()),
        socket = socket.display(),
        mode = mode.name(),
    )
}
