//! Containers without a runtime: a cgroup, and the test program as the init of a pid namespace in
//! it. Only the router publishes for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use coroner_tests::program;
use coroner_tests::scratch::Scratch;

const HIERARCHY: &str = "/sys/fs/cgroup/memory";
const LIMIT: &str = "33554432";

/// The cgroup that all of them are below, and the program they run.
#[derive(Debug)]
pub(crate) struct Root {
    scratch: Scratch,
    program: PathBuf,
}

impl Root {
    pub(crate) fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = Scratch::new()?;
        let program = scratch.path("oomtest");
        fs::write(&program, program::oomtest()?)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let root = Self { scratch, program };
        fs::create_dir(root.folder()).context("a cgroup of the v1 memory controller")?;
        Ok(root)
    }

    /// Its name below the hierarchy.
    pub(crate) fn name(&self) -> &str {
        self.scratch.name()
    }

    fn folder(&self) -> PathBuf {
        Path::new(HIERARCHY).join(self.scratch.name())
    }

    /// Starts a container.
    pub(crate) fn run(&self, id: &str, action: &str) -> Result<Child> {
        let folder = self.folder().join(id);
        fs::create_dir(&folder)?;
        for key in ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
            if folder.join(key).exists() {
                fs::write(folder.join(key), LIMIT)?;
            }
        }
        let enter = r#"echo $$ > "$0/cgroup.procs" && exec unshare --pid --fork --kill-child "$@""#;
        let mut command = Command::new("sh");
        command.args(["-c", enter]).arg(&folder).arg(&self.program).args(action.split(' '));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sh")
    }

    /// Removes a container's cgroup: the last of its processes may still be going.
    pub(crate) fn remove(&self, id: &str) -> bool {
        fs::remove_dir(self.folder().join(id)).is_ok()
    }

    pub(crate) fn is_there(&self, id: &str) -> bool {
        self.folder().join(id).is_dir()
    }
}
