//! The configuration file: raw serde with no unknown keys, then one check that reports every mistake with its key.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use coroner_proto::address::Address;
use serde::{Deserialize, Serialize};

use crate::case::Known;

/// A router's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in signals and event ids.
    pub node: String,
    /// `None`: the built-in default policy alone.
    pub policy_directory: Option<PathBuf>,
    /// wasm fuel of one call.
    pub policy_fuel: u64,
    /// Bytes of linear memory of one policy.
    pub policy_memory: u64,
    /// `None`: no containerd on this node.
    pub containerd: Option<Containerd>,
    /// At least one.
    pub sources: Vec<Source>,
    /// At least one.
    pub sinks: Vec<Sink>,
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

/// Who else speaks for a source's containers. What is published follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// A shim that knows nothing of the router publishes TaskOOM and TaskExit too.
    Beside,
    /// Nobody else publishes.
    Sole,
}

impl Mode {
    /// What a ruling can change in this mode.
    pub fn writable(self) -> &'static [Known] {
        match self {
            Self::Beside => &[],
            Self::Sole => &[Known::OomWritable, Known::ExitWritable, Known::StatusWritable],
        }
    }
}

/// Where signals come from.
#[derive(Clone, Debug)]
pub struct Source {
    /// Unique.
    pub name: String,
    /// What may be published for its containers.
    pub mode: Mode,
    /// The guest's name, when it runs in one.
    pub guest: Option<String>,
    /// Where its agent answers.
    pub address: Address,
}

/// Where actions and records go.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Unique.
    pub name: String,
    /// What it is.
    pub kind: SinkKind,
}

/// The kinds of sink.
#[derive(Clone, Debug)]
pub enum SinkKind {
    /// containerd's event exchange.
    Containerd,
    /// Audit records, one a line; `None` is standard output.
    Jsonl(Option<PathBuf>),
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

    /// Checks a text; on error, every mistake in it.
    pub fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let raw: raw::Config = toml::from_str(text).map_err(|error| {
            vec![Mistake { key: String::new(), message: error.to_string().trim_end().to_owned() }]
        })?;
        let mut check = Check { mistakes: Vec::new() };
        let config = check.config(raw);
        if check.mistakes.is_empty() { Ok(config) } else { Err(check.mistakes) }
    }
}

/// The file as it is written. Every value that can be wrong by itself is taken as text or number and
/// checked afterwards, so that one bad value does not hide the next.
mod raw {
    use std::collections::BTreeMap;

    use super::{Deserialize, PathBuf};

    /// Keys nobody knows: reported by name, all of them, instead of stopping at the first.
    pub(super) type Unknown = BTreeMap<String, toml::Value>;

    #[derive(Deserialize)]
    pub(super) struct Config {
        pub(super) node: Option<toml::Value>,
        #[serde(default)]
        pub(super) policies: Policies,
        pub(super) containerd: Option<Containerd>,
        #[serde(default)]
        pub(super) source: Vec<Source>,
        #[serde(default)]
        pub(super) sink: Vec<Sink>,
        #[serde(flatten)]
        pub(super) unknown: Unknown,
    }

    #[derive(Default, Deserialize)]
    pub(super) struct Policies {
        pub(super) directory: Option<toml::Value>,
        pub(super) fuel: Option<toml::Value>,
        pub(super) memory: Option<toml::Value>,
        #[serde(flatten)]
        pub(super) unknown: Unknown,
    }

    #[derive(Deserialize)]
    pub(super) struct Containerd {
        pub(super) address: Option<toml::Value>,
        pub(super) ttrpc_address: Option<toml::Value>,
        pub(super) namespace: Option<toml::Value>,
        #[serde(flatten)]
        pub(super) unknown: Unknown,
    }

    #[derive(Deserialize)]
    pub(super) struct Source {
        pub(super) name: Option<toml::Value>,
        pub(super) r#type: Option<toml::Value>,
        pub(super) mode: Option<toml::Value>,
        pub(super) guest: Option<toml::Value>,
        pub(super) address: Option<toml::Value>,
        #[serde(flatten)]
        pub(super) unknown: Unknown,
    }

    #[derive(Deserialize)]
    pub(super) struct Sink {
        pub(super) name: Option<toml::Value>,
        pub(super) r#type: Option<toml::Value>,
        pub(super) path: Option<toml::Value>,
        #[serde(flatten)]
        pub(super) unknown: Unknown,
    }

    pub(super) fn path(text: String) -> PathBuf {
        PathBuf::from(text)
    }
}

struct Check {
    mistakes: Vec<Mistake>,
}

impl Check {
    fn config(&mut self, raw: raw::Config) -> Config {
        self.unknown("", &raw.unknown);
        self.unknown("policies.", &raw.policies.unknown);
        let node = self.text("node", raw.node).or_else(host_name).unwrap_or_default();
        if node.is_empty()
            || node.len() > 253
            || !node.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            self.mistake(
                "node",
                "is not 1 to 253 characters of a-z A-Z 0-9 . _ -; set it to the node's name",
            );
        }
        let policy_directory = self.absolute("policies.directory", raw.policies.directory);
        let defaults = crate::policy::Limits::default();
        let policy_fuel = self.positive("policies.fuel", raw.policies.fuel).unwrap_or(defaults.fuel);
        let policy_memory = self.size("policies.memory", raw.policies.memory).unwrap_or(defaults.memory);
        let containerd = raw.containerd.and_then(|raw| self.containerd(raw));
        let sources =
            raw.source.into_iter().enumerate().filter_map(|(at, raw)| self.source(at, raw)).collect();
        let sinks = raw.sink.into_iter().enumerate().filter_map(|(at, raw)| self.sink(at, raw)).collect();
        let config =
            Config { node, policy_directory, policy_fuel, policy_memory, containerd, sources, sinks };
        self.whole(&config);
        config
    }

    fn containerd(&mut self, raw: raw::Containerd) -> Option<Containerd> {
        self.unknown("containerd.", &raw.unknown);
        let address = self.absolute("containerd.address", raw.address);
        let ttrpc = self.absolute("containerd.ttrpc_address", raw.ttrpc_address);
        let namespace =
            self.text("containerd.namespace", raw.namespace).unwrap_or_else(|| "k8s.io".to_owned());
        // containerd's own rule for namespaces: a refused namespace would block the lane for good.
        if namespace.is_empty()
            || namespace.len() > 76
            || !namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        {
            self.mistake(
                "containerd.namespace",
                "is no containerd namespace: 1 to 76 characters of a-z A-Z 0-9 . _ -",
            );
        }
        let Some(address) = address else {
            self.required(
                "containerd.address",
                "containerd's socket, \"/run/containerd/containerd.sock\" say",
            );
            return None;
        };
        let ttrpc_address = ttrpc.unwrap_or_else(|| {
            let mut name = address.clone().into_os_string();
            name.push(".ttrpc");
            PathBuf::from(name)
        });
        Some(Containerd { address: Some(address), ttrpc_address, namespace })
    }

    fn source(&mut self, at: usize, raw: raw::Source) -> Option<Source> {
        let key = |name: &str| format!("source[{at}].{name}");
        self.unknown(&key(""), &raw.unknown);
        let name = self.name(&key("name"), raw.name);
        let kind = self.choice(&key("type"), raw.r#type, &[("agent", ())]);
        let mode = self.choice(&key("mode"), raw.mode, &[("beside", Mode::Beside), ("sole", Mode::Sole)]);
        let guest = self.text(&key("guest"), raw.guest);
        let address = match self.text(&key("address"), raw.address) {
            None => {
                self.required(&key("address"), "unix:///path or vsock://CID:PORT");
                None
            }
            Some(text) => match text.parse::<Address>() {
                Ok(address) => Some(address),
                Err(error) => {
                    self.mistake(&key("address"), &error.to_string());
                    None
                }
            },
        };
        kind?;
        Some(Source { name: name?, mode: mode?, guest, address: address? })
    }

    fn sink(&mut self, at: usize, raw: raw::Sink) -> Option<Sink> {
        let key = |name: &str| format!("sink[{at}].{name}");
        self.unknown(&key(""), &raw.unknown);
        let name = self.name(&key("name"), raw.name);
        let jsonl = self.choice(&key("type"), raw.r#type, &[("containerd", false), ("jsonl", true)])?;
        let kind = match (jsonl, self.text(&key("path"), raw.path)) {
            (false, None) => SinkKind::Containerd,
            (false, Some(_)) => {
                self.mistake(&key("path"), "is not a key of type \"containerd\"");
                return None;
            }
            (true, Some(path)) if path == "-" => SinkKind::Jsonl(None),
            (true, Some(path)) if path.starts_with('/') => SinkKind::Jsonl(Some(raw::path(path))),
            (true, Some(path)) => {
                self.mistake(&key("path"), &format!("`{path}` is neither an absolute path nor \"-\""));
                return None;
            }
            (true, None) => {
                self.required(&key("path"), "a file, or \"-\" for standard output");
                return None;
            }
        };
        Some(Sink { name: name?, kind })
    }

    /// What can only be seen across sections.
    fn whole(&mut self, config: &Config) {
        // A section whose entries were refused has its mistakes already.
        if self.mistakes.is_empty() {
            if config.sources.is_empty() {
                self.required("source", "at least one [[source]]: where signals come from");
            }
            if config.sinks.is_empty() {
                self.required("sink", "at least one [[sink]]: where rulings go");
            }
        }
        self.unique("source", config.sources.iter().map(|it| &it.name));
        self.unique("sink", config.sinks.iter().map(|it| &it.name));
        let publishers = config.sinks.iter().filter(|it| matches!(it.kind, SinkKind::Containerd)).count();
        if publishers > 1 {
            self.mistake("sink", "more than one of type \"containerd\": each event would be published twice");
        }
        if publishers == 1 && config.containerd.is_none() {
            self.required(
                "containerd.address",
                "a sink of type \"containerd\" needs to know where containerd is",
            );
        }
    }

    fn unique<'a>(&mut self, key: &str, names: impl Iterator<Item = &'a String>) {
        let mut seen = HashSet::new();
        for name in names {
            if !seen.insert(name) {
                self.mistake(key, &format!("two are named `{name}`"));
            }
        }
    }

    fn unknown(&mut self, prefix: &str, unknown: &raw::Unknown) {
        for key in unknown.keys() {
            self.mistake(&format!("{prefix}{key}"), "is not a key; docs/configuration.md lists them");
        }
    }

    fn name(&mut self, key: &str, value: Option<toml::Value>) -> Option<String> {
        let Some(name) = self.text(key, value) else {
            self.required(key, "a name for logs and audit records");
            return None;
        };
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
            return Some(name);
        }
        self.mistake(key, &format!("`{name}` is not 1 to 64 characters of a-z 0-9 -"));
        None
    }

    fn choice<T: Copy>(&mut self, key: &str, value: Option<toml::Value>, choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let Some(text) = self.text(key, value) else {
            self.required(key, &format!("one of {}", names.join(", ")));
            return None;
        };
        let found = choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice);
        if found.is_none() {
            self.mistake(key, &format!("`{text}` is not one of {}", names.join(", ")));
        }
        found
    }

    fn text(&mut self, key: &str, value: Option<toml::Value>) -> Option<String> {
        match value? {
            toml::Value::String(text) => Some(text),
            other => {
                self.mistake(key, &format!("is a {}, not a string", other.type_str()));
                None
            }
        }
    }

    fn absolute(&mut self, key: &str, value: Option<toml::Value>) -> Option<PathBuf> {
        let path = self.text(key, value)?;
        if path.starts_with('/') {
            return Some(PathBuf::from(path));
        }
        self.mistake(key, &format!("`{path}` is not an absolute path"));
        None
    }

    fn positive(&mut self, key: &str, value: Option<toml::Value>) -> Option<u64> {
        let number =
            value?.as_integer().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        if number.is_none() {
            self.mistake(key, "is not a whole number above 0");
        }
        number
    }

    fn size(&mut self, key: &str, value: Option<toml::Value>) -> Option<u64> {
        let text = self.text(key, value)?;
        let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let factor = match unit {
            "KiB" => 1_u64 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => 0,
        };
        let bytes = digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|it| *it >= 65536);
        if bytes.is_none() {
            self.mistake(key, &format!("`{text}` is not a size of at least 64KiB, such as \"16MiB\""));
        }
        bytes
    }

    fn required(&mut self, key: &str, what: &str) {
        if !self.mistakes.iter().any(|it| it.key == key) {
            self.mistake(key, &format!("is missing: {what}"));
        }
    }

    fn mistake(&mut self, key: &str, message: &str) {
        self.mistakes.push(Mistake { key: key.to_owned(), message: message.to_owned() });
    }
}

fn host_name() -> Option<String> {
    Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
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

    fn check(text: &str, expect: &[(&str, &str)]) {
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
        assert_eq!((config.policy_fuel, config.policy_memory), (10_000_000, 16 << 20));
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
            [containerd]
            address = 7
            [[source]]
            name = "Node"
            type = "kata"
            mode = "besides"
            address = "tcp://1.2.3.4:5"
            adress = "x"
            [[sink]]
            name = "audit"
            type = "jsonl"
            "#,
            &[
                ("nod", "is not a key"),
                ("policies.wasm", "is not a key"),
                ("node", "1 to 253"),
                ("policies.directory", "absolute"),
                ("policies.fuel", "above 0"),
                ("policies.memory", "\"16MiB\""),
                ("containerd.address", "not a string"),
                ("source[0].adress", "is not a key"),
                ("source[0].name", "a-z"),
                ("source[0].type", "\"agent\""),
                ("source[0].mode", "\"beside\", \"sole\""),
                ("source[0].address", "tcp"),
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
            &[("sink", "two are named"), ("sink", "published twice")],
        );
    }

    #[test]
    fn a_file_that_is_no_toml_says_where() {
        check("node = ", &[("", "line 1")]);
    }
}
