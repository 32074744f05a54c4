//! A guest: QEMU without KVM, Debian's kernel, a real virtio-vsock, and a shell for the test.
//!
//! The host reaches it as it reaches a guest of Firecracker or Cloud Hypervisor: through a unix
//! socket, by CONNECT.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::binary;
use crate::initramfs::Initramfs;
use crate::process::Process;
use crate::program;
use crate::scratch::Scratch;
use crate::wait::until;

/// It takes 4 s on an idle machine.
const BOOT: Duration = Duration::from_secs(120);
/// One command in a guest without KVM, on a busy machine.
const COMMAND: Duration = Duration::from_secs(300);
/// A link may take some tries.
const LINK: Duration = Duration::from_secs(60);
/// Where the guest's shell listens.
const SHELL: u32 = 9000;
/// In the order they need each other.
const MODULES: [&str; 10] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/vmw_vsock/vsock.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko",
    "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
    "net/vmw_vsock/vsock_loopback.ko",
    "fs/overlayfs/overlay.ko",
];

/// The first CID that is a guest's: vsock(7). CIDs are unique per machine, so the pid keeps those
/// of other test processes apart.
static NEXT_CID: AtomicU32 = AtomicU32::new(3);

/// A running guest. Dropped, it is ended.
#[derive(Debug)]
pub struct Vm {
    qemu: Option<Process>,
    vsock: Option<Process>,
    scratch: Scratch,
}

/// What a command in a guest answered.
#[derive(Debug)]
pub struct Answer {
    /// What it printed, to standard output and standard error.
    pub text: String,
    /// Its exit status.
    pub status: i32,
}

/// The folder that `cargo xtask guest` fills.
fn parts() -> Result<PathBuf> {
    let parts = binary::target("guest")?.join("parts");
    ensure!(
        parts.join("coroner-agent").exists(),
        "{} is missing: run `cargo xtask guest` first",
        parts.display()
    );
    Ok(parts)
}

/// The agent as it is built for guests.
pub fn static_agent() -> Result<PathBuf> {
    Ok(fs::canonicalize(parts()?.join("coroner-agent"))?)
}

fn only_entry(folder: &Path, starts: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let found = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(starts));
    Ok(found.with_context(|| format!("no {starts}* in {}", folder.display()))?.path())
}

impl Vm {
    /// Boots a guest with `init` as pid 1, a shell command that ends in `exec`; in it are /agent,
    /// /guest and /oomtest, and what `more` adds. Returns once its shell answers.
    pub async fn boot(init: &str, more: impl FnOnce(&mut Initramfs) -> Result<()>) -> Result<Self> {
        Self::start(&start_up(init), more).await
    }

    /// The same with an init of its own, unchanged: nothing is mounted before it, and only the
    /// modules are loaded. It is to start /sbin/coroner-agent and with it /sbin/guest-main, which
    /// is the shell.
    pub async fn boot_image(init: &str, more: impl FnOnce(&mut Initramfs) -> Result<()>) -> Result<Self> {
        Self::start(&load_only(), |files| {
            files.file("init.image", init.as_bytes());
            files.file("sbin/coroner-agent", &fs::read(static_agent()?)?);
            files.file("sbin/guest-main", format!("#!/bin/sh\nexec /guest serve {SHELL}\n").as_bytes());
            more(files)
        })
        .await
    }

    async fn start(init: &str, more: impl FnOnce(&mut Initramfs) -> Result<()>) -> Result<Self> {
        let (parts, scratch) = (parts()?, Scratch::new()?);
        let kernel = fs::canonicalize(parts.join("kernel"))?;
        let modules = only_entry(&kernel.join("lib/modules"), "")?.join("kernel");
        let mut archive = Initramfs::default();
        for folder in ["dev", "proc", "sys", "tmp", "run", "mnt", "root", "bin", "sbin"] {
            archive.folder(folder);
        }
        archive.file("bin/busybox", &fs::read("/bin/busybox").context("busybox-static")?);
        archive.link("bin/sh", "busybox");
        for module in MODULES {
            let name = module.rsplit('/').next().context("a path")?;
            archive.file(&format!("modules/{name}"), &fs::read(modules.join(module))?);
        }
        archive.file("agent", &fs::read(parts.join("coroner-agent"))?);
        archive.file("guest", program::guest()?);
        archive.file("oomtest", program::oomtest()?);
        archive.file("init", init.as_bytes());
        more(&mut archive)?;
        fs::write(scratch.path("initramfs"), archive.finish())?;

        let cid = NEXT_CID.fetch_add(1, Ordering::Relaxed) + (std::process::id() << 4);
        let (user, guest) = (scratch.path("vhost.sock"), scratch.path("vm.vsock"));
        let vm = format!("guest-cid={cid},socket={},uds-path={}", user.display(), guest.display());
        let daemon = fs::canonicalize(parts.join("vhost-device-vsock"))?;
        let mut command = Command::new(daemon);
        command.args(["--vm", &vm]);
        let mut vsock = Process::start("vhost-device-vsock", &mut command, &scratch.path("vsock.log"))?;
        until("vhost-device-vsock to listen", BOOT, async || {
            vsock.check_running()?;
            Ok(user.exists().then_some(()))
        })
        .await?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "512"])
            .args(["-object", "memory-backend-memfd,id=mem0,size=512M,share=on", "-numa", "node,memdev=mem0"])
            .args(["-chardev", &format!("socket,id=vs,path={}", user.display())])
            .args(["-device", "vhost-user-vsock-pci,chardev=vs"])
            .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio", "-kernel"])
            .arg(only_entry(&kernel.join("boot"), "vmlinuz-")?)
            .arg("-initrd")
            .arg(scratch.path("initramfs"))
            // no_timer_check: the kernel panics if the emulated timer is late, on a busy host.
            .args(["-append", "console=ttyS0 quiet panic=-1 psi=1 no_timer_check"]);
        let qemu = Process::start("qemu", &mut command, &scratch.path("console.log"))?;
        let mut vm = Self { qemu: Some(qemu), vsock: Some(vsock), scratch };
        until("the guest's shell to answer", BOOT, async || {
            vm.qemu.as_mut().context("it was just started")?.check_running()?;
            Ok(vm.sh("true").ok().filter(|answer| answer.status == 0))
        })
        .await?;
        Ok(vm)
    }

    /// Runs a shell command in the guest.
    pub fn sh(&self, command: &str) -> Result<Answer> {
        self.sh_at(SHELL, command)
    }

    /// Runs it in the shell on another port: it may have another parent.
    pub fn sh_at(&self, port: u32, command: &str) -> Result<Answer> {
        let begun = Instant::now();
        // The guest may be too busy to take it at once: nothing was run then.
        let mut link = loop {
            let sent = self.connect(port).and_then(|mut link| {
                link.set_read_timeout(Some(COMMAND))?;
                link.write_all(format!("{}\n", command.replace('\n', "; ")).as_bytes())?;
                Ok(link)
            });
            match sent {
                Ok(link) => break link,
                Err(error) if begun.elapsed() > LINK => {
                    return Err(error).context("a link to the guest's shell");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        let mut text = String::new();
        link.read_to_string(&mut text).with_context(|| format!("an answer to `{command}`"))?;
        let Some((text, status)) = text.rsplit_once("\n#exit ") else {
            bail!("`{command}` answered `{text}`")
        };
        Ok(Answer { text: text.to_owned(), status: status.trim().parse()? })
    }

    /// Runs it, and fails unless it ends with 0.
    pub fn must(&self, command: &str) -> Result<String> {
        self.must_at(SHELL, command)
    }

    /// The same on another port.
    pub fn must_at(&self, port: u32, command: &str) -> Result<String> {
        let answer = self.sh_at(port, command)?;
        ensure!(answer.status == 0, "`{command}` ended with {}: {}", answer.status, answer.text);
        Ok(answer.text)
    }

    /// Resumes a container with a program that runs `await`.
    pub fn go_on(&self, root: &str, id: &str) -> Result<()> {
        let procs = format!("/sys/fs/cgroup/{root}/{id}/cgroup.procs");
        // It must wait for the signal before it comes: rt_sigtimedwait is 128.
        let waits = "grep -q '^128 ' /proc/$pid/syscall";
        self.must(&format!("pid=$(cat {procs}); until {waits}; do sleep 0.05; done; kill -USR1 $pid"))?;
        Ok(())
    }

    /// Waits until something listens on the guest's port.
    pub async fn listens(&self, port: u32) -> Result<()> {
        until("a port of the guest", BOOT, async || Ok(self.connect(port).ok().map(drop))).await
    }

    fn connect(&self, port: u32) -> Result<UnixStream> {
        let mut link = UnixStream::connect(self.socket())?;
        link.set_read_timeout(Some(Duration::from_secs(10)))?;
        // In one write: the daemon reads once, and ends a link on which it finds half a line.
        link.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut byte = [0];
        let mut line = String::new();
        while !line.ends_with('\n') {
            link.read_exact(&mut byte)?;
            line.push(byte[0].into());
        }
        ensure!(line.starts_with("OK "), "{line}");
        Ok(link)
    }

    /// The unix socket behind which the guest's ports are.
    pub fn socket(&self) -> PathBuf {
        self.scratch.path("vm.vsock")
    }

    /// The address of a port in it.
    pub fn address(&self, port: u32) -> String {
        format!("hvsock://{}:{port}", self.socket().display())
    }

    /// The process of its machine.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.qemu.as_ref().context("it was killed")?.pid())
    }

    /// Ends the machine at once. The socket to its ports stays, as it does where another process
    /// than the monitor has it.
    pub fn kill(&mut self) -> Result<()> {
        self.qemu.take().context("it was killed")?.kill()?;
        Ok(())
    }

    /// Ends the machine and the process that owns its socket, as where that is the monitor itself.
    pub fn kill_with_socket(&mut self) -> Result<()> {
        self.kill()?;
        self.vsock.take().context("it was killed")?.kill()?;
        Ok(())
    }
}

fn load() -> String {
    let names = MODULES.iter().map(|module| module.rsplit('/').next().unwrap_or(module));
    names.map(|name| format!("insmod /modules/{name}\n")).collect()
}

/// What comes before an init that does the rest itself.
fn load_only() -> String {
    format!(
        "#!/bin/sh\n\
         /bin/busybox mount -t proc none /proc\n\
         /bin/busybox --install -s /bin\n\
         {}\
         umount /proc\n\
         exec /init.image\n",
        load()
    )
}

fn start_up(init: &str) -> String {
    format!(
        "#!/bin/sh\n\
         /bin/busybox --install -s /bin\n\
         mount -t proc none /proc\n\
         mount -t sysfs none /sys\n\
         mount -t devtmpfs none /dev\n\
         mount -t cgroup2 none /sys/fs/cgroup\n\
         echo '+memory +cpu +io +pids' > /sys/fs/cgroup/cgroup.subtree_control\n\
         for name in reaped watched apart; do mkdir /sys/fs/cgroup/$name; echo '+memory +cpu +io' > /sys/fs/cgroup/$name/cgroup.subtree_control; done\n\
         {}\
         {init}\n",
        load()
    )
}
