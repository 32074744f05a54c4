//! The wrapper's program and its file, /etc/coroner/shim.toml, as far as a router must fit them. docs/shims.md has the keys.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

const PREFIX: &str = "containerd-shim-";
const SUFFIX: &str = "-v2";
/// The wrapper's keys. One that is none makes its file count as none.
const KEYS: [&str; 7] = ["inner", "mode", "socket", "probe", "hold", "log", "runtime"];

/// The wrapper reads this variable, whatever its program is called.
const MARK: &[u8] = b"CORONER_SHIM_CONFIG";
/// Bytes of a program that is looked through for the mark.
const LARGEST: u64 = 64 << 20;

/// What the file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrapper {
    pub(super) path: PathBuf,
    /// None: there is no file.
    keys: Option<Table>,
}

/// What holds for one name of the wrapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    pub(super) mode: String,
    pub(super) socket: PathBuf,
    pub(super) inner: Option<PathBuf>,
}

impl Wrapper {
    /// The file may be missing.
    pub(super) fn read(path: PathBuf) -> Result<Self, String> {
        match fs::read_to_string(&path) {
            Ok(text) => Self::of(path, &text),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self { path, keys: None }),
            Err(error) => Err(format!("{}: {error}", path.display())),
        }
    }

    pub(super) fn of(path: PathBuf, text: &str) -> Result<Self, String> {
        let keys =
            text.parse().map_err(|error| format!("{}: {error}", path.display()).trim_end().to_owned())?;
        Ok(Self { path, keys: Some(keys) })
    }

    pub(super) fn is_there(&self) -> bool {
        self.keys.is_some()
    }

    /// For the wrapper called by `name`.
    pub(super) fn keys(&self, name: Option<&str>) -> Keys {
        let own = name.and_then(|name| self.keys.as_ref()?.get("runtime")?.get(name)?.as_table());
        let text = |key: &str| {
            let value = own.and_then(|it| it.get(key)).or_else(|| self.keys.as_ref()?.get(key));
            value.and_then(Value::as_str).map(str::to_owned)
        };
        Keys {
            mode: text("mode").unwrap_or_else(|| "wrapped".to_owned()),
            socket: text("socket").unwrap_or_else(|| "/run/coroner/shim.sock".to_owned()).into(),
            inner: text("inner").map(PathBuf::from),
        }
    }

    /// Keys that are none.
    pub(super) fn unknown(&self) -> Vec<String> {
        let Some(keys) = &self.keys else { return Vec::new() };
        let strange = |key: &&String| !KEYS.contains(&key.as_str());
        let mut found: Vec<String> = keys.keys().filter(strange).cloned().collect();
        for (name, own) in keys.get("runtime").and_then(Value::as_table).into_iter().flatten() {
            let own = own.as_table().into_iter().flat_map(Table::keys).filter(strange);
            found.extend(own.map(|key| format!("runtime.{name}.{key}")));
        }
        found
    }

    /// Every socket that the file names.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let names = self.keys.as_ref().and_then(|it| it.get("runtime")?.as_table());
        let own = names.into_iter().flat_map(Table::keys).map(|name| self.keys(Some(name)).socket);
        std::iter::once(self.keys(None).socket).chain(own).collect()
    }
}

/// `containerd-shim-coroner-v2` is the wrapper; `containerd-shim-coroner-kata-v2` is it too, by the name `kata`.
pub(super) fn called(path: &Path) -> Option<Option<String>> {
    let file = path.file_name()?.to_str()?;
    let rest = file.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.strip_prefix("coroner")?;
    match rest.strip_prefix('-') {
        Some("") => None,
        Some(name) => Some(Some(name.to_owned())),
        None => rest.is_empty().then_some(None),
    }
}

/// Whether a file's name is a shim's.
pub(super) fn is_shim(path: &Path) -> bool {
    let file = path.file_name().and_then(|name| name.to_str());
    file.is_some_and(|file| file.starts_with(PREFIX) && file.ends_with(SUFFIX))
}

/// The file that containerd starts for a runtime type: the last two parts of its name. None: it names a path, or nothing.
pub(super) fn file_of(kind: &str) -> Option<String> {
    let mut parts = kind.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    (!kind.contains('/') && !name.is_empty()).then(|| format!("{PREFIX}{name}-{version}"))
}

/// By what it is, for one that has another's name.
pub(super) fn is_it(path: &Path) -> bool {
    let small = fs::metadata(path).is_ok_and(|it| it.len() <= LARGEST);
    small && fs::read(path).is_ok_and(|bytes| bytes.windows(MARK.len()).any(|it| it == MARK))
}

/// The shim that a wrapper looks for when `inner` names none.
pub(super) fn inner_of(name: Option<&str>) -> String {
    format!("{PREFIX}{}{SUFFIX}", name.unwrap_or("runc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doctor_knows_the_wrapper_by_its_names() {
        for (path, expect) in [
            ("/x/containerd-shim-coroner-v2", Some(None)),
            ("containerd-shim-coroner-kata-v2", Some(Some("kata".to_owned()))),
            ("containerd-shim-coroner--v2", None),
            ("containerd-shim-coroners-v2", None),
            ("containerd-shim-runc-v2", None),
        ] {
            assert_eq!(called(Path::new(path)), expect, "{path}");
        }
        assert_eq!(file_of("io.containerd.coroner.v2").as_deref(), Some("containerd-shim-coroner-v2"));
        assert_eq!((file_of("runc"), file_of("/x/a.b")), (None, None));
    }

    #[test]
    fn a_doctor_reads_the_wrappers_file_though_it_knows_not_every_key() {
        let text =
            "mode = \"wrapped\"\nlater = 1\n[runtime.kata]\nmode = \"proxy\"\nsocket = \"/p\"\nmod = 1\n";
        let wrapper = Wrapper::of("shim.toml".into(), text).unwrap();
        let kata = Keys { mode: "proxy".to_owned(), socket: "/p".into(), inner: None };
        assert_eq!(wrapper.keys(Some("kata")), kata);
        assert_eq!(wrapper.keys(None).mode, "wrapped");
        assert_eq!(wrapper.unknown(), ["later", "runtime.kata.mod"]);
        assert_eq!(wrapper.sockets(), [PathBuf::from("/run/coroner/shim.sock"), PathBuf::from("/p")]);
        assert!(Wrapper::of("shim.toml".into(), "mode =").is_err());
    }
}
