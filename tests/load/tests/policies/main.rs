//! The policy chain: native and wasm rule alike, and no policy's failure changes a ruling.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

mod busy;
mod equal;
mod files;
mod last_good;
mod modes;
mod museum;
mod on_failure;
mod rebuilt;
mod time;
mod wasi;
mod zoo;

use std::fs;
use std::sync::Arc;

use coroner_core::audit::Refused;
use coroner_core::case::Case;
use coroner_core::mode::Known;
use coroner_core::signal::{ContainerId, Event, Evidence, Exited, Level, Moment, OomKilled, Signal, Target};
use coroner_policy::{Chain, ChainSnapshot, CompileSettings, Host, PolicyManager, Settings};
use coroner_tests::binary;
use tempfile::TempDir;

/// The router's own defaults; the `coroner` beside this test compiles.
fn settings() -> Settings {
    let program = Some(binary::find("coroner", "coroner-cli").unwrap());
    Settings { compile: CompileSettings { program, ..CompileSettings::default() }, ..Settings::default() }
}

/// What became of files that were dropped into a policy directory.
struct Dropped {
    _folder: TempDir,
    host: Arc<Host>,
    snapshot: Arc<ChainSnapshot>,
    refused: Vec<Refused>,
}

impl Dropped {
    fn chain(&self) -> Chain {
        Chain::new(Arc::clone(&self.host), &self.snapshot)
    }

    /// Why the only file that was dropped is not in the chain.
    fn reason(&self) -> &str {
        let [refused] = &self.refused[..] else { panic!("{:?}", self.refused) };
        assert_eq!(refused.kept, None);
        &refused.reason
    }
}

/// Files by name, dropped before the start.
fn dropped_with(settings: Settings, files: &[(&str, &[u8])]) -> Dropped {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    let settings = Settings { directory: Some(folder.path().to_owned()), ..settings };
    let host = Arc::new(Host::new(settings).unwrap());
    let manager = PolicyManager::start(Arc::clone(&host));
    let (snapshot, refused) = (manager.active_chain().now(), manager.refused().to_vec());
    Dropped { _folder: folder, host, snapshot, refused }
}

fn dropped(files: &[(&str, &[u8])]) -> Dropped {
    dropped_with(settings(), files)
}

/// The built-in default as it is committed.
fn kubernetes() -> Vec<u8> {
    fs::read(binary::bundled_policy("kubernetes").unwrap()).unwrap()
}

fn signal(event: Event) -> Signal {
    Signal {
        id: "n:s:c1:1".to_owned(),
        at: Moment { boot_ns: Some(1), wall_ms: Some(2), received_ms: 3 },
        target: Target {
            node: "n".to_owned(),
            guest: None,
            containerd_namespace: None,
            sandbox_id: None,
            container_id: ContainerId::try_from("c1".to_owned()).unwrap(),
            exec_id: None,
            owner: None,
        },
        event,
        attributes: Vec::new(),
    }
}

fn kill() -> Signal {
    signal(Event::OomKill(OomKilled {
        added: Some(1),
        total: Some(1),
        level: Level::Container,
        ..OomKilled::new(Evidence::Counter)
    }))
}

fn exit() -> Signal {
    signal(Event::Exited(Exited {
        pid: Some(9),
        is_init: Some(true),
        status: Some(1),
        core: Some(false),
        ..Exited::unknown()
    }))
}

fn ours() -> Case {
    Case::new(&[Known::KillCount, Known::ExitStatus, Known::OomWritable, Known::ExitWritable])
}
