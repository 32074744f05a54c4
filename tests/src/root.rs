//! Another Debian's programs: a mount namespace with a folder of that Debian as its root, kept by a
//! process that does nothing else.

use std::io::{PipeWriter, pipe};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::process::Process;

/// A dozen mounts.
const READY: Duration = Duration::from_secs(10);

/// Arguments: the folder, and the folder for temporary files. The folder is bound on itself because
/// pivot_root(2) accepts mount points alone, and read-only because runs share it. It is a root in
/// full, and not by chroot(2): a process that enters a container of it by setns(2), as an exec
/// does, would come out in the root that the chroot hides. It ends with its standard input: with
/// the test, however that ends.
const KEEPER: &str = r#"set -e
root=$1
mount --bind "$root" "$root"
for folder in /proc /sys /dev "$2"; do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
mount -o remount,bind,ro "$root"
mount -t tmpfs tmpfs "$root/run"
cd "$root"
pivot_root . mnt
umount -l /mnt
echo ready
read line
"#;

/// A root that programs can be started in. Dropped, its mounts are gone once what was started in it
/// has ended.
#[derive(Debug)]
pub struct Root {
    keeper: Process,
    _end: PipeWriter,
}

impl Root {
    /// Makes one of `folder`. In it are the host's /proc, /sys and /dev, an empty /run, and all of
    /// the folder for temporary files, under the same names: sockets and folders of this harness's
    /// other parts are where they are outside.
    pub async fn start(folder: &Path, log: &Path) -> Result<Self> {
        let (input, end) = pipe()?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-c", KEEPER, "sh"])
            .arg(folder)
            .arg(std::env::temp_dir());
        let keeper = Process::with_input("the other root", &mut command, Stdio::from(input), log)?;
        let mut root = Self { keeper, _end: end };
        root.keeper.wait_ready(READY).await?;
        Ok(root)
    }

    /// A command that runs `program` there, as the process that is started: nsenter(1) becomes it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.keeper.pid().to_string()).args(["--mount", "--root", "--wd"]);
        command.arg(program);
        command
    }
}
