//! VM liveness: whether a guest's VM is gone for good, or only its link.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use coroner_transport::Address;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::Instant;

use super::agent_client::rpc::LinkError;
use crate::settings;

/// Poll interval of a known monitor process while its guest's link is down.
const POLL: Duration = Duration::from_millis(100);

/// Liveness of one guest's VM.
#[derive(Debug)]
pub(super) struct VmLiveness {
    lost_after: Duration,
    monitor: Monitor,
    /// The link was up once, so what is missing now existed.
    seen: bool,
    down_since: Option<Instant>,
}

#[derive(Debug)]
enum Monitor {
    Unknown,
    Running(OwnedFd),
    Ended(u32),
}

impl VmLiveness {
    pub(super) fn new(known: &settings::Machine) -> Self {
        let open = |pid: u32| {
            let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
            pidfd_open(pid, PidfdFlags::empty()).ok()
        };
        let monitor = match known.monitor_pid {
            None => Monitor::Unknown,
            Some(pid) => open(pid).map_or(Monitor::Ended(pid), Monitor::Running),
        };
        Self { lost_after: known.lost_after, monitor, seen: false, down_since: None }
    }

    /// The link is up.
    pub(super) fn up(&mut self) {
        (self.seen, self.down_since) = (true, None);
    }

    /// Called while the link is down. Returns why the VM is gone for good, if it is.
    fn gone(&mut self, address: &Address, error: &LinkError) -> Option<String> {
        let ended = match &self.monitor {
            Monitor::Ended(pid) => Some(format!("its monitor, process {pid}, is not there")),
            Monitor::Running(monitor) => has_ended(monitor).then(|| "its monitor has ended".to_owned()),
            Monitor::Unknown => None,
        };
        if ended.is_some() || !self.seen {
            return ended;
        }
        let down_since = *self.down_since.get_or_insert_with(Instant::now);
        if let LinkError::Connect(error) = error
            && is_final(address, error)
        {
            return Some(format!("its address is gone: {error}"));
        }
        (down_since.elapsed() >= self.lost_after)
            .then(|| format!("its link was down for {}", humantime::format_duration(self.lost_after)))
    }

    /// Waits for the back-off and polls the monitor meanwhile: the VM may end during a long
    /// back-off. Returns why the VM is gone for good, if it is.
    async fn wait(&mut self, address: &Address, error: &LinkError, delay: Duration) -> Option<String> {
        let now = Instant::now();
        let mut gone = self.gone(address, error);
        // A guest in back-off is dialled once more before it counts as lost: it may be alive.
        let lost = self.down_since.map(|since| since + self.lost_after);
        let until = lost.map_or(now + delay, |lost| lost.min(now + delay));
        while gone.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let poll = if matches!(self.monitor, Monitor::Running(_)) { POLL } else { left };
            tokio::time::sleep(left.min(poll)).await;
            if Instant::now() >= until {
                return None;
            }
            gone = self.gone(address, error);
        }
        gone
    }

    /// Whether the VM can never return.
    pub(super) fn has_ended(&self) -> bool {
        match &self.monitor {
            Monitor::Ended(_) => true,
            Monitor::Running(monitor) => has_ended(monitor),
            Monitor::Unknown => false,
        }
    }
}

/// Waits before the next connection attempt: see [`VmLiveness::wait`].
pub(super) async fn wait_while_down(
    liveness: Option<&mut VmLiveness>,
    address: &Address,
    error: &LinkError,
    delay: Duration,
) -> Option<String> {
    match liveness {
        Some(liveness) => liveness.wait(address, error, delay).await,
        None => {
            tokio::time::sleep(delay).await;
            None
        }
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// Whether the error proves that the VM is gone. The monitor's own socket, and the VM's context id,
/// exist for as long as the monitor. A unix socket is the agent's, which may only be restarting.
fn is_final(address: &Address, error: &io::Error) -> bool {
    match address {
        Address::Hvsock { .. } => {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        }
        Address::Vsock { .. } => error.raw_os_error() == Some(Errno::NODEV.raw_os_error()),
        Address::Unix(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn backoff_keeps_its_delay_while_monitor_runs() {
        let known = settings::Machine {
            containers: None,
            monitor_pid: Some(std::process::id()),
            lost_after: Duration::from_secs(60),
        };
        let (mut liveness, address) = (VmLiveness::new(&known), "unix:///nowhere".parse().unwrap());
        liveness.up();
        let error = LinkError::Order { seq: 1, after: 2 };
        let (begun, delay) = (Instant::now(), 3 * POLL);
        assert_eq!(liveness.wait(&address, &error, delay).await, None);
        assert!(begun.elapsed() >= delay);
    }

    #[tokio::test]
    async fn guest_in_backoff_dialled_once_more_before_lost() {
        let lost_after = Duration::from_millis(200);
        let known = settings::Machine { containers: None, monitor_pid: None, lost_after };
        let (mut liveness, address) = (VmLiveness::new(&known), "unix:///nowhere".parse().unwrap());
        liveness.up();
        let (begun, error) = (Instant::now(), LinkError::Order { seq: 1, after: 2 });
        assert_eq!(liveness.wait(&address, &error, Duration::from_secs(600)).await, None);
        assert!(begun.elapsed() >= lost_after);
        let lost = liveness.wait(&address, &error, Duration::from_secs(600)).await;
        assert_eq!(lost.as_deref(), Some("its link was down for 200ms"));
    }

    #[tokio::test]
    async fn vm_gone_reported_during_backoff() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let known = settings::Machine {
            containers: None,
            monitor_pid: Some(child.id()),
            lost_after: Duration::from_secs(600),
        };
        let (mut liveness, address) = (VmLiveness::new(&known), "unix:///nowhere".parse().unwrap());
        liveness.up();
        let error = LinkError::Order { seq: 1, after: 2 };
        let ends = std::thread::spawn(move || {
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let gone = liveness.wait(&address, &error, Duration::from_secs(600)).await;
        assert_eq!(gone.as_deref(), Some("its monitor has ended"));
        ends.join().unwrap();
    }
}
