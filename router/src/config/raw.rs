//! The file as it is written. Every value that can be wrong by itself is taken as it comes and checked afterwards, so that
//! one bad value does not hide the next.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Keys nobody knows: reported by name, all of them, instead of stopping at the first.
pub(super) type Unknown = BTreeMap<String, toml::Value>;

#[derive(Deserialize)]
pub(super) struct Config {
    pub(super) node: Option<toml::Value>,
    #[serde(default)]
    pub(super) policies: Policies,
    #[serde(default)]
    pub(super) control: Control,
    #[serde(default)]
    pub(super) metrics: Metrics,
    pub(super) containerd: Option<Containerd>,
    #[serde(default)]
    pub(super) source: Vec<Source>,
    #[serde(default)]
    pub(super) guest: Vec<Source>,
    pub(super) guests: Option<Guests>,
    #[serde(default)]
    pub(super) journal: Journal,
    #[serde(default)]
    pub(super) sink: Vec<Sink>,
    #[serde(default)]
    pub(super) route: Vec<Route>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Policies {
    pub(super) directory: Option<toml::Value>,
    pub(super) poll: Option<toml::Value>,
    pub(super) cache: Option<toml::Value>,
    pub(super) fuel: Option<toml::Value>,
    pub(super) memory: Option<toml::Value>,
    pub(super) call: Option<toml::Value>,
    pub(super) signal: Option<toml::Value>,
    pub(super) configure: Option<toml::Value>,
    pub(super) table_elements: Option<toml::Value>,
    pub(super) instances: Option<toml::Value>,
    pub(super) stack: Option<toml::Value>,
    pub(super) file: Option<toml::Value>,
    pub(super) log_rate: Option<toml::Value>,
    #[serde(default)]
    pub(super) compile: Compile,
    #[serde(default)]
    pub(super) quarantine: Quarantine,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Compile {
    pub(super) memory: Option<toml::Value>,
    pub(super) time: Option<toml::Value>,
    pub(super) program: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Quarantine {
    pub(super) faults: Option<toml::Value>,
    pub(super) window: Option<toml::Value>,
    pub(super) burnt: Option<toml::Value>,
    pub(super) shortest: Option<toml::Value>,
    pub(super) longest: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Control {
    pub(super) socket: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Metrics {
    pub(super) address: Option<toml::Value>,
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

#[derive(Default, Deserialize)]
pub(super) struct Guests {
    pub(super) directory: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

#[derive(Default, Deserialize)]
pub(super) struct Journal {
    pub(super) directory: Option<toml::Value>,
    pub(super) size: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// A source, or a guest: what is a key of the other alone is refused by name.
#[derive(Deserialize)]
pub(super) struct Source {
    pub(super) name: Option<toml::Value>,
    pub(super) r#type: Option<toml::Value>,
    pub(super) mode: Option<toml::Value>,
    pub(super) guest: Option<toml::Value>,
    pub(super) containers: Option<toml::Value>,
    pub(super) monitor_pid: Option<toml::Value>,
    pub(super) lost_after: Option<toml::Value>,
    pub(super) address: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}

/// A sink; which other keys it may have depends on its type.
#[derive(Deserialize)]
pub(super) struct Sink {
    pub(super) name: Option<toml::Value>,
    pub(super) r#type: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) keys: Unknown,
}

impl Sink {
    pub(super) fn take(&mut self, key: &str) -> Option<toml::Value> {
        self.keys.remove(key)
    }
}

#[derive(Deserialize)]
pub(super) struct Route {
    pub(super) topics: Option<toml::Value>,
    pub(super) kinds: Option<toml::Value>,
    pub(super) namespaces: Option<toml::Value>,
    pub(super) sinks: Option<toml::Value>,
    #[serde(flatten)]
    pub(super) unknown: Unknown,
}
