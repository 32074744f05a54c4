//! One line in the system's log for each fallback. containerd reads the standard streams, so they
//! are not used.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::OFlags;

/// The socket of the system's log: syslog(3).
const DEV_LOG: &str = "/dev/log";
/// Facility daemon (3), severity warning (4): RFC 3164, 4.1.1.
const PRIORITY: u8 = 3 << 3 | 4;

/// Writes to the system's log, and to the file if there is one. Errors are ignored: a pod's start
/// never waits for its log.
pub(crate) fn line(message: &str, file: Option<&Path>) {
    let message = message.replace('\n', " ");
    let pid = std::process::id();
    if let Ok(socket) = UnixDatagram::unbound() {
        let sent = socket.set_nonblocking(true).and_then(|()| {
            let text = format!("<{PRIORITY}>containerd-shim-coroner-v2[{pid}]: {message}");
            socket.send_to(text.as_bytes(), DEV_LOG)
        });
        sent.ok();
    }
    // A pipe without a reader would block.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    if let Some(file) = file
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).custom_flags(flags).open(file)
    {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        file.write_all(format!("{now} containerd-shim-coroner-v2[{pid}]: {message}\n").as_bytes()).ok();
    }
}
