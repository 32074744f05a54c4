//! Says that a pod starts without the router: to the system's log, and to a file where one is configured. Never to containerd.

use std::env;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;

use crate::config::Config;

/// Facility daemon, severity warning: syslog(3).
const PRIORITY: u8 = 3 << 3 | 4;
const SYSTEM: &str = "/dev/log";

/// The router is passed by.
pub(crate) fn passed_by(config: &Config, reason: &str) {
    let id = value_of("-id").unwrap_or_default();
    let line = format!(
        "the router is passed by, and the pod's deaths are told as without Coroner: container={id} socket={} because={reason}",
        config.socket.display()
    );
    // Where nobody listens there is nobody to tell that to either.
    if let Ok(socket) = UnixDatagram::unbound() {
        let nonblocking = socket.set_nonblocking(true);
        let message = format!("<{PRIORITY}>containerd-shim-coroner-v2: {line}");
        drop(nonblocking.and_then(|()| socket.send_to(message.as_bytes(), SYSTEM)));
    }
    if let Some(path) = &config.log
        && let Ok(mut file) = File::options().create(true).append(true).open(path)
    {
        drop(file.write_all(format!("{line}\n").as_bytes()));
    }
}

/// The value of one of containerd's own flags.
fn value_of(flag: &str) -> Option<String> {
    let mut arguments = env::args().skip_while(|it| it != flag);
    arguments.nth(1)
}
