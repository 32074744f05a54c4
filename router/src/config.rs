//! The configuration file: read as it is written, then one check that reports every mistake with its key.

mod check;
mod metrics_address;
mod policies;
mod quantity;
mod raw;
mod routes;
mod sink_keys;
mod sinks;
mod url;

pub use metrics_address::MetricsAddress;
pub use quantity::{size, time};
pub use routes::{AUDIT, Pattern, Route};
pub use sinks::{Jsonl, Overflow, Queue, Sink, SinkKind, Webhook};
pub use url::Url;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coroner_proto::address::Address;
use serde::{Deserialize, Serialize};

use crate::case::Known;
use crate::policy::Settings;
use crate::signal::ContainerId;

/// A router's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in signals and event ids.
    pub node: String,
    /// Where policies are, and what each may use.
    pub policies: Settings,
    /// Where `coroner status` and `coroner policy` ask; `None`: nowhere.
    pub control: Option<PathBuf>,
    /// Where Prometheus asks; `None`: nowhere.
    pub metrics: Option<MetricsAddress>,
    /// `None`: no containerd on this node.
    pub containerd: Option<Containerd>,
    /// What is followed and trusted.
    pub sources: Vec<Source>,
    /// What is followed and not trusted.
    pub guests: Vec<Source>,
    /// Where guests that are added while the router runs are kept.
    pub guests_directory: PathBuf,
    /// Where what was accepted is written; `None`: nowhere, and sources keep what is not delivered.
    pub journal: Option<Journal>,
    /// At least one.
    pub sinks: Vec<Sink>,
    /// What leads where; each sink but the one of containerd is named in one.
    pub routes: Vec<Route>,
}

/// Where containerd is.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// gRPC, for names. The file always sets it; without it they stay unknown.
    pub address: Option<PathBuf>,
    /// ttrpc, for events.
    pub ttrpc_address: PathBuf,
    /// For containers whose own namespace is not known.
    pub namespace: String,
}

/// Where the journal is, and how large it may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Its folder.
    pub directory: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// Who else speaks for a source's containers. What is published follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A shim that knows nothing of the router publishes TaskOOM and TaskExit too.
    Beside,
    /// A shim whose events come to the router instead of containerd; its Wait is answered as the shim answers.
    Wrapped,
    /// The same, and a proxy holds the shim's answers until they are ruled.
    Proxy,
    /// Nobody else publishes.
    Sole,
}

impl Mode {
    /// What a ruling can change in this mode.
    pub fn writable(self) -> &'static [Known] {
        match self {
            Self::Beside => &[],
            Self::Wrapped => &[Known::OomWritable, Known::ExitWritable],
            Self::Proxy | Self::Sole => &[Known::OomWritable, Known::ExitWritable, Known::StatusWritable],
        }
    }
}

impl Mode {
    /// What can be known at best of a container of an agent or a shim in this mode, and changed by a ruling.
    pub fn knowable(self) -> Vec<Known> {
        let read = [
            Known::KillCount,
            Known::Victim,
            Known::ExitStatus,
            Known::Pressure,
            Known::Memory,
            Known::Owner,
        ];
        let read = match self {
            Self::Beside | Self::Sole => read.to_vec(),
            Self::Wrapped => vec![Known::KillCount, Known::ExitStatus, Known::Memory, Known::Owner],
            Self::Proxy => {
                vec![Known::KillCount, Known::ExitStatus, Known::KillRequests, Known::Memory, Known::Owner]
            }
        };
        read.into_iter().chain(self.writable().iter().copied()).collect()
    }
}

/// Whether a policy's rulings count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// They do.
    Enforce,
    /// It rules on live signals, and only the audit tells.
    Shadow,
    /// It is not loaded.
    Off,
}

impl PolicyMode {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
            Self::Off => "off",
        }
    }
}

/// Where signals come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Unique.
    pub name: String,
    /// What answers there.
    pub kind: SourceKind,
    /// What may be published for its containers.
    pub mode: Mode,
    /// The guest's name, when it runs in one.
    pub guest: Option<String>,
    /// Where its agent answers.
    pub address: Address,
    /// A guest's machine, of whose word nothing is believed beyond its own containers; `None`: trusted like the node itself.
    pub machine: Option<Machine>,
}

/// What answers at a source's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A coroner-agent.
    Agent,
    /// A stock kata-agent.
    Kata,
    /// Nobody: wrapped shims connect there.
    Shim,
}

impl SourceKind {
    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Kata => "kata",
            Self::Shim => "shim",
        }
    }
}

/// A guest's virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The only containers it may speak for; `None`: those it speaks of first.
    pub containers: Option<BTreeSet<ContainerId>>,
    /// The process of its monitor.
    pub monitor_pid: Option<u32>,
    /// How long its link may be down before it counts as lost.
    pub lost_after: Duration,
}

/// A mistake and the key it stands under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mistake {
    /// `source[0].mode`, say; empty for the file as a whole.
    pub key: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It says things it may not.
    #[error("{}", list(.path, .mistakes))]
    Mistakes {
        /// Which.
        path: PathBuf,
        /// All of them.
        mistakes: Vec<Mistake>,
    },
}

fn list(path: &Path, mistakes: &[Mistake]) -> String {
    let lines: Vec<String> = mistakes
        .iter()
        .map(|it| match it.key.as_str() {
            "" => format!("{}: {}", path.display(), it.message),
            key => format!("{}: {key}: {}", path.display(), it.message),
        })
        .collect();
    lines.join("\n")
}

impl Config {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|mistakes| ConfigError::Mistakes { path: path.to_owned(), mistakes })
    }

    /// Checks the keys of one guest, as a JSON object; on error, every mistake in it.
    pub fn guest(json: &str) -> Result<Source, Vec<Mistake>> {
        let raw: raw::Source = serde_json::from_str(json).map_err(|error| {
            vec![Mistake {
                key: String::new(),
                message: format!("is no JSON object of a guest's keys: {error}"),
            }]
        })?;
        check::guest(raw)
    }

    /// Checks a text; on error, every mistake in it.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let raw: raw::Config = toml::from_str(text).map_err(|error| {
            vec![Mistake { key: String::new(), message: error.to_string().trim_end().to_owned() }]
        })?;
        check::check(raw)
    }
}

#[cfg(test)]
mod sinks_tests;

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const GOOD: &str = r#"
        [containerd]
        address = "/run/containerd/containerd.sock"
        [[source]]
        name = "node"
        type = "agent"
        address = "unix:///run/coroner/agent.sock"
        mode = "beside"
        [[sink]]
        name = "containerd"
        type = "containerd"
    "#;

    pub(super) fn check(text: &str, expect: &[(&str, &str)]) {
        let mistakes = Config::parse(text).err().unwrap_or_default();
        let found: Vec<_> = mistakes.iter().map(|it| (it.key.as_str(), it.message.as_str())).collect();
        assert_eq!(found.len(), expect.len(), "{found:?}");
        for ((key, message), (expect_key, expect_message)) in found.iter().zip(expect) {
            assert_eq!(key, expect_key, "{found:?}");
            assert!(message.contains(expect_message), "{message} lacks {expect_message}");
        }
    }

    #[test]
    fn a_good_file_has_defaults() {
        let config = Config::parse(GOOD).unwrap();
        let containerd = config.containerd.unwrap();
        assert_eq!(containerd.ttrpc_address, Path::new("/run/containerd/containerd.sock.ttrpc"));
        assert_eq!(containerd.namespace, "k8s.io");
        assert_eq!((config.policies.limits.fuel, config.policies.limits.memory), (10_000_000, 16 << 20));
        assert!(!config.node.is_empty());
    }

    #[test]
    fn every_mistake_is_reported_with_its_key() {
        check(
            r#"
            node = "a b"
            nod = 1
            [policies]
            directory = "policies.d"
            fuel = 0
            memory = "16"
            wasm = true
            call = "soon"
            [policies.compile]
            tim = "1s"
            [policies.quarantine]
            shortest = "2s"
            longest = "1s"
            [control]
            sock = "/x"
            [metrics]
            address = "http://10.0.0.1:80"
            [containerd]
            address = 7
            [[source]]
            name = "Node"
            type = "kato"
            mode = "besides"
            address = "tcp://1.2.3.4:5"
            adress = "x"
            [[guest]]
            name = "vm"
            type = "agent"
            mode = "sole"
            address = "hvsock:///run/vm.sock"
            containers = ["a b", 7]
            monitor_pid = 0
            lost_after = "soon"
            cid = 3
            [[sink]]
            name = "audit"
            type = "jsonl"
            "#,
            &[
                ("nod", "is not a key"),
                ("node", "1 to 253"),
                ("policies.wasm", "is not a key"),
                ("policies.fuel", "above 0"),
                ("policies.memory", "\"16MiB\""),
                ("policies.call", "\"20ms\""),
                ("policies.directory", "absolute"),
                ("policies.compile.tim", "is not a key"),
                ("policies.quarantine.longest", "shorter"),
                ("control.sock", "is not a key"),
                ("metrics.address", "this machine alone"),
                ("containerd.address", "not a string"),
                ("source[0].adress", "is not a key"),
                ("source[0].name", "a-z"),
                ("source[0].type", "\"agent\""),
                ("source[0].mode", "\"beside\", \"sole\""),
                ("source[0].address", "tcp"),
                ("guest[0].cid", "is not a key"),
                ("guest[0].address", "hvsock:///path:PORT"),
                ("guest[0].containers", "not a string"),
                ("guest[0].containers", "`a b`"),
                ("guest[0].monitor_pid", "above 0"),
                ("guest[0].lost_after", "\"20ms\""),
                ("sink[0].path", "is missing"),
            ],
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check("", &[("source", "is missing"), ("sink", "is missing")]);
        check(
            "[[source]]\n[[sink]]",
            &[
                ("source[0].name", "is missing"),
                ("source[0].type", "is missing"),
                ("source[0].mode", "is missing"),
                ("source[0].address", "is missing"),
                ("sink[0].name", "is missing"),
                ("sink[0].type", "is missing"),
            ],
        );
        check(
            &GOOD
                .replace("[containerd]\n", "")
                .replace("address = \"/run/containerd/containerd.sock\"\n", ""),
            &[("containerd.address", "needs to know")],
        );
    }

    #[test]
    fn names_are_unique_and_one_sink_publishes() {
        check(
            &format!("{GOOD}\n[[sink]]\nname = \"containerd\"\ntype = \"containerd\""),
            &[("sink", "two are named"), ("sink", "one of them is this node's")],
        );
        check(
            &format!("{GOOD}\n[[sink]]\nname = \"crio\"\ntype = \"oom-file\"\nqueue = 1"),
            &[("sink[1].queue", "is not a key of type \"oom-file\""), ("sink", "one of them is this node's")],
        );
        let crio = GOOD.replace("type = \"containerd\"", "type = \"oom-file\"");
        check(
            &format!("{crio}\n[[route]]\ntopics = [\"x\"]\nsinks = [\"containerd\"]"),
            &[("route[0].sinks", "is of type \"oom-file\": no route leads there")],
        );
    }

    #[test]
    fn a_guest_that_is_added_is_checked_as_one_of_the_file() {
        let json = r#"{"name": "vm", "type": "agent", "mode": "sole", "address": "vsock://3:1030", "containers": ["c1"], "monitor_pid": 7}"#;
        let guest = Config::guest(json).unwrap();
        let machine = guest.machine.unwrap();
        assert_eq!((guest.guest.as_deref(), machine.monitor_pid), (Some("vm"), Some(7)));
        assert_eq!(machine.lost_after, Duration::from_secs(10));
        assert_eq!(machine.containers.unwrap().len(), 1);
        for (bad, key) in
            [("{", ""), ("[]", ""), ("{}", "guest.name"), (&json.replace("mode", "mood"), "guest.mood")]
        {
            assert_eq!(Config::guest(bad).unwrap_err()[0].key, key, "{bad}");
        }
    }

    #[test]
    fn a_file_that_is_no_toml_says_where() {
        check("node = ", &[("", "line 1")]);
    }
}
