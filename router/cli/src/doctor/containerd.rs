//! containerd's configuration, as far as runtimes are concerned.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use toml::{Table, Value};

/// The plugin that has CRI's runtimes, in files of version 2.
pub(super) const OLD: &str = "io.containerd.grpc.v1.cri";
/// And in those of version 3.
pub(super) const NEW: &str = "io.containerd.cri.v1.runtime";
/// The plugin that has a folder of programs.
const OPT: &str = "io.containerd.internal.v1.opt";
/// Files may import each other; containerd skips those that it has read.
const MOST_FILES: usize = 64;

/// The keys that are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Configuration {
    pub(super) version: i64,
    /// The file that was changed last, or the folder of imports in which one was added or removed.
    pub(super) changed: Option<(PathBuf, SystemTime)>,
    /// Folders of which it imports every `*.toml`.
    pub(super) folders: Vec<PathBuf>,
    /// Its address, if the file has one.
    pub(super) address: Option<PathBuf>,
    pub(super) ttrpc: Option<PathBuf>,
    /// containerd has the folder `bin` in it first in its own PATH, which its environment does not
    /// show.
    pub(super) opt: PathBuf,
    /// `disabled_plugins` names CRI.
    pub(super) disabled: bool,
    /// The runtime of pods without a RuntimeClass.
    pub(super) default: String,
    pub(super) runtimes: Vec<Runtime>,
}

/// One `runtimes.NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runtime {
    pub(super) name: String,
    /// It is below the plugin's name of version 3.
    pub(super) new: bool,
    /// `runtime_type`.
    pub(super) kind: String,
    /// `runtime_path`.
    pub(super) path: Option<String>,
    /// The keys of its `options`.
    pub(super) options: Vec<String>,
    pub(super) systemd_cgroup: bool,
}

impl Configuration {
    /// The file and those that it imports; tables are merged, and imported ones have priority.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let (mut whole, mut wait, mut seen) = (Table::new(), vec![path.to_owned()], Vec::new());
        let mut folders = Vec::new();
        while let Some(path) = wait.pop() {
            if seen.contains(&path) || seen.len() == MOST_FILES {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            let table: Table =
                text.parse().map_err(|error| format!("{}: {error}", path.display()).trim_end().to_owned())?;
            let imports = table.get("imports").and_then(Value::as_array).cloned().unwrap_or_default();
            let own = path.parent().unwrap_or(Path::new("/"));
            let imports = imports.iter().filter_map(Value::as_str);
            let folder =
                |it: &str| it.strip_suffix("/*.toml").filter(|it| !it.contains('*')).map(|it| own.join(it));
            folders.extend(imports.clone().filter_map(folder));
            for import in imports.rev() {
                wait.extend(named(own, import).into_iter().rev());
            }
            merge(&mut whole, table);
            seen.push(path);
        }
        let time = |path: &PathBuf| fs::metadata(path).and_then(|it| it.modified()).ok();
        let all = seen.into_iter().chain(folders.iter().cloned());
        let changed = all.filter_map(|path| Some((time(&path)?, path))).max();
        Ok(Self { changed: changed.map(|(time, path)| (path, time)), folders, ..Self::of(&whole) })
    }

    pub(super) fn of(table: &Table) -> Self {
        let path = |section: &str| {
            let address = table.get(section)?.get("address")?.as_str()?;
            Some(PathBuf::from(address)).filter(|it| it.is_absolute())
        };
        let (mut runtimes, mut default) = (Vec::new(), None);
        for plugin in [OLD, NEW] {
            let section = table.get("plugins").and_then(|it| it.get(plugin)?.get("containerd"));
            let text = |key: &str| Some(section?.get(key)?.as_str()?.to_owned());
            default = default.or(text("default_runtime_name"));
            let named = section.and_then(|it| it.get("runtimes")?.as_table());
            runtimes.extend(named.into_iter().flatten().map(|(name, keys)| runtime(plugin, name, keys)));
        }
        let opt = table.get("plugins").and_then(|it| it.get(OPT)?.get("path")?.as_str());
        let disabled = table.get("disabled_plugins").and_then(Value::as_array).into_iter().flatten();
        let mut disabled = disabled.filter_map(Value::as_str);
        Self {
            opt: opt.unwrap_or("/opt/containerd").into(),
            disabled: disabled.any(|it| ["cri", OLD, NEW].contains(&it)),
            // Without the key a file is of version 1.
            changed: None,
            folders: Vec::new(),
            version: table.get("version").and_then(Value::as_integer).unwrap_or(1),
            address: path("grpc"),
            ttrpc: path("ttrpc"),
            default: default.unwrap_or_else(|| "runc".to_owned()),
            runtimes,
        }
    }
}

fn runtime(plugin: &str, name: &str, keys: &Value) -> Runtime {
    let text = |key: &str| keys.get(key).and_then(Value::as_str).filter(|it| !it.is_empty());
    let options = keys.get("options").and_then(Value::as_table);
    Runtime {
        name: name.to_owned(),
        new: plugin == NEW,
        kind: text("runtime_type").unwrap_or_default().to_owned(),
        path: text("runtime_path").map(str::to_owned),
        options: options.into_iter().flatten().map(|(key, _)| key.clone()).collect(),
        systemd_cgroup: options.and_then(|it| it.get("SystemdCgroup")?.as_bool()).unwrap_or(false),
    }
}

/// The files an entry of `imports` names: a path, or a `*` in its last part.
fn named(folder: &Path, import: &str) -> Vec<PathBuf> {
    let path = folder.join(import);
    let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((before, after)) = file.split_once('*') else { return vec![path] };
    let entries = path.parent().and_then(|parent| fs::read_dir(parent).ok());
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    let mut found: Vec<PathBuf> =
        entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).filter(fits).collect();
    found.sort();
    found
}

fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => drop(under.insert(key, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doctor_reads_runtimes_of_both_versions_and_of_imports() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("config.toml");
        let old = "version = 2\nimports = [\"conf.d/*.toml\"]\n[grpc]\naddress = \"/x.sock\"\n\
                   [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.a]\nruntime_type = \"t\"\n";
        let imported = "[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndefault_runtime_name = \"b\"\n\
                        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b]\nruntime_path = \"/p\"\n\
                        [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.b.options]\nSystemdCgroup = true\n";
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        fs::write(&main, old).unwrap();
        let drop_in = folder.path().join("conf.d/1.toml");
        fs::write(&drop_in, imported).unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(9);
        fs::File::options().append(true).open(&drop_in).unwrap().set_modified(later).unwrap();
        fs::write(folder.path().join("conf.d/1.txt"), "no toml").unwrap();
        let read = Configuration::read(&main).unwrap();
        let a = Runtime { name: "a".to_owned(), kind: "t".to_owned(), ..Runtime::default() };
        let b = Runtime {
            name: "b".to_owned(),
            new: true,
            path: Some("/p".to_owned()),
            options: vec!["SystemdCgroup".to_owned()],
            systemd_cgroup: true,
            ..Runtime::default()
        };
        assert_eq!((read.version, read.default.as_str(), read.runtimes), (2, "b", vec![a, b]));
        assert_eq!(read.changed, Some((drop_in, later)));
        assert_eq!(read.folders, [folder.path().join("conf.d")]);
        assert_eq!(read.opt, Path::new("/opt/containerd"));
        assert_eq!(read.address.as_deref(), Some(Path::new("/x.sock")));
        assert_eq!(Configuration::of(&Table::new()).version, 1);
        fs::write(&main, "version = ").unwrap();
        assert!(Configuration::read(&main).unwrap_err().contains("config.toml"));
    }
}
