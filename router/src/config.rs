//! The configuration file, `coroner.toml`: its content, and how it is read.
//!
//! The types of the sections are those that the parts of the router take. [`file`] reads the
//! sections with [`coroner_core::table`], which collects every mistake with its key; `*_keys`
//! read the lists of sources, sinks and routes.

mod defaults;
mod embedded;
mod environment;
mod error;
mod file;
mod metrics_address;
mod policies;
mod route_keys;
mod sink_keys;
mod source_keys;
#[cfg(test)]
mod tests;

pub use coroner_core::quantity::{size, time};
pub use coroner_core::table::Mistake;
pub use coroner_sinks::route::{AUDIT, Pattern, Route};
pub use coroner_sinks::settings::{Jsonl, Overflow, Queue, SinkKind, SinkSettings, Webhook};
pub use coroner_sinks::url::Url;
pub use coroner_sources::settings::{Machine, Source, SourceKind};
pub use error::ConfigError;
pub use metrics_address::MetricsAddress;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use coroner_core::table::{Mistakes, Table};
use coroner_journal::JournalSettings;

use self::defaults::Defaults;

pub use coroner_core::mode::{Mode, PolicyMode};
use coroner_policy::Settings;

/// A router's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name in signals and event ids.
    pub node: String,
    /// Directory and limits of the policies.
    pub policies: Settings,
    /// The control socket; `None`: not served.
    pub control: Option<PathBuf>,
    /// Where metrics and probes are served; `None`: on the control socket only.
    pub metrics: Option<MetricsAddress>,
    /// `None`: no containerd on this node.
    pub containerd: Option<Containerd>,
    /// Trusted sources.
    pub sources: Vec<Source>,
    /// Sources that are not trusted.
    pub guests: Vec<Source>,
    /// Directory of the guests that are added while the router runs.
    pub guests_directory: PathBuf,
    /// The write-ahead log; `None`: sources keep their signals until they are delivered.
    pub journal: Option<JournalSettings>,
    /// Sinks, at least one.
    pub sinks: Vec<SinkSettings>,
    /// Routes to sinks. Each sink but the lifecycle sink is named in at least one.
    pub routes: Vec<Route>,
}

/// The sockets of containerd.
#[derive(Clone, Debug)]
pub struct Containerd {
    /// gRPC, for names of pods. The file always sets it; without it names stay unknown.
    pub address: Option<PathBuf>,
    /// ttrpc, for events.
    pub ttrpc_address: PathBuf,
    /// For containers without a known namespace of their own.
    pub namespace: String,
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
        Self::with_defaults(text, &Defaults::node())
    }

    fn with_defaults(text: &str, defaults: &Defaults) -> Result<Self, Vec<Mistake>> {
        let values = text.parse().map_err(|error: toml::de::Error| {
            vec![Mistake { key: String::new(), message: error.to_string().trim_end().to_owned() }]
        })?;
        let mistakes = Mistakes::default();
        let config = file::read(values, defaults, &mistakes);
        mistakes.none(Some(config))
    }

    /// Checks the keys of one guest, as a JSON object; on error, every mistake in it.
    pub fn guest(json: &str) -> Result<Source, Vec<Mistake>> {
        // `null` is a key that is left out.
        let values: BTreeMap<String, Option<toml::Value>> = serde_json::from_str(json).map_err(|error| {
            let message = format!("is not a JSON object of a guest's keys: {error}");
            vec![Mistake { key: String::new(), message }]
        })?;
        let values = values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let mistakes = Mistakes::default();
        let guest = source_keys::guest(Table::new("guest", values, &mistakes));
        mistakes.none(guest)
    }
}
