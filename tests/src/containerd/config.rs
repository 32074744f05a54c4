//! containerd's configuration, by its version.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A version of containerd: `1.7.24` as 1, 7 and 24.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl Version {
    /// The first one that takes `runtime_path`.
    const RUNTIME_PATH: Self = Self(1, 7, 1);
    /// The first version that splits the CRI plugin into several.
    const SEVERAL_PLUGINS: Self = Self(2, 0, 0);

    /// The version that `containerd --version` prints.
    pub(super) fn of(containerd: &mut Command) -> Result<Self> {
        let output = containerd.arg("--version").output().context("starting containerd: is it installed?")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "containerd --version: {output:?}");
        Self::read(&text).with_context(|| format!("no version of containerd: {text}"))
    }

    /// `containerd github.com/containerd/containerd/v2 2.1.9+unknown`, or
    /// `... 1.7.24~ds1 1.7.24~ds1-6`.
    fn read(text: &str) -> Option<Self> {
        let numbers = text.split_whitespace().nth(2)?.trim_start_matches('v');
        let mut numbers = numbers.split(|it: char| !it.is_ascii_digit()).map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self(next()?, next()?, next()?))
    }
}

/// Everything private; the rest is what containers need to start as root in any container or
/// virtual machine. Without an `options` table of the CRI runtime other than `Root`, the shim's
/// cgroups are runc's own default.
pub(super) fn text(version: Version, directory: &Path, sandbox_image: &str, wrapped: &[String]) -> String {
    const COMMON: &str = r#"root = "@DIR@/root"
state = "@DIR@/state"
[grpc]
  address = "@DIR@/containerd.sock"
[ttrpc]
  address = "@DIR@/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "@DIR@/opt"
"#;
    /// Its socket is one for the whole machine.
    const NO_NRI: &str = r#"[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#;
    const ONE_PLUGIN: &str = r#"[plugins."@CRI@"]
  sandbox_image = "@PAUSE@"
  disable_tcp_service = true
"#;
    const SEVERAL_PLUGINS: &str = r#"[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "@PAUSE@"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
[plugins."@CRI@"]
"#;
    const CRI: &str = r#"  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."@CRI@".cni]
    @PROGRAMS@
    conf_dir = "@DIR@/cni"
  [plugins."@CRI@".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."@CRI@".containerd.runtimes.runc.options]
      Root = "@DIR@/runc"
"#;
    let several = version >= Version::SEVERAL_PLUGINS;
    let (number, name, head, programs) = match several {
        true => (
            "version = 3\n",
            "io.containerd.cri.v1.runtime",
            SEVERAL_PLUGINS,
            "bin_dirs = [\"/usr/lib/cni\"]",
        ),
        false => ("version = 2\n", "io.containerd.grpc.v1.cri", ONE_PLUGIN, "bin_dir = \"/usr/lib/cni\""),
    };
    let no_nri = if version >= Version(1, 7, 0) { NO_NRI } else { "" };
    let handlers: String = wrapped.iter().map(|handler| runtime(version, handler)).collect();
    [number, COMMON, no_nri, head, CRI, &handlers]
        .concat()
        .replace("@CRI@", name)
        .replace("@PROGRAMS@", programs)
        .replace("@DIR@", &directory.to_string_lossy())
        .replace("@PAUSE@", sandbox_image)
}

/// The table of a handler with a wrapped shim. 1.6 knows its shim by the type alone, and accepts no
/// options for a type that is not its own: runc's root is then the machine's,
/// `/run/containerd/runc`, where ids keep runs apart.
fn runtime(version: Version, handler: &str) -> String {
    const BY_TYPE: &str = r#"  [plugins."@CRI@".containerd.runtimes.@HANDLER@]
    runtime_type = "io.containerd.@HANDLER@.v2"
"#;
    const BY_PATH: &str = r#"  [plugins."@CRI@".containerd.runtimes.@HANDLER@]
    runtime_type = "io.containerd.runc.v2"
    runtime_path = "@WRAPPER@"
    [plugins."@CRI@".containerd.runtimes.@HANDLER@.options]
      Root = "@DIR@/runc"
"#;
    let table = if version < Version::RUNTIME_PATH { BY_TYPE } else { BY_PATH };
    table.replace("@WRAPPER@", &wrapper(Path::new("@DIR@"), handler)).replace("@HANDLER@", handler)
}

/// Where the wrapper of a handler lies in containerd's folder, by the name that containerd makes of
/// the runtime's type.
pub(super) fn wrapper(directory: &Path, handler: &str) -> String {
    directory.join(format!("bin/containerd-shim-{handler}-v2")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_each_debian_writes_them() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6, 20)),
            ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1", (1, 7, 24)),
            ("containerd github.com/containerd/containerd/v2 2.1.9+unknown ", (2, 1, 9)),
            ("containerd github.com/containerd/containerd/v2 v2.3.0 abc", (2, 3, 0)),
        ] {
            let Version(major, minor, patch) = Version::read(text).unwrap();
            assert_eq!((major, minor, patch), expected, "{text}");
        }
        assert_eq!(Version::read("containerd"), None);
    }

    #[test]
    fn wrapped_shim_is_named_as_its_version_requires() {
        let of = |version| text(version, Path::new("/d"), "pause", &["coroner-proxy".to_owned()]);
        let old = of(Version(1, 6, 20));
        assert!(old.starts_with("version = 2\n"));
        assert!(old.contains("runtime_type = \"io.containerd.coroner-proxy.v2\"\n"));
        assert!(!old.contains("runtime_path"));
        for (version, number) in [(Version(1, 7, 24), 2), (Version(2, 1, 9), 3)] {
            let new = of(version);
            assert!(new.starts_with(&format!("version = {number}\n")), "{new}");
            assert!(new.contains("runtime_path = \"/d/bin/containerd-shim-coroner-proxy-v2\"\n"), "{new}");
            assert!(!new.contains('@'), "{new}");
        }
    }
}
