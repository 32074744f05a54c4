//! A router in this process between sockets of its own: for the tests of the path through it, and
//! for its benchmark.

use std::path::PathBuf;
use std::sync::Arc;

use coroner::node::config::Config;
use coroner::node::{Assembly, RunError};
use coroner_journal::JournalSettings;
use coroner_tests::binary;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A router that reads its sources; its sockets and its audit file are in a folder of their own.
pub(crate) struct Running {
    pub(crate) places: Places,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<Result<(), RunError>>,
}

/// Sockets and files of one router and its peers.
#[derive(Clone)]
pub(crate) struct Places {
    folder: Arc<tempfile::TempDir>,
}

impl Places {
    pub(crate) fn new() -> Self {
        Self { folder: Arc::new(tempfile::tempdir().expect("a folder for sockets can be made")) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// One agent source `agent.sock` in this mode, the sink `containerd`, and the audit file.
    pub(crate) fn config(&self, mode: &str) -> Config {
        let at = |name| self.path(name).display().to_string();
        let text = format!(
            r#"
            node = "n"
            [containerd]
            address = "{}"
            ttrpc_address = "{}"
            [[source]]
            name = "agent"
            type = "agent"
            address = "unix://{}"
            mode = "{mode}"
            [[sink]]
            name = "containerd"
            type = "containerd"
            [[sink]]
            name = "audit"
            type = "jsonl"
            path = "{}"
            "#,
            at("no-such.sock"),
            at("containerd.sock"),
            at("agent.sock"),
            at("audit.jsonl"),
        );
        let mut config = Config::parse(&text).expect("the text above is a configuration");
        let program = binary::find("coroner", "coroner-cli").expect("the workspace is built");
        config.policies.compile.program = Some(program);
        config.guests_directory = self.path("guests.d");
        config.policies.cache = Some(self.path("cache"));
        config.journal = Some(JournalSettings { directory: self.path("journal"), size: 64 << 20 });
        config
    }
}

impl Running {
    /// Adds the sources of `config` to a router, and runs it until `end`.
    pub(crate) fn of(places: Places, config: &Config, mut router: Assembly) -> Self {
        for source in &config.sources {
            router.follow(source);
        }
        if !config.guests.is_empty() {
            router.follow_guests(config);
        }
        let (stop, over) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "joined in `end`")]
        let ended = tokio::spawn(router.until(async {
            over.await.ok();
        }));
        Self { places, stop, ended }
    }

    /// Lets the router run dry.
    pub(crate) async fn end(self) -> Places {
        self.stop.send(()).expect("the router runs until it is stopped");
        self.ended.await.expect("no part panics").expect("no part ends by itself");
        self.places
    }
}
