//! From the file as written to a configuration that holds: every mistake is collected, none hides another.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use coroner_proto::address::Address;

use super::{
    Config, Containerd, Journal, Machine, MetricsAddress, Mistake, Mode, SinkKind, Source, SourceKind, raw,
};
use crate::signal::ContainerId;

/// The checked configuration, or all that is wrong with it.
pub(super) fn check(raw: raw::Config) -> Result<Config, Vec<Mistake>> {
    let mut check = Check { mistakes: Vec::new(), guests_come: false };
    let config = check.config(raw);
    if check.mistakes.is_empty() { Ok(config) } else { Err(check.mistakes) }
}

/// One guest that is added, or all that is wrong with it.
pub(super) fn guest(raw: raw::Source) -> Result<Source, Vec<Mistake>> {
    let mut check = Check { mistakes: Vec::new(), guests_come: false };
    match check.guest("guest", raw) {
        Some(guest) if check.mistakes.is_empty() => Ok(guest),
        _ => Err(check.mistakes),
    }
}

/// A guest's link may be down so long before its machine counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Where guests that are added are kept unless the configuration says otherwise.
const GUESTS: &str = "/run/coroner/guests.d";
/// The journal unless the configuration says otherwise: no container outlives a boot, so it need not either.
const JOURNAL: &str = "/run/coroner/journal";
const JOURNAL_SIZE: u64 = 64 << 20;
const LEAST_JOURNAL: u64 = 16 << 20;
/// The control socket unless the configuration says otherwise.
const CONTROL: &str = "/run/coroner/control.sock";

pub(super) struct Check {
    mistakes: Vec<Mistake>,
    /// The file says where guests are kept that are added: it may do without others.
    guests_come: bool,
}

impl Check {
    fn config(&mut self, raw: raw::Config) -> Config {
        self.unknown("", &raw.unknown);
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
        let policies = self.policies(raw.policies);
        self.unknown("control.", &raw.control.unknown);
        let control = self.absolute("control.socket", raw.control.socket);
        let control = Some(control.unwrap_or_else(|| PathBuf::from(CONTROL)));
        self.unknown("metrics.", &raw.metrics.unknown);
        let metrics = self.text("metrics.address", raw.metrics.address);
        let metrics = metrics.and_then(|text| match text.parse::<MetricsAddress>() {
            Ok(address) => Some(address),
            Err(error) => {
                self.mistake("metrics.address", &error);
                None
            }
        });
        let containerd = raw.containerd.and_then(|raw| self.containerd(raw));
        let sources =
            raw.source.into_iter().enumerate().filter_map(|(at, raw)| self.trusted(at, raw)).collect();
        let guests = raw.guest.into_iter().enumerate();
        let guests = guests.filter_map(|(at, raw)| self.guest(&format!("guest[{at}]"), raw)).collect();
        self.guests_come = raw.guests.is_some();
        let raw_guests = raw.guests.unwrap_or_default();
        self.unknown("guests.", &raw_guests.unknown);
        let guests_directory = self.absolute("guests.directory", raw_guests.directory);
        let guests_directory = guests_directory.unwrap_or_else(|| PathBuf::from(GUESTS));
        let journal = Some(self.journal(raw.journal));
        let written = raw.sink.len();
        let sinks: Vec<_> =
            raw.sink.into_iter().enumerate().filter_map(|(at, raw)| self.sink(at, raw)).collect();
        let routes = self.routes(raw.route, &sinks, sinks.len() == written);
        let config = Config {
            node,
            policies,
            control,
            metrics,
            containerd,
            sources,
            guests,
            guests_directory,
            journal,
            sinks,
            routes,
        };
        self.whole(&config);
        config
    }

    fn journal(&mut self, raw: raw::Journal) -> Journal {
        self.unknown("journal.", &raw.unknown);
        let directory = self.absolute("journal.directory", raw.directory);
        let size = self.size("journal.size", raw.size).unwrap_or(JOURNAL_SIZE);
        if size < LEAST_JOURNAL {
            self.mistake("journal.size", "is below 16MiB: two files of it must fit");
        }
        Journal { directory: directory.unwrap_or_else(|| PathBuf::from(JOURNAL)), size }
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

    fn trusted(&mut self, at: usize, mut raw: raw::Source) -> Option<Source> {
        let prefix = format!("source[{at}]");
        for (name, value) in [
            ("containers", raw.containers.take()),
            ("monitor_pid", raw.monitor_pid.take()),
            ("lost_after", raw.lost_after.take()),
        ] {
            if value.is_some() {
                self.mistake(&format!("{prefix}.{name}"), "is a key of [[guest]]: a source is trusted");
            }
        }
        let guest = raw.guest.take();
        let mut source = self.source(&prefix, raw);
        let guest = self.text(&format!("{prefix}.guest"), guest);
        if let Some(source) = &mut source {
            source.guest = guest;
        }
        source
    }

    fn guest(&mut self, prefix: &str, mut raw: raw::Source) -> Option<Source> {
        let key = |name: &str| format!("{prefix}.{name}");
        if raw.guest.take().is_some() {
            self.mistake(&key("guest"), "is a key of [[source]]: a guest's name is its own");
        }
        let (containers, pid) = (raw.containers.take(), raw.monitor_pid.take());
        let lost_after = raw.lost_after.take();
        let source = self.source(prefix, raw);
        let containers = containers.map(|value| self.containers(&key("containers"), value));
        let pid = self.positive(&key("monitor_pid"), pid);
        let monitor_pid = pid.and_then(|pid| match i32::try_from(pid) {
            Ok(pid) => Some(pid.cast_unsigned()),
            Err(_) => {
                self.mistake(&key("monitor_pid"), "is no process id");
                None
            }
        });
        let lost_after = self.time(&key("lost_after"), lost_after).unwrap_or(LOST_AFTER);
        let mut source = source?;
        source.guest = Some(source.name.clone());
        source.machine = Some(Machine { containers, monitor_pid, lost_after });
        Some(source)
    }

    fn containers(&mut self, key: &str, value: toml::Value) -> BTreeSet<ContainerId> {
        let toml::Value::Array(values) = value else {
            self.mistake(key, "is not a list of container ids");
            return BTreeSet::new();
        };
        let ids = values.into_iter().filter_map(|value| self.text(key, Some(value))).collect::<Vec<_>>();
        ids.into_iter()
            .filter_map(|id| {
                ContainerId::try_from(id).map_err(|error| self.mistake(key, &error.to_string())).ok()
            })
            .collect()
    }

    fn source(&mut self, prefix: &str, raw: raw::Source) -> Option<Source> {
        let key = |name: &str| format!("{prefix}.{name}");
        self.unknown(&key(""), &raw.unknown);
        let name = self.name(&key("name"), raw.name);
        let mut kinds = vec![("agent", SourceKind::Agent), ("kata", SourceKind::Kata)];
        // A shim runs on the node: no guest has one.
        if prefix.starts_with("source") {
            kinds.push(("shim", SourceKind::Shim));
        }
        let kind = self.choice(&key("type"), raw.r#type, &kinds);
        let modes: &[_] = match kind {
            Some(SourceKind::Shim) => &[("wrapped", Mode::Wrapped), ("proxy", Mode::Proxy)],
            Some(SourceKind::Agent | SourceKind::Kata) | None => {
                &[("beside", Mode::Beside), ("sole", Mode::Sole)]
            }
        };
        let mode = self.choice(&key("mode"), raw.mode, modes);
        let address = match self.text(&key("address"), raw.address) {
            None => {
                self.required(&key("address"), "unix:///path, vsock://CID:PORT or hvsock:///path:PORT");
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
        let (kind, mode) = (kind?, mode?);
        if let (SourceKind::Shim, Some(Address::Vsock { .. } | Address::Hvsock { .. })) = (kind, &address) {
            self.mistake(&key("address"), "shims connect to a unix:///path");
        }
        Some(Source { name: name?, kind, mode, guest: None, address: address?, machine: None })
    }

    /// What can only be seen across sections.
    fn whole(&mut self, config: &Config) {
        // A section whose entries were refused has its mistakes already.
        if self.mistakes.is_empty() {
            if config.sources.is_empty() && config.guests.is_empty() && !self.guests_come {
                self.required("source", "at least one [[source]] or [[guest]]: where signals come from");
            }
            if config.sinks.is_empty() {
                self.required("sink", "at least one [[sink]]: where rulings go");
            }
        }
        self.unique("source", config.sources.iter().chain(&config.guests).map(|it| &it.name));
        self.unique("sink", config.sinks.iter().map(|it| &it.name));
        if config.sinks.iter().filter(|it| it.kind.is_lifecycle()).count() > 1 {
            self.mistake(
                "sink",
                "more than one of type \"containerd\" or \"oom-file\": one of them is this node's",
            );
        }
        let publishes = config.sinks.iter().any(|it| matches!(it.kind, SinkKind::Containerd));
        if publishes && config.containerd.is_none() {
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

    pub(super) fn unknown(&mut self, prefix: &str, unknown: &raw::Unknown) {
        for key in unknown.keys() {
            self.mistake(&format!("{prefix}{key}"), "is not a key; docs/configuration.md lists them");
        }
    }

    pub(super) fn name(&mut self, key: &str, value: Option<toml::Value>) -> Option<String> {
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

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &str,
        value: Option<toml::Value>,
        choices: &[(&str, T)],
    ) -> Option<T> {
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

    pub(super) fn text(&mut self, key: &str, value: Option<toml::Value>) -> Option<String> {
        match value? {
            toml::Value::String(text) => Some(text),
            other => {
                self.mistake(key, &format!("is a {}, not a string", other.type_str()));
                None
            }
        }
    }

    pub(super) fn absolute(&mut self, key: &str, value: Option<toml::Value>) -> Option<PathBuf> {
        let path = self.text(key, value)?;
        if path.starts_with('/') {
            return Some(PathBuf::from(path));
        }
        self.mistake(key, &format!("`{path}` is not an absolute path"));
        None
    }

    pub(super) fn positive(&mut self, key: &str, value: Option<toml::Value>) -> Option<u64> {
        let number =
            value?.as_integer().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
        if number.is_none() {
            self.mistake(key, "is not a whole number above 0");
        }
        number
    }

    pub(super) fn size(&mut self, key: &str, value: Option<toml::Value>) -> Option<u64> {
        let text = self.text(key, value)?;
        self.quantity(key, super::size(&text))
    }

    pub(super) fn time(&mut self, key: &str, value: Option<toml::Value>) -> Option<Duration> {
        let text = self.text(key, value)?;
        self.quantity(key, super::time(&text))
    }

    fn quantity<T>(&mut self, key: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|error| self.mistake(key, &error)).ok()
    }

    pub(super) fn required(&mut self, key: &str, what: &str) {
        if !self.mistakes.iter().any(|it| it.key == key) {
            self.mistake(key, &format!("is missing: {what}"));
        }
    }

    /// Mistakes so far.
    pub(super) fn count(&self) -> usize {
        self.mistakes.len()
    }

    pub(super) fn mistake(&mut self, key: &str, message: &str) {
        self.mistakes.push(Mistake { key: key.to_owned(), message: message.to_owned() });
    }
}

fn host_name() -> Option<String> {
    Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
}
