//! The wrapper's program, and its file as the wrapper reads it: docs/operating/shims.md has the
//! keys.

use std::fs;
use std::path::{Path, PathBuf};

use coroner_shim_config::{File, VARIABLE, WrapperName};

const PREFIX: &str = "containerd-shim-";
const SUFFIX: &str = "-v2";

/// The wrapper reads this variable, whatever its program is called.
const MARK: &[u8] = VARIABLE.as_bytes();
/// Bytes of a program that is searched for the mark.
const LARGEST: u64 = 64 << 20;

/// The wrapper's file, and the names that the wrapper is installed by.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrapper {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) names: Vec<WrapperName>,
}

impl Wrapper {
    /// `variable`: of containerd's environment.
    pub(super) fn read(variable: Option<String>) -> Self {
        let (path, named) = coroner_shim_config::path(variable.map(PathBuf::from));
        let file = File::read(&path, named);
        Self { path, file, names: Vec::new() }
    }

    /// Every socket that the file names.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let name = |table: &str| WrapperName::of(Path::new(&format!("{PREFIX}{table}{SUFFIX}")));
        let tables = self.file.runtimes().map(name);
        std::iter::once(WrapperName::default())
            .chain(tables)
            .map(|name| self.file.config(&name).socket)
            .collect()
    }

    /// Tables of the file that hold for no wrapper that is installed.
    pub(super) fn unused(&self) -> Vec<&str> {
        let used: Vec<&str> = self.names.iter().filter_map(|name| self.file.runtime(name)).collect();
        self.file.runtimes().filter(|table| !used.contains(table)).collect()
    }
}

/// Whether a program in one of these folders is the wrapper, by its name or by what it is; and what
/// it is called.
pub(super) fn installed(folders: &[PathBuf]) -> Vec<WrapperName> {
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let programs = entries.map(|entry| entry.path()).filter(|path| is_shim(path));
    programs.filter(|path| called(path).is_some() || is_it(path)).map(|path| WrapperName::of(&path)).collect()
}

/// `containerd-shim-coroner-v2` is the wrapper; `containerd-shim-coroner-kata-v2` is it too, by the
/// name `kata`.
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

/// The file that containerd starts for a runtime type: the last two parts of its name. None: it
/// names a path, or nothing.
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

#[cfg(test)]
mod tests {
    use coroner_shim_config::WrapperMode;

    use super::*;

    #[test]
    fn doctor_knows_the_wrapper_by_its_names() {
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
    fn doctor_reads_the_file_by_the_wrappers_rule() {
        let text = "inner = \"/runc\"\nmode = \"proxy\"\n[runtime.kata]\nsocket = \"/p\"\n[runtime.gone]\n";
        let name = |file: &str| WrapperName::of(Path::new(file));
        let names = vec![name("containerd-shim-coroner-v2"), name("containerd-shim-kata-v2")];
        let wrapper = Wrapper { path: "shim.toml".into(), file: File::parse(text), names };
        assert_eq!(wrapper.file.mistake(), None);
        let [plain, kata] =
            ["coroner", "kata"].map(|it| wrapper.file.config(&name(&format!("containerd-shim-{it}-v2"))));
        assert_eq!((plain.inner, plain.mode), (Some("/runc".into()), WrapperMode::Proxy));
        // One runtime's shim is not another's.
        assert_eq!((kata.inner, kata.mode, kata.socket), (None, WrapperMode::Proxy, "/p".into()));
        let default = "/run/coroner/shim.sock";
        assert_eq!(wrapper.sockets(), [default, default, "/p"].map(PathBuf::from));
        assert_eq!(wrapper.unused(), ["gone"]);
    }
}
