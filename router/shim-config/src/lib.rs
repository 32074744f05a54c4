//! The wrapper's configuration file, as the wrapper and `coroner doctor` read it:
//! docs/operating/shims.md has every key.
//!
//! [`File`] is the file with all its tables, [`WrapperName`] the name of a wrapper, and
//! [`WrapperConfig`] the effective keys for that name. [`unmanaged`] are the wrapper's records of
//! pods that started without the router.

mod name;
pub mod unmanaged;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use name::WrapperName;

/// The file's default path.
pub const FILE: &str = "/etc/coroner/shim.toml";
/// The variable of containerd's environment that names another file.
pub const VARIABLE: &str = "CORONER_SHIM_CONFIG";
/// sun_path has 108 bytes, the last a zero: unix(7).
pub const SUN_PATH: usize = 107;
/// The default socket of the router's source `shim`.
const SOCKET: &str = "/run/coroner/shim.sock";
/// Default of `probe`. A local socket answers within microseconds. On a busy node, or while the
/// service manager starts the router, it takes longer, and a pod that starts without the router is
/// unmanaged for life. Where nothing listens the probe fails at once.
const PROBE: Duration = Duration::from_secs(2);
/// Default of `hold`. An answer takes milliseconds.
const HOLD: Duration = Duration::from_secs(1);
/// Maximum of `probe` and `hold`. containerd waits 10 s for some of its calls, and two holds can
/// follow each other.
const MOST: Duration = Duration::from_secs(5);

/// The mode of a wrapper: what it puts between containerd and the inner shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WrapperMode {
    /// Nothing: the inner shim publishes its events to the router.
    Wrapped,
    /// A proxy process in front of the Task socket.
    Proxy,
}

impl WrapperMode {
    /// As both configurations and the router's protocol name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Proxy => "proxy",
        }
    }
}

/// The effective keys for one name of the wrapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrapperConfig {
    /// The inner shim; `None`: the one of the wrapper's [`WrapperName`].
    pub inner: Option<PathBuf>,
    /// The wrapper's mode.
    pub mode: WrapperMode,
    /// The socket of the router's source `shim`.
    pub socket: PathBuf,
    /// Timeout of the router's answer at a start.
    pub probe: Duration,
    /// Timeout of a held reply.
    pub hold: Duration,
    /// A log file, beside the system's log.
    pub log: Option<PathBuf>,
}

/// The file: all its tables, or its mistake.
#[derive(Clone, Debug, Default)]
pub struct File {
    common: Keys,
    runtimes: BTreeMap<String, Keys>,
    /// `None` where the file is missing and the environment names none.
    is_there: bool,
    mistake: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    inner: Option<PathBuf>,
    mode: Option<WrapperMode>,
    socket: Option<PathBuf>,
    probe: Option<String>,
    hold: Option<String>,
    log: Option<PathBuf>,
}

/// The file's path, given the value of [`VARIABLE`], and whether that variable names it.
pub fn path(variable: Option<PathBuf>) -> (PathBuf, bool) {
    match variable.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => (path, true),
        None => (FILE.into(), false),
    }
}

impl File {
    /// Reads the file at `path`. It may be missing, unless it is `named` by the environment.
    pub fn read(path: &Path, named: bool) -> Self {
        let mistaken = |why: &dyn std::fmt::Display| Some(format!("{}: {why}", path.display()));
        match fs::read_to_string(path) {
            Ok(text) => {
                let mut file = Self::parse(&text);
                file.mistake = file.mistake.and_then(|why| mistaken(&why));
                file
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !named => Self::default(),
            Err(error) => Self { mistake: mistaken(&error), ..Self::default() },
        }
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> Self {
        let (mistake, table) = match text.parse::<toml::Table>() {
            Ok(table) => match Self::checked(table.clone()) {
                Ok(file) => return file,
                Err(why) => (why, table),
            },
            Err(error) => (error.message().to_owned(), toml::Table::new()),
        };
        let runtimes = table.get("runtime").and_then(toml::Value::as_table).into_iter().flatten();
        let runtimes =
            runtimes.filter_map(|(name, own)| Some((name.clone(), Keys::salvaged(own.as_table()?))));
        Self {
            common: Keys::salvaged(&table),
            runtimes: runtimes.collect(),
            is_there: true,
            mistake: Some(mistake),
        }
    }

    fn checked(mut table: toml::Table) -> Result<Self, String> {
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
        // A mistake in another runtime's table counts too: it is found before that runtime is used.
        for (runtime, keys) in &runtimes {
            effective(&common, Some(keys)).map_err(|why| format!("`runtime.{runtime}`: {why}"))?;
        }
        effective(&common, None)?;
        Ok(Self { common, runtimes, is_there: true, mistake: None })
    }

    /// Whether there is a file.
    pub fn is_there(&self) -> bool {
        self.is_there
    }

    /// The mistake in the file. The file is then ignored, except for `inner` and `log` where they
    /// can be read: a fallback must not start another runtime than the configured one.
    pub fn mistake(&self) -> Option<&str> {
        self.mistake.as_deref()
    }

    /// NAME of each `[runtime.NAME]`.
    pub fn runtimes(&self) -> impl Iterator<Item = &str> {
        self.runtimes.keys().map(String::as_str)
    }

    /// NAME of the `[runtime.NAME]` that applies to a wrapper of this name.
    pub fn runtime<'a>(&self, name: &'a WrapperName) -> Option<&'a str> {
        name.tables().find(|table| self.runtimes.contains_key(*table))
    }

    /// The effective keys for a wrapper of this name.
    pub fn config(&self, name: &WrapperName) -> WrapperConfig {
        let none = Keys::default();
        let own = self.runtime(name).and_then(|table| self.runtimes.get(table));
        // A wrapper of another shim without a table of its own uses the common keys except `inner`,
        // which is never common.
        let own = own.or_else(|| name.wrapped().map(|_| &none));
        effective(&self.common, own).expect("every table was checked, or has no key that can be invalid")
    }
}

impl Keys {
    /// The keys of a table with a mistake that are still used.
    fn salvaged(table: &toml::Table) -> Self {
        let path = |key: &str| Some(PathBuf::from(table.get(key)?.as_str()?)).filter(|it| it.is_absolute());
        Self { inner: path("inner"), log: path("log"), ..Self::default() }
    }
}

/// A runtime's own keys before the common ones. `inner` is never common: one runtime's shim is not
/// another's.
fn effective(common: &Keys, own: Option<&Keys>) -> Result<WrapperConfig, String> {
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
            Err(error) => Err(format!("`{key}`: `{text}` is not a duration such as \"200ms\": {error}")),
        }
    };
    let config = WrapperConfig {
        inner: inner.clone(),
        mode: own.mode.or(common.mode).unwrap_or(WrapperMode::Wrapped),
        socket: own.socket.as_ref().or(common.socket.as_ref()).cloned().unwrap_or_else(|| SOCKET.into()),
        probe: span("probe", &own.probe, &common.probe, PROBE)?,
        hold: span("hold", &own.hold, &common.hold, HOLD)?,
        log: own.log.as_ref().or(common.log.as_ref()).cloned(),
    };
    for (key, path) in
        [("inner", config.inner.as_ref()), ("socket", Some(&config.socket)), ("log", config.log.as_ref())]
    {
        if let Some(path) = path.filter(|path| !path.is_absolute()) {
            return Err(format!("`{key}`: `{}` is not an absolute path", path.display()));
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

    fn read(text: &str, called_as: &str) -> WrapperConfig {
        File::parse(text).config(&WrapperName::of(Path::new(called_as)))
    }

    const PLAIN: &str = "containerd-shim-coroner-v2";
    const KATA: &str = "containerd-shim-coroner-kata-v2";

    #[test]
    fn page_example_is_read() {
        let page = include_str!("../../../docs/operating/shims.md");
        let text = page.split("```toml\n").nth(2).and_then(|rest| rest.split("```").next()).unwrap();
        assert_eq!(File::parse(text).mistake(), None);
        let plain = read(text, PLAIN);
        assert_eq!((plain.inner, plain.mode), (None, WrapperMode::Wrapped));
        let kata = read(text, KATA);
        assert_eq!(kata.inner, Some("/opt/kata/bin/containerd-shim-kata-v2".into()));
        assert_eq!(kata.mode, WrapperMode::Proxy);
        assert_eq!(kata.socket, Path::new("/run/coroner/proxy.sock"));
        assert_eq!((kata.probe, kata.hold), (PROBE, HOLD));
    }

    #[test]
    fn runtime_has_common_keys_but_never_common_inner() {
        let text =
            "inner = \"/a\"\nprobe = \"50ms\"\nhold = \"2s\"\nlog = \"/l\"\n[runtime.kata]\nhold = \"3s\"";
        for called_as in [KATA, "/opt/bin/containerd-shim-kata-v2"] {
            let WrapperConfig { inner, probe, hold, log, .. } = read(text, called_as);
            assert_eq!((inner, log), (None, Some("/l".into())), "{called_as}");
            assert_eq!((probe, hold), (Duration::from_millis(50), Duration::from_secs(3)), "{called_as}");
        }
        let other = read(text, "containerd-shim-coroner-other-v2");
        assert_eq!((other.inner, other.hold), (None, Duration::from_secs(2)));
        assert_eq!(read(text, PLAIN).inner, Some("/a".into()));
        // A wrapper in place of runc's shim, without a table of its own, is the plain wrapper.
        assert_eq!(read(text, "containerd-shim-runc-v2").inner, Some("/a".into()));
    }

    #[test]
    fn table_matches_called_name_with_and_without_coroner() {
        let text = "[runtime.kata]\nmode = \"proxy\"\n[runtime.coroner-fc]\nmode = \"proxy\"\n[runtime.fc]\nhold = \"2s\"";
        let file = File::parse(text);
        assert_eq!(file.runtimes().collect::<Vec<_>>(), ["coroner-fc", "fc", "kata"]);
        for (called_as, table) in [
            (KATA, Some("kata")),
            ("/opt/bin/containerd-shim-kata-v2", Some("kata")),
            ("containerd-shim-coroner-fc-v2", Some("coroner-fc")),
            ("containerd-shim-fc-v2", Some("fc")),
            (PLAIN, None),
            ("containerd-shim-runc-v2", None),
            ("kata", None),
        ] {
            let name = WrapperName::of(Path::new(called_as));
            assert_eq!(file.runtime(&name), table, "{called_as}");
            let is_proxy = file.config(&name).mode == WrapperMode::Proxy;
            assert_eq!(is_proxy, table.is_some_and(|table| table != "fc"), "{called_as}");
        }
    }

    #[test]
    fn mistake_named_and_file_ignored() {
        for (text, expect) in [
            ("hodl = \"1s\"", "unknown field `hodl`"),
            ("hold = \"6s\"", "`hold`: `6s` is over 5s"),
            ("probe = \"fast\"", "`probe`: `fast` is not a duration"),
            ("socket = \"a.sock\"", "`socket`: `a.sock` is not an absolute path"),
            ("mode = \"both\"", "unknown variant `both`"),
            ("[runtime.kata]\nmoed = \"proxy\"", "`runtime.kata`: unknown field `moed`"),
            ("[runtime.kata]\nhold = \"1h\"", "`runtime.kata`: `hold`"),
            ("runtime = 3", "`runtime`"),
            ("mode =", ""),
        ] {
            let text = format!("log = \"/l\"\ninner = \"/i\"\n{text}");
            let file = File::parse(&text);
            let mistake = file.mistake().unwrap();
            assert!(mistake.contains(expect) && !mistake.contains('\n'), "{text}: {mistake}");
            let config = read(&text, PLAIN);
            assert_eq!((config.mode, config.socket.as_path()), (WrapperMode::Wrapped, Path::new(SOCKET)));
        }
    }

    #[test]
    fn mistake_elsewhere_does_not_change_the_runtime() {
        let text = "inner = \"/i\"\nhodl = 1\n[runtime.kata]\ninner = \"/k\"";
        assert_eq!(read(text, PLAIN).inner, Some("/i".into()));
        assert_eq!(read(text, KATA).inner, Some("/k".into()));
        assert_eq!(read(text, "containerd-shim-coroner-other-v2").inner, None);
    }

    #[test]
    fn missing_file_is_a_mistake_where_it_is_named() {
        let missing = Path::new("/no/such/shim.toml");
        assert_eq!(File::read(missing, false).mistake(), None);
        assert!(File::read(missing, true).mistake().unwrap().starts_with("/no/such/shim.toml: "));
        assert_eq!(path(None), (FILE.into(), false));
        assert_eq!(path(Some("".into())), (FILE.into(), false));
        assert_eq!(path(Some("/x".into())), ("/x".into(), true));
    }
}
