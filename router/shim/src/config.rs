//! The wrapper's configuration: docs/shims.md.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// Where it is, unless the environment names another.
const PATH: &str = "/etc/coroner/shim.toml";
/// Names another.
const VARIABLE: &str = "CORONER_SHIM_CONFIG";
/// containerd's own patience with a task's calls is ten seconds and more; a reply that is held must be far below.
const LONGEST_HOLD: Duration = Duration::from_secs(5);

/// What stands between containerd and the shim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Nothing but the way of events.
    #[default]
    Wrapped,
    /// A proxy in front of the Task socket.
    Proxy,
}

impl Mode {
    /// As the router names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Proxy => "proxy",
        }
    }
}

/// Why a file counts as none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    Wrong { path: PathBuf, message: String },
}

/// Keys of the file, and of each `[runtime.NAME]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    inner: Option<PathBuf>,
    mode: Option<Mode>,
    socket: Option<PathBuf>,
    probe: Option<String>,
    hold: Option<String>,
    log: Option<PathBuf>,
    #[serde(default)]
    runtime: BTreeMap<String, Keys>,
}

/// What holds for the shim that is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) inner: Option<PathBuf>,
    pub(crate) mode: Mode,
    pub(crate) socket: PathBuf,
    pub(crate) probe: Duration,
    pub(crate) hold: Duration,
    pub(crate) log: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            inner: None,
            mode: Mode::default(),
            socket: PathBuf::from("/run/coroner/shim.sock"),
            probe: Duration::from_millis(200),
            hold: Duration::from_secs(1),
            log: None,
        }
    }
}

impl Config {
    /// Reads the node's file; `name`: what the wrapper was called as. No file: the defaults.
    pub(crate) fn find(name: Option<&str>) -> Result<Self, ConfigError> {
        let path = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PATH), PathBuf::from);
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text, name).map_err(|message| ConfigError::Wrong { path, message }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path, source }),
        }
    }

    fn parse(text: &str, name: Option<&str>) -> Result<Self, String> {
        let mut keys: Keys = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut runtimes = std::mem::take(&mut keys.runtime);
        if let Some((inside, _)) = runtimes.iter().find(|(_, keys)| !keys.runtime.is_empty()) {
            return Err(format!("runtime.{inside}.runtime: is not a key"));
        }
        let own = name.and_then(|name| runtimes.remove(name)).unwrap_or_default();
        // What is wrong with one runtime is wrong with the file, whoever is started.
        for (name, keys) in &runtimes {
            keys.clone().checked().map_err(|error| format!("runtime.{name}.{error}"))?;
        }
        Keys {
            inner: own.inner.or(keys.inner),
            mode: own.mode.or(keys.mode),
            socket: own.socket.or(keys.socket),
            probe: own.probe.or(keys.probe),
            hold: own.hold.or(keys.hold),
            log: own.log.or(keys.log),
            runtime: BTreeMap::new(),
        }
        .checked()
    }
}

impl Keys {
    fn checked(self) -> Result<Config, String> {
        let standard = Config::default();
        let absolute = |key: &str, path: Option<PathBuf>| match path {
            Some(path) if !path.is_absolute() => {
                Err(format!("{key}: `{}` is no absolute path", path.display()))
            }
            path => Ok(path),
        };
        let time = |key: &str, text: Option<String>, standard: Duration| match text {
            None => Ok(standard),
            Some(text) => humantime::parse_duration(&text)
                .map_err(|error| format!("{key}: `{text}` is no time such as \"200ms\": {error}")),
        };
        let hold = time("hold", self.hold, standard.hold)?;
        if hold > LONGEST_HOLD {
            return Err("hold: is over \"5s\"".to_owned());
        }
        Ok(Config {
            inner: absolute("inner", self.inner)?,
            mode: self.mode.unwrap_or(standard.mode),
            socket: absolute("socket", self.socket)?.unwrap_or(standard.socket),
            probe: time("probe", self.probe, standard.probe)?,
            hold,
            log: absolute("log", self.log)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BOTH: &str = "hold = \"2s\"\nlog = \"/l\"\n[runtime.kata]\nmode = \"proxy\"\nsocket = \"/p\"\n";

    #[test]
    fn a_runtimes_own_keys_go_before_the_files() {
        let stock = Config::parse(BOTH, None).unwrap();
        assert_eq!((stock.mode, stock.hold), (Mode::Wrapped, Duration::from_secs(2)));
        let kata = Config::parse(BOTH, Some("kata")).unwrap();
        assert_eq!((kata.mode, kata.socket.as_path(), kata.hold), (Mode::Proxy, Path::new("/p"), stock.hold));
        assert_eq!(Config::parse("", Some("kata")), Ok(Config::default()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expect) in [
            ("mod = 1", "unknown field `mod`"),
            ("mode = \"proxied\"", "unknown variant `proxied`"),
            ("socket = \"shim.sock\"", "socket: `shim.sock` is no absolute path"),
            ("hold = \"6s\"", "hold: is over"),
            ("probe = \"soon\"", "probe: `soon` is no time"),
            ("[runtime.kata]\nhold = \"1m\"", "runtime.kata.hold: is over"),
            ("[runtime.kata.runtime.x]", "runtime.kata.runtime: is not a key"),
        ] {
            let error = Config::parse(text, None).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }
}
