//! The place in front of a shim's socket: taken by a proxy that lives, or given to a new one.

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

/// As people see it in the list of processes.
const NAME: &str = "containerd-shim-coroner-v2";
/// A start has the folder for some milliseconds. Whoever keeps it longer is no start.
const LOCKED: Duration = Duration::from_secs(2);
const TRY_AGAIN: Duration = Duration::from_millis(5);
/// A new proxy dials one local socket and says so.
const READY: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// Whether a proxy listens there. One whose queue of connections is full does: waiting for it could take for ever.
pub(crate) fn lives(place: &Path) -> bool {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let dialled = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| connect(&socket, &SocketAddrUnix::new(place)?));
    matches!(dialled, Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS))
}

/// One start at a time in a folder: between a look at a socket and its removal another start could have made it anew. The folder itself
/// is locked, so that no file stays.
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

/// Puts a new proxy there, and returns once it has said that it runs. A socket that nobody listens on goes.
pub(crate) fn take(place: &Path, options: &Options) -> io::Result<()> {
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
    let pipe = child.stdout.as_ref().expect("it was asked for");
    poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&READY))?;
    // Readable at the end of the stream as well, and there is nothing to read then. Nothing comes after the byte.
    rustix::io::ioctl_fionread(pipe).map_err(io::Error::from).and_then(|count| match count {
        0 => Err(io::Error::other("the proxy did not come up")),
        _ => Ok(()),
    })
}
