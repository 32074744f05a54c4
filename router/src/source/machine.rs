//! Whether a guest's machine is gone for good, or only its link.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use coroner_proto::address::Address;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::time::Instant;

use super::calls::LinkError;
use crate::config;

/// A monitor that is known is looked at this often while its guest's link is down.
const LOOK: Duration = Duration::from_millis(100);

/// What is known of one guest's machine.
#[derive(Debug)]
pub(super) struct Machine {
    lost_after: Duration,
    monitor: Monitor,
    /// The link was up once, so that what is missing now was there.
    seen: bool,
    down_since: Option<Instant>,
}

#[derive(Debug)]
enum Monitor {
    Unknown,
    Running(OwnedFd),
    Ended(u32),
}

impl Machine {
    pub(super) fn new(known: &config::Machine) -> Self {
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

    /// Its link is up.
    pub(super) fn up(&mut self) {
        (self.seen, self.down_since) = (true, None);
    }

    /// Its link is down, or did not come up: why the machine is gone for good, if it is.
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
            return Some(format!("nobody is at its address any more: {error}"));
        }
        (down_since.elapsed() >= self.lost_after)
            .then(|| format!("its link was down for {}", humantime::format_duration(self.lost_after)))
    }

    /// Waits, and looks at the machine meanwhile: a guest that is to be dialled only after a while may be gone before. Answers why it is gone for good, if it is.
    async fn rest(&mut self, address: &Address, error: &LinkError, wait: Duration) -> Option<String> {
        let now = Instant::now();
        let mut gone = self.gone(address, error);
        // A guest that is held off is dialled once more before it counts as lost: it may well be there.
        let lost = self.down_since.map(|since| since + self.lost_after);
        let until = lost.map_or(now + wait, |lost| lost.min(now + wait));
        while gone.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let look = if matches!(self.monitor, Monitor::Running(_)) { LOOK } else { left };
            tokio::time::sleep(left.min(look)).await;
            if Instant::now() >= until {
                return None;
            }
            gone = self.gone(address, error);
        }
        gone
    }

    /// Whether it can never come again.
    pub(super) fn has_ended(&self) -> bool {
        match &self.monitor {
            Monitor::Ended(_) => true,
            Monitor::Running(monitor) => has_ended(monitor),
            Monitor::Unknown => false,
        }
    }
}

/// Waits before a link is dialled again: see [`Machine::rest`].
pub(super) async fn rest(
    machine: Option<&mut Machine>,
    address: &Address,
    error: &LinkError,
    wait: Duration,
) -> Option<String> {
    match machine {
        Some(machine) => machine.rest(address, error, wait).await,
        None => {
            tokio::time::sleep(wait).await;
            None
        }
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// A monitor's own socket, or the context id of its machine, is there for as long as the monitor. A unix socket alone is the agent's,
/// which may only be starting anew.
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
    async fn a_guest_that_is_held_off_is_not_dialled_the_sooner_for_its_monitor_being_watched() {
        let known = config::Machine {
            containers: None,
            monitor_pid: Some(std::process::id()),
            lost_after: Duration::from_secs(60),
        };
        let (mut machine, address) = (Machine::new(&known), "unix:///nowhere".parse().unwrap());
        machine.up();
        let error = LinkError::Order { seq: 1, after: 2 };
        let (begun, wait) = (Instant::now(), 3 * LOOK);
        assert_eq!(machine.rest(&address, &error, wait).await, None);
        assert!(begun.elapsed() >= wait);
    }

    #[tokio::test]
    async fn a_guest_that_is_held_off_is_dialled_once_more_before_it_is_lost() {
        let lost_after = Duration::from_millis(200);
        let known = config::Machine { containers: None, monitor_pid: None, lost_after };
        let (mut machine, address) = (Machine::new(&known), "unix:///nowhere".parse().unwrap());
        machine.up();
        let (begun, error) = (Instant::now(), LinkError::Order { seq: 1, after: 2 });
        assert_eq!(machine.rest(&address, &error, Duration::from_secs(600)).await, None);
        assert!(begun.elapsed() >= lost_after);
        let lost = machine.rest(&address, &error, Duration::from_secs(600)).await;
        assert_eq!(lost.as_deref(), Some("its link was down for 200ms"));
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_is_told_before_it_is_to_be_dialled_again() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let known = config::Machine {
            containers: None,
            monitor_pid: Some(child.id()),
            lost_after: Duration::from_secs(600),
        };
        let (mut machine, address) = (Machine::new(&known), "unix:///nowhere".parse().unwrap());
        machine.up();
        let error = LinkError::Order { seq: 1, after: 2 };
        let ends = std::thread::spawn(move || {
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let gone = machine.rest(&address, &error, Duration::from_secs(600)).await;
        assert_eq!(gone.as_deref(), Some("its monitor has ended"));
        ends.join().unwrap();
    }
}
