//! The proxy's socket beside a shim's: detects a live proxy, and starts a new one where there is
//! none.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::proxy::Options;

/// The name in the process list.
const NAME: &str = "containerd-shim-coroner-v2";
/// Timeout for the folder's lock, which a start holds for some milliseconds. Without it, another
/// program that keeps the lock would block every pod's start.
const LOCKED: Duration = Duration::from_secs(2);
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// Timeout for a new proxy, which connects to one local socket and then reports that it is ready.
const READY: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Whether a proxy listens there. A full connection queue counts as live: to wait for it could
/// block without end.
pub(crate) fn is_live(place: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let dialled = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(place)?));
    matches!(dialled, Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS))
}

/// Serializes the starts in a folder: between the check of a socket and its removal another start
/// could have created it anew. The folder itself is locked, so that no lock file is left behind.
pub(crate) fn lock(place: &Path) -> io::Result<File> {
    let folder = OpenOptions::new().read(true).open(place.parent().unwrap_or(Path::new("/")))?;
    let begun = Instant::now();
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCKED => sleep(TRY_AGAIN),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Starts a new proxy and returns once it has reported that it is ready. A socket without a
/// listener is removed.
pub(crate) fn start_proxy(place: &Path, options: &Options) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(place);
    rustix::process::umask(before);
    let started = bound.and_then(|listener| {
        let mut child = spawn(listener, options)?;
        ready(&child).inspect_err(|_| {
            child.kill().ok();
            child.wait().ok();
        })
    });
    if started.is_err() {
        fs::remove_file(place).ok();
    }
    started
}

fn spawn(listener: UnixListener, options: &Options) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0(NAME)
        .args(options.arguments())
        .current_dir("/")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

fn ready(child: &Child) -> io::Result<()> {
    let pipe = child.stdout.as_ref().expect("spawn pipes standard output");
    poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&READY))?;
    // Also readable at the end of the stream, with nothing to read. The proxy writes one byte and
    // no more.
    rustix::io::ioctl_fionread(pipe).map_err(io::Error::from).and_then(|count| match count {
        0 => Err(io::Error::other("the proxy did not come up")),
        _ => Ok(()),
    })
}
