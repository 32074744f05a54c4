//! The wrapper's configuration: docs/shims.md has every key.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

/// Where the file is.
const FILE: &str = "/etc/coroner/shim.toml";
/// The variable that names another one.
const VARIABLE: &str = "CORONER_SHIM_CONFIG";
/// The router's socket for events.
const SOCKET: &str = "/run/coroner/shim.sock";
/// A local socket answers within microseconds; a pod's start can spare this much to a router that is busy.
const PROBE: Duration = Duration::from_millis(200);
/// An answer takes milliseconds.
const HOLD: Duration = Duration::from_secs(1);
/// containerd waits 10 s for some of its calls, and two holds can follow each other.
const MOST: Duration = Duration::from_secs(5);
/// sun_path has 108 bytes, the last a zero: unix(7).
pub(crate) const SUN_PATH: usize = 107;

/// What stands between containerd and the inner shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Nothing but the way of events.
    Wrapped,
    /// A process in front of the Task socket.
    Proxy,
}

impl Mode {
    /// As the router says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Proxy => "proxy",
        }
    }
}

/// What holds for one name of the wrapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The inner shim, if it is not to be looked for.
    pub(crate) inner: Option<PathBuf>,
    /// What stands between.
    pub(crate) mode: Mode,
    /// The router's.
    pub(crate) socket: PathBuf,
    /// How long the router may take to answer.
    pub(crate) probe: Duration,
    /// How long a reply may be held.
    pub(crate) hold: Duration,
    /// A file for what is also told to the system's log.
    pub(crate) log: Option<PathBuf>,
}

/// A configuration, and what was wrong with the file it should have come from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// The file counts as none, but for its `inner` and `log` where they can be read: another runtime than the one that was meant is no
    /// way to fail.
    pub(crate) mistake: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    inner: Option<PathBuf>,
    mode: Option<Mode>,
    socket: Option<PathBuf>,
    probe: Option<String>,
    hold: Option<String>,
    log: Option<PathBuf>,
}

/// Loads what holds for the wrapper of this name, out of the file that the environment names.
pub(crate) fn load(name: Option<&str>) -> Loaded {
    let named: Option<OsString> = env::var_os(VARIABLE).filter(|path| !path.is_empty());
    let path = named.as_ref().map_or(Path::new(FILE), Path::new);
    let mistaken = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    match fs::read_to_string(path) {
        Ok(text) => {
            let mut loaded = read(&text, name);
            loaded.mistake = loaded.mistake.map(|why| mistaken(&why));
            loaded
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && named.is_none() => read("", name),
        Err(error) => Loaded { mistake: Some(mistaken(&error)), ..read("", name) },
    }
}

/// Reads a file's text.
fn read(text: &str, name: Option<&str>) -> Loaded {
    let (mistake, table) = match text.parse::<toml::Table>() {
        Ok(table) => match checked(table.clone(), name) {
            Ok(config) => return Loaded { config, mistake: None },
            Err(why) => (why, table),
        },
        Err(error) => (error.message().to_owned(), toml::Table::new()),
    };
    let mut config = settle(&Keys::default(), None).expect("the defaults are in order");
    let own = name.and_then(|name| table.get("runtime")?.get(name));
    let path =
        |value: Option<&toml::Value>| Some(PathBuf::from(value?.as_str()?)).filter(|it| it.is_absolute());
    config.inner =
        path(if name.is_some() { own.and_then(|own| own.get("inner")) } else { table.get("inner") });
    config.log = path(own.and_then(|own| own.get("log")).or_else(|| table.get("log")));
    Loaded { config, mistake: Some(mistake) }
}

fn checked(mut table: toml::Table, name: Option<&str>) -> Result<Config, String> {
    let runtimes = match table.remove("runtime") {
        Some(value) => {
            let named: BTreeMap<String, toml::Value> = value
                .try_into()
                .map_err(|error: toml::de::Error| format!("`runtime`: {}", error.message()))?;
            named
                .into_iter()
                .map(|(runtime, value)| match value.try_into::<Keys>() {
                    Ok(keys) => Ok((runtime, keys)),
                    Err(error) => Err(format!("`runtime.{runtime}`: {}", error.message())),
                })
                .collect::<Result<BTreeMap<_, _>, _>>()?
        }
        None => BTreeMap::new(),
    };
    let common: Keys = table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    // A mistake in another runtime's table is one as well: it is met before that runtime is.
    for (runtime, keys) in &runtimes {
        settle(&common, Some(keys)).map_err(|why| format!("`runtime.{runtime}`: {why}"))?;
    }
    settle(&common, None)?;
    Ok(match name {
        None => settle(&common, None)?,
        Some(name) => settle(&common, Some(runtimes.get(name).unwrap_or(&Keys::default())))?,
    })
}

/// A runtime's own keys before the common ones. `inner` is never common: one runtime's shim is not another's.
fn settle(common: &Keys, own: Option<&Keys>) -> Result<Config, String> {
    let none = Keys::default();
    let (inner, own) = match own {
        Some(own) => (&own.inner, own),
        None => (&common.inner, &none),
    };
    let span = |key, own: &Option<String>, common: &Option<String>, default| {
        let Some(text) = own.as_ref().or(common.as_ref()) else { return Ok(default) };
        match humantime::parse_duration(text) {
            Ok(span) if span <= MOST => Ok(span),
            Ok(_) => Err(format!("`{key}`: `{text}` is over 5s")),
            Err(error) => Err(format!("`{key}`: `{text}` is no duration such as \"200ms\": {error}")),
        }
    };
    let config = Config {
        inner: inner.clone(),
        mode: own.mode.or(common.mode).unwrap_or(Mode::Wrapped),
        socket: own.socket.as_ref().or(common.socket.as_ref()).cloned().unwrap_or_else(|| SOCKET.into()),
        probe: span("probe", &own.probe, &common.probe, PROBE)?,
        hold: span("hold", &own.hold, &common.hold, HOLD)?,
        log: own.log.as_ref().or(common.log.as_ref()).cloned(),
    };
    for (key, path) in
        [("inner", config.inner.as_ref()), ("socket", Some(&config.socket)), ("log", config.log.as_ref())]
    {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return Err(format!("`{key}`: `{}` is no absolute path", path.display()));
        }
    }
    if config.socket.as_os_str().len() > SUN_PATH {
        return Err(format!("`socket`: `{}` is longer than {SUN_PATH} bytes", config.socket.display()));
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_s_example_is_read() {
        let page = include_str!("../../../docs/shims.md");
        let text = page.split("```toml\n").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
        let plain = read(text, None);
        assert_eq!(plain.mistake, None);
        assert_eq!((plain.config.inner, plain.config.mode), (None, Mode::Wrapped));
        let kata = read(text, Some("kata")).config;
        assert_eq!(kata.inner, Some("/opt/kata/bin/containerd-shim-kata-v2".into()));
        assert_eq!(kata.mode, Mode::Proxy);
        assert_eq!(kata.socket, Path::new("/run/coroner/proxy.sock"));
        assert_eq!((kata.probe, kata.hold), (PROBE, HOLD));
    }

    #[test]
    fn a_runtime_takes_the_common_keys_but_never_the_common_inner() {
        let text =
            "inner = \"/a\"\nprobe = \"50ms\"\nhold = \"2s\"\nlog = \"/l\"\n[runtime.x]\nhold = \"3s\"";
        let Config { inner, probe, hold, log, .. } = read(text, Some("x")).config;
        assert_eq!((inner, log), (None, Some("/l".into())));
        assert_eq!((probe, hold), (Duration::from_millis(50), Duration::from_secs(3)));
        assert_eq!(read(text, Some("other")).config.hold, Duration::from_secs(2));
        assert_eq!(read(text, None).config.inner, Some("/a".into()));
    }

    #[test]
    fn a_mistake_is_named_and_makes_the_file_count_as_none() {
        for (text, says) in [
            ("hodl = \"1s\"", "unknown field `hodl`"),
            ("hold = \"6s\"", "`hold`: `6s` is over 5s"),
            ("probe = \"fast\"", "`probe`: `fast` is no duration"),
            ("socket = \"a.sock\"", "`socket`: `a.sock` is no absolute path"),
            ("mode = \"both\"", "unknown variant `both`"),
            ("[runtime.kata]\nmoed = \"proxy\"", "`runtime.kata`: unknown field `moed`"),
            ("[runtime.kata]\nhold = \"1h\"", "`runtime.kata`: `hold`"),
            ("runtime = 3", "`runtime`"),
            ("mode =", ""),
        ] {
            let loaded = read(&format!("log = \"/l\"\ninner = \"/i\"\n{text}"), None);
            let mistake = loaded.mistake.unwrap();
            assert!(mistake.contains(says) && !mistake.contains('\n'), "{text}: {mistake}");
            assert_eq!(loaded.config.mode, Mode::Wrapped);
            assert_eq!(loaded.config.socket, Path::new(SOCKET));
        }
    }

    #[test]
    fn a_mistake_elsewhere_does_not_change_the_runtime() {
        let text = "inner = \"/i\"\nhodl = 1\n[runtime.kata]\ninner = \"/k\"";
        assert_eq!(read(text, None).config.inner, Some("/i".into()));
        assert_eq!(read(text, Some("kata")).config.inner, Some("/k".into()));
        assert_eq!(read(text, Some("other")).config.inner, None);
    }
}
