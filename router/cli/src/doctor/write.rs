//! `--write`: puts containerd's default runtime behind the wrapper by a drop-in, or removes that.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use super::facts::Facts;
use super::judge::{default_runtime, reads_drop_in};
use super::{Finding, Severity};

/// The drop-in. containerd reads the files of a folder by name, and later ones have priority.
const FILE: &str = "50-coroner.toml";
/// The first line. A file without it is not this program's.
const HEAD: &str =
    "# Written by `coroner doctor --write`. `coroner doctor --uninstall --write` removes it.\n";
const SUBJECT: &str = "drop-in";

/// Writes the drop-in, and states what was done.
pub(super) fn add(facts: &Facts, main: &Path) -> Finding {
    let configuration = match &facts.configuration {
        Ok(configuration) => configuration,
        Err(error) => {
            let message = format!("nothing is written: containerd's configuration cannot be read: {error}");
            return Finding::wrong(SUBJECT, message)
                .change(format!("containerd config default > {}", main.display()));
        }
    };
    let default = &configuration.default;
    if is_wrapped(facts) {
        return Finding::ok(SUBJECT, format!("nothing to write: runtime {default} uses the wrapper"));
    }
    let Some(wrapper) = &facts.installed else {
        return Finding::wrong(SUBJECT, "nothing is written: containerd's PATH has no wrapper")
            .change("install -m 0755 containerd-shim-coroner-v2 /usr/local/bin/containerd-shim-coroner-v2");
    };
    let toml = default_runtime(facts, configuration);
    if !reads_drop_in(facts, configuration) {
        let message = format!(
            "nothing is written: a drop-in needs a running containerd 2.1 or later, a configuration of version \
             3, and a runtime {default} in it with the stock shim of runc. Change the configuration by hand"
        );
        return Finding::wrong(SUBJECT, message).change(toml);
    }
    let Some(path) = configuration.folders.first().map(|folder| folder.join(FILE)) else {
        let folder = main.with_file_name("conf.d");
        let message = format!("nothing is written: {} imports no folder of drop-ins", main.display());
        return Finding::wrong(SUBJECT, message)
            .change(format!("imports = [\"{}/*.toml\"]", folder.display()));
    };
    let text = format!("{HEAD}version = {}\n\n{toml}\n", configuration.version);
    match replace(&path, &text) {
        Ok(()) => {
            let message = format!("wrote {}: runtime {default} uses {}", path.display(), wrapper.display());
            Finding::ok(SUBJECT, message).change("systemctl restart containerd")
        }
        Err(error) => Finding::wrong(SUBJECT, format!("{} is not written: {error}", path.display())),
    }
}

/// Whether the file states that the default runtime starts the wrapper.
fn is_wrapped(facts: &Facts) -> bool {
    let Ok(configuration) = &facts.configuration else { return false };
    let mut programs = configuration.runtimes.iter().zip(&facts.programs);
    programs.any(|(runtime, program)| {
        runtime.name == configuration.default && runtime.new == (configuration.version >= 3) && program.wraps
    })
}

/// What [`add`] states, unless a file with priority overrides the drop-in. `facts` are those after
/// it was written.
pub(super) fn checked(added: Finding, facts: &Facts) -> Finding {
    if added.level != Severity::Ok || is_wrapped(facts) {
        return added;
    }
    let message = format!("{}; but another file of containerd's configuration has priority", added.message);
    Finding::wrong(SUBJECT, message)
}

/// Removes the drop-in, if there is one.
pub(super) fn remove(facts: &Facts) -> Option<Finding> {
    let folders = facts.configuration.iter().flat_map(|it| &it.folders);
    let path = folders.map(|folder| folder.join(FILE)).find(|path| path.exists())?;
    Some(match is_ours(&path).and_then(|()| fs::remove_file(&path)) {
        Ok(()) => {
            Finding::ok(SUBJECT, format!("removed {}", path.display())).change("systemctl restart containerd")
        }
        Err(error) => Finding::wrong(SUBJECT, format!("{} is not removed: {error}", path.display())),
    })
}

/// An error for a file that another program wrote.
fn is_ours(path: &Path) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let error = || io::Error::other("it was not written by `coroner doctor --write`: move it away");
    if text.starts_with(HEAD) { Ok(()) } else { Err(error()) }
}

/// Writes it beside, and renames it: containerd may start at any moment.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() {
        is_ours(path)?;
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension("partial");
    let mut file = fs::File::create(&partial)?;
    file.write_all(text.as_bytes())?;
    // A file that is empty after a crash would be refused by containerd.
    file.sync_all()?;
    fs::rename(partial, path)
}

#[cfg(test)]
mod tests {
    use super::super::containerd::Configuration;
    use super::super::judge::tests::machine;
    use super::*;

    const STOCK: &str = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
                         runtime_type = \"io.containerd.runc.v2\"\n";

    fn check(finding: &Finding, level: Severity, message: &str, change: &str) {
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(finding.message.contains(message), "{finding:?} has no `{message}`");
        assert!(finding.change.as_deref().unwrap_or_default().contains(change), "{finding:?}");
    }

    #[test]
    fn default_runtime_is_wrapped_by_a_drop_in_that_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("config.toml");
        let path = folder.path().join("conf.d/50-coroner.toml");
        fs::write(&main, format!("imports = [\"conf.d/*.toml\"]\n{STOCK}")).unwrap();
        let mut facts = machine(STOCK, "2.4.2");
        facts.configuration = Configuration::read(&main);
        assert_eq!(remove(&facts), None);
        check(&add(&facts, &main), Severity::Ok, "wrote ", "systemctl restart containerd");
        let read = Configuration::read(&main).unwrap();
        let runtime = &read.runtimes[0];
        let got = (runtime.name.as_str(), runtime.kind.as_str(), runtime.path.as_deref(), read.version);
        assert_eq!(got, ("runc", "io.containerd.runc.v2", Some("/x/containerd-shim-coroner-v2"), 3));

        // Written again, it is replaced; what another program wrote is not.
        fs::write(&path, format!("{HEAD}version = 2\n")).unwrap();
        let added = add(&facts, &main);
        check(&added, Severity::Ok, "wrote ", "");
        assert!(fs::read_to_string(&path).unwrap().contains("version = 3\n"));
        check(&checked(added.clone(), &facts), Severity::Wrong, "has priority", "");
        facts.programs[0].wraps = true;
        assert_eq!(checked(added.clone(), &facts), added);
        facts.programs[0].wraps = false;
        let before = Configuration::read(&main).unwrap().changed.unwrap().1;
        check(&remove(&facts).unwrap(), Severity::Ok, "removed ", "systemctl restart containerd");
        assert_eq!(remove(&facts), None);
        let after = Configuration::read(&main).unwrap().changed.unwrap();
        assert!(after.0 == folder.path().join("conf.d") && after.1 >= before, "the folder shows it");
        fs::write(&path, "version = 3\n").unwrap();
        check(&add(&facts, &main), Severity::Wrong, "was not written by", "");
        check(&remove(&facts).unwrap(), Severity::Wrong, "was not written by", "");
        assert_eq!(fs::read_to_string(&path).unwrap(), "version = 3\n");
    }

    #[test]
    fn nothing_is_written_where_a_drop_in_does_not_help() {
        let main = Path::new("/etc/containerd/config.toml");
        let wrapped = format!("{STOCK}runtime_path = \"/x/containerd-shim-coroner-v2\"\n");
        check(&add(&machine(&wrapped, "2.4.2"), main), Severity::Ok, "runtime runc uses the wrapper", "");
        let imports = "imports = [\"/etc/containerd/conf.d/*.toml\"]";
        check(&add(&machine(STOCK, "2.4.2"), main), Severity::Wrong, "imports no folder", imports);
        let old = STOCK
            .replace("version = 3", "version = 2")
            .replace("io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri");
        check(&add(&machine(&old, "1.6.20"), main), Severity::Wrong, "by hand", "io.containerd.coroner.v2");
        for other in [STOCK.replace("runc.v2", "runsc.v1"), STOCK.replace("runc.v2", "kata.v2")] {
            check(
                &add(&machine(&other, "2.4.2"), main),
                Severity::Wrong,
                "stock shim of runc",
                "runtime_type",
            );
        }
        let own = format!("{STOCK}runtime_path = \"/opt/own-shim\"\n");
        check(&add(&machine(&own, "2.4.2"), main), Severity::Wrong, "by hand", "runtime_path");
        let mut facts = machine(STOCK, "2.4.2");
        facts.containerd.version = Err("no socket".to_owned());
        check(&add(&facts, main), Severity::Wrong, "a running containerd", "");
        let mut facts = machine(STOCK, "2.4.2");
        facts.installed = None;
        check(&add(&facts, main), Severity::Wrong, "has no wrapper", "install -m 0755");
        facts.configuration = Err("gone".to_owned());
        check(&add(&facts, main), Severity::Wrong, "cannot be read: gone", "containerd config default >");
    }
}
