//! Finds a compiler for wasm32-unknown-unknown, and knows what makes its output the same
//! everywhere.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use super::manifest::Identity;
use crate::{packages, process, workspace};

const TARGET: &str = "wasm32-unknown-unknown";

/// Where Debian's `rustc-web` and `cargo-web` are; before them in PATH there often is another Rust.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// A compiler that can build plugins.
pub(crate) struct Toolchain {
    /// What is written down of it.
    pub(crate) identity: Identity,
    kind: Kind,
    sysroot: PathBuf,
}

#[derive(Clone, Copy)]
enum Kind {
    /// The compiler in use has the target: `rustup target add wasm32-unknown-unknown`.
    Installed,
    /// Debian's compiler has no target; the standard library is built along.
    Debian,
}

impl Toolchain {
    /// The one that made the committed plugins, where it is here; else the compiler in use, where
    /// it has the target; else Debian's, installed if need be.
    pub(crate) fn find(pinned: Option<&Identity>) -> anyhow::Result<Self> {
        let installed = Self::installed()?;
        if let Some(toolchain) = installed
            && pinned.is_none_or(|pinned| *pinned == toolchain.identity || !Path::new(DEBIAN_RUSTC).exists())
        {
            return Ok(toolchain);
        }
        packages::ensure(packages::WASM).context(
            "no compiler for wasm: rustup target add wasm32-unknown-unknown, or Debian's packages",
        )?;
        Self::debian()
    }

    fn installed() -> anyhow::Result<Option<Self>> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let query =
            |args: &[&str]| process::output(Command::new(&rustc).current_dir(workspace::root()).args(args));
        // A compiler that does not know the target has it no more than one without its library.
        let libraries = query(&["--print", "target-libdir", "--target", TARGET]);
        if !libraries.is_ok_and(|folder| Path::new(&folder).exists()) {
            return Ok(None);
        }
        let identity = Identity {
            rustc: query(&["-vV"])?,
            std: "as installed with the compiler".to_owned(),
            linker: "rust-lld of the compiler".to_owned(),
        };
        Ok(Some(Self { identity, kind: Kind::Installed, sysroot: query(&["--print", "sysroot"])?.into() }))
    }

    fn debian() -> anyhow::Result<Self> {
        let query = |program: &str, args: &[&str]| {
            process::output(Command::new(program).env_remove("LD_LIBRARY_PATH").args(args))
        };
        let source = packages::version("rust-web-src").context("rust-web-src is not installed")?;
        let rustc = packages::version("rustc-web").context("rustc-web is not installed")?;
        let identity = Identity {
            rustc: format!("{}\npackage: rustc-web {rustc}", query(DEBIAN_RUSTC, &["-vV"])?),
            std: format!("built from rust-web-src {source}"),
            linker: query("wasm-ld", &["--version"])?,
        };
        Ok(Self {
            identity,
            kind: Kind::Debian,
            sysroot: query(DEBIAN_RUSTC, &["--print", "sysroot"])?.into(),
        })
    }

    /// How long a build takes, roughly.
    pub(crate) fn expectation(&self, target: &Path) -> &'static str {
        match self.kind {
            Kind::Debian if !target.join(TARGET).exists() => "with the standard library: about 2 minutes",
            Kind::Debian | Kind::Installed => "seconds",
        }
    }

    /// The command that builds a package into a target folder.
    pub(crate) fn build(&self, package: &str, target: &Path) -> Command {
        let mut command = match self.kind {
            Kind::Installed => workspace::cargo(),
            Kind::Debian => {
                let mut command = workspace::cargo_at(DEBIAN_CARGO.as_ref());
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTDOC", "/usr/bin/rustdoc")
                    // Building the standard library is an unstable option, and Debian's compiler a
                    // stable one.
                    .env("RUSTC_BOOTSTRAP", "1")
                    .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld");
                command
            }
        };
        command.args(["build", "--profile", "plugin", "--locked", "--target", TARGET, "--package", package]);
        if let Kind::Debian = self.kind {
            command.args(["-Zbuild-std=std,panic_abort", "-Zbuild-std-features=optimize_for_size"]);
        }
        // Flags that a developer sets for other builds must not change these.
        for key in ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env_remove(key);
        }
        command.env("CARGO_TARGET_DIR", target);
        command.env("CARGO_ENCODED_RUSTFLAGS", self.flags().join("\u{1f}"));
        command
    }

    /// Paths end up in panic messages: each place gets a name that is the same on every machine.
    fn flags(&self) -> Vec<String> {
        let home = env::var_os("CARGO_HOME").map_or_else(
            || env::home_dir().unwrap_or_default().join(".cargo"),
            |home| workspace::root().join(PathBuf::from(home)),
        );
        let mut places = vec![(home.clone(), "/cargo".to_owned())];
        // The folder below has a name that varies with the protocol of the registry.
        for registry in workspace::entries(&home.join("registry/src")).unwrap_or_default() {
            places.push((registry, "/registry".to_owned()));
        }
        places.push((self.sysroot.join("lib/rustlib/src/rust"), "/rust".to_owned()));
        places.push((workspace::root(), "/coroner".to_owned()));
        // Of several that fit rustc takes the last.
        places.into_iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect()
    }
}
