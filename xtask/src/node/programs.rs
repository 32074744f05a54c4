//! What a node runs that Debian does not have: Go programs, each in a folder of the cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::key::Key;
use super::steps::Steps;
use super::versions::{Content, Versions};
use crate::cache::cached;
use crate::{next, process};

/// Where Kubernetes programs have their version: without it they report 0.0.0.
const KUBERNETES: &str = "k8s.io/component-base/version";
const CRI_TOOLS: &str = "sigs.k8s.io/cri-tools";

/// A folder of programs, and where in the node they are.
pub(super) struct Programs {
    pub(super) folder: PathBuf,
    pub(super) place: String,
}

/// Makes all of them. What they were made from goes into `key`.
pub(super) fn make(
    versions: &Versions,
    content: Content<'_>,
    steps: &mut Steps,
    mut key: Key,
) -> anyhow::Result<(Vec<Programs>, Key)> {
    let mut made = Vec::new();
    for release in content.releases(versions) {
        let module = next::module(release)
            .with_context(|| format!("no go.mod of containerd {release} in tests/programs/containerd"))?;
        let folder = steps.run(&format!("containerd {release}"), || next::upstream(release, &module))?;
        key = key.text("containerd", release).file(&module.join("go.mod"))?;
        made.push(Programs { folder, place: format!("opt/containerd/{release}") });
    }
    let modules = [
        Module { name: "kubernetes", version: &versions.go.kubernetes, build: kubernetes },
        Module { name: "cri-tools", version: &versions.go.cri_tools, build: cri_tools },
    ];
    for module in modules.into_iter().filter(|_| content.is_whole()) {
        let name = module.key()?;
        key = key.text(module.name, &name);
        let folder = steps.run(module.name, || cached(&name, |folder| module.make(folder)))?;
        made.push(Programs { folder, place: "usr/local/bin".to_owned() });
    }
    Ok((made, key))
}

struct Module<'a> {
    /// The folder with its go.mod.
    name: &'a str,
    version: &'a str,
    /// The commands that build its programs into a folder, by the version.
    build: fn(&str, &Path) -> Vec<Command>,
}

impl Module<'_> {
    fn folder(&self) -> PathBuf {
        super::sources().join(self.name)
    }

    fn key(&self) -> anyhow::Result<String> {
        let mut key = Key::default();
        for command in (self.build)(self.version, Path::new("")) {
            key = key.text("command", &process::shown(&command));
        }
        let folder = self.folder();
        let key = key.file(&folder.join("go.mod"))?.file(&folder.join("go.sum"))?;
        Ok(key.name(&format!("{}-{}", self.name, self.version)))
    }

    fn make(&self, folder: &Path) -> anyhow::Result<()> {
        let module = self.folder();
        for mut command in (self.build)(self.version, folder) {
            process::run(command.current_dir(&module)).with_context(|| {
                format!("building {} needs the Go of {}/go.mod", self.name, module.display())
            })?;
        }
        Ok(())
    }
}

/// kubelet and kube-apiserver: the `tool` lines of the module.
fn kubernetes(version: &str, folder: &Path) -> Vec<Command> {
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let variables =
        [("gitVersion", format!("v{version}")), ("gitMajor", major.into()), ("gitMinor", minor.into())];
    let variables = variables.map(|(name, value)| format!("-X {KUBERNETES}.{name}={value}"));
    let mut build = go(&["build"], &variables);
    // With a slash at its end it is a folder, for several programs.
    build.arg("-o").arg(folder.join("")).arg("tool");
    vec![build]
}

/// crictl, and critest, which is a test binary.
fn cri_tools(version: &str, folder: &Path) -> Vec<Command> {
    let variables = [format!("-X {CRI_TOOLS}/pkg/version.Version={version}")];
    let mut crictl = go(&["build"], &variables);
    crictl.arg("-o").arg(folder.join("crictl")).arg(format!("{CRI_TOOLS}/cmd/crictl"));
    let mut critest = go(&["test", "-c"], &variables);
    critest.arg("-o").arg(folder.join("critest")).arg(format!("{CRI_TOOLS}/cmd/critest"));
    vec![crictl, critest]
}

/// A build without symbols and paths of this machine. go.sum holds the checksums of all sources.
fn go(words: &[&str], variables: &[String]) -> Command {
    let mut command = Command::new("go");
    command.args(words).args(["-trimpath", "-buildvcs=false", "-ldflags"]);
    command.arg(format!("-s -w {}", variables.join(" ")));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_is_built_with_its_version() {
        let shown = process::shown(&kubernetes("1.36.3", Path::new("/parts"))[0]);
        for variable in ["gitVersion=v1.36.3", "gitMajor=1", "gitMinor=36"] {
            assert!(shown.contains(&format!("-X {KUBERNETES}.{variable}")), "{shown}");
        }
        assert!(shown.ends_with("-o /parts/ tool"), "{shown}");
    }

    #[test]
    fn key_of_a_module_changes_with_its_version() {
        let key = |version| Module { name: "cri-tools", version, build: cri_tools }.key().unwrap();
        assert!(key("1.36.0").starts_with("cri-tools-1.36.0-"), "{}", key("1.36.0"));
        let digest = |key: String| key.rsplit_once('-').unwrap().1.to_owned();
        assert_ne!(digest(key("1.36.0")), digest(key("1.36.1")));
    }
}
