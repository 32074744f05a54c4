//! Process connector: the kernel's events about processes that are not the agent's children.
//!
//! <linux/cn_proc.h> over a netlink socket. The kernel sends events only in the initial pid and
//! network namespaces. Elsewhere it accepts the subscription and does not answer, which is how it
//! is detected.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink, recvfrom, send, socket_with,
    sockopt,
};

/// Receive buffer in bytes. With the default of 208 KiB a stall of 2.5 s lost 656 of 2,000 exits,
/// with this size none.
const BUFFER: usize = 8 << 20;
/// struct nlmsghdr, struct cn_msg.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 20;
/// CN_IDX_PROC and CN_VAL_PROC; the first is the multicast group too.
const PROC: u32 = 1;
const LISTEN: u32 = 1;
const NONE: u32 = 0;
const FORK: u32 = 1;
const EXEC: u32 = 2;
const EXIT: u32 = 0x8000_0000;
/// Limit on processors with tracked sequence numbers. The kernel has at most as many: NR_CPUS.
const MAX_CPUS: u32 = 8192;
/// Timeout for the answer. It is queued before the subscription's send returns; this allows for a
/// busy kernel.
const ANSWER_TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Why process events are not available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectorError {
    #[error("cannot open the process connector: {0}")]
    Socket(#[from] Errno),
    #[error("the process connector does not answer: it works only in the initial pid and network namespaces")]
    Silent,
    #[error("the kernel refused the subscription to process events: error {0}")]
    Refused(u32),
}

/// One process event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProcessEvent {
    /// A process was forked or called exec.
    Started { pid: u32, is_exec: bool },
    /// A process has a new thread.
    Thread { pid: u32, thread: u32 },
    /// A thread of process `pid` ended. If it was the last, `code` is the status as wait(2) encodes
    /// it.
    Exit { pid: u32, thread: u32, code: u32 },
}

/// A subscription to process events.
#[derive(Debug)]
pub(crate) struct Connector {
    socket: OwnedFd,
    next: BTreeMap<u32, u32>,
    /// Events that the kernel dropped: a lower bound.
    lost: u64,
}

impl Connector {
    /// Subscribes, and waits for the kernel's confirmation.
    pub(crate) fn open() -> Result<Self, ConnectorError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(netlink::CONNECTOR))?;
        // Above the system's limit it needs CAP_NET_ADMIN; without it the buffer is smaller.
        sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, BUFFER))?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, PROC))?;
        // The answer goes to every listener and carries this number plus one, which identifies
        // ours.
        let request_id =
            std::process::id() ^ rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec as u32;
        send(&socket, &subscription(request_id), SendFlags::empty())?;
        let mut connector = Self { socket, next: BTreeMap::new(), lost: 0 };
        connector.await_answer(request_id)?;
        Ok(connector)
    }

    fn await_answer(&mut self, request_id: u32) -> Result<(), ConnectorError> {
        let mut buffer = [0; 512];
        loop {
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            if rustix::event::poll(&mut fds, Some(&ANSWER_TIMEOUT))? == 0 {
                return Err(ConnectorError::Silent);
            }
            let Some(length) = self.receive(&mut buffer)? else { continue };
            let Some(message) = Message::parse(&buffer[..length]) else { continue };
            if message.what == NONE && message.answers == request_id.wrapping_add(1) {
                return match message.word(0) {
                    Some(0) => Ok(()),
                    error => Err(ConnectorError::Refused(error.unwrap_or(0))),
                };
            }
        }
    }

    /// How many events the kernel dropped so far, at least.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// The next event that has come.
    pub(crate) fn next(&mut self) -> Option<ProcessEvent> {
        let mut buffer = [0; 512];
        loop {
            match self.receive(&mut buffer) {
                Ok(Some(length)) => {
                    let Some(message) = Message::parse(&buffer[..length]) else { continue };
                    self.count(&message);
                    if let Some(event) = message.event() {
                        return Some(event);
                    }
                }
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => self.lost += 1,
                Err(_) => return None,
            }
        }
    }

    /// Receives one message; none if it is not the kernel's, since any process can send to a
    /// netlink port.
    fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        let (length, _, from) = recvfrom(&self.socket, buffer, RecvFlags::empty())?;
        let from = from.and_then(|from| netlink::SocketAddrNetlink::try_from(from).ok());
        Ok(from.filter(|from| from.pid() == 0).map(|_| length))
    }

    /// Counts lost events: each processor numbers its events, and a gap is a loss.
    fn count(&mut self, message: &Message<'_>) {
        // Older kernels send answers to subscriptions without a processor number.
        if message.cpu >= MAX_CPUS {
            return;
        }
        let expected = self.next.insert(message.cpu, message.sequence.wrapping_add(1));
        let gap = expected.map_or(0, |expected| message.sequence.wrapping_sub(expected));
        // Half the range or more is a step back, not a loss.
        if gap < 1 << 31 {
            self.lost += u64::from(gap);
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn subscription(request_id: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADERS + 4);
    bytes.extend_from_slice(&(HEADERS as u32 + 4).to_ne_bytes());
    // NLMSG_DONE, no flags, sequence and port left to the kernel.
    bytes.extend_from_slice(&3_u16.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    for word in [PROC, PROC, 0, request_id] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(&4_u16.to_ne_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&LISTEN.to_ne_bytes());
    bytes
}

/// A parsed message. Fields of its data may be missing.
struct Message<'a> {
    sequence: u32,
    answers: u32,
    what: u32,
    cpu: u32,
    data: &'a [u8],
}

impl<'a> Message<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = |at| word(bytes, NETLINK_HEADER + at);
        if header(0)? != PROC || header(4)? != PROC {
            return None;
        }
        let event = bytes.get(HEADERS..)?;
        // what, cpu, then the time in nanoseconds.
        let data = event.get(16..)?;
        Some(Self {
            sequence: header(8)?,
            answers: header(12)?,
            what: word(event, 0)?,
            cpu: word(event, 4)?,
            data,
        })
    }

    fn word(&self, index: usize) -> Option<u32> {
        word(self.data, 4 * index)
    }

    /// The event. Data words of an exit: thread, process, code; of a fork: the parent's thread and
    /// process, then the child's.
    fn event(&self) -> Option<ProcessEvent> {
        match self.what {
            FORK => {
                let (thread, pid) = (self.word(2)?, self.word(3)?);
                Some(if thread == pid {
                    ProcessEvent::Started { pid, is_exec: false }
                } else {
                    ProcessEvent::Thread { pid, thread }
                })
            }
            EXEC => Some(ProcessEvent::Started { pid: self.word(1)?, is_exec: true }),
            EXIT => {
                let (thread, pid, code) = (self.word(0)?, self.word(1)?, self.word(2)?);
                Some(ProcessEvent::Exit { pid, thread, code })
            }
            _ => None,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(what: u32, cpu: u32, sequence: u32, words: &[u32]) -> Vec<u8> {
        let mut bytes = vec![0; NETLINK_HEADER];
        for word in [PROC, PROC, sequence, 0, 0, what, cpu, 0, 0].iter().chain(words) {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn truncated_events_are_rejected() {
        let whole = message(EXIT, 1, 7, &[41, 40, 0x300, 17]);
        assert_eq!(
            Message::parse(&whole).unwrap().event(),
            Some(ProcessEvent::Exit { pid: 40, thread: 41, code: 0x300 })
        );
        let exec = message(EXEC, 0, 0, &[5, 5]);
        assert_eq!(
            Message::parse(&exec).unwrap().event(),
            Some(ProcessEvent::Started { pid: 5, is_exec: true })
        );
        let fork = message(FORK, 0, 0, &[5, 5, 6, 6]);
        assert_eq!(
            Message::parse(&fork).unwrap().event(),
            Some(ProcessEvent::Started { pid: 6, is_exec: false })
        );
        let thread = message(FORK, 0, 0, &[5, 5, 6, 5]);
        let event = ProcessEvent::Thread { pid: 5, thread: 6 };
        assert_eq!(Message::parse(&thread).unwrap().event(), Some(event));
        for length in 0..HEADERS + 16 + 12 {
            assert_eq!(Message::parse(&whole[..length]).and_then(|it| it.event()), None, "{length}");
        }
        assert_eq!(Message::parse(&message(4, 0, 0, &[1, 2, 3, 4])).unwrap().event(), None);
        let mut other = whole;
        other[NETLINK_HEADER] ^= 2;
        assert!(Message::parse(&other).is_none());
    }

    #[test]
    fn lost_events_counted_per_processor() {
        let socket = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let mut connector = Connector { socket, next: BTreeMap::new(), lost: 0 };
        for (cpu, sequence) in
            [(0, u32::MAX), (1, 5), (0, 0), (1, 9), (0, 1), (u32::MAX, 77), (1, 10), (1, 8), (1, 9)]
        {
            connector.count(&Message::parse(&message(EXIT, cpu, sequence, &[])).unwrap());
        }
        assert_eq!(connector.lost(), 3);
    }

    #[test]
    fn exit_event_carries_status_of_child() {
        let mut connector = Connector::open().expect("process events: root in the initial namespaces");
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let handle = crate::process::open(child.id()).unwrap();
        let mut codes = Vec::new();
        while codes.is_empty() {
            let mut fds = [PollFd::new(&connector, PollFlags::IN)];
            assert!(rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 10, tv_nsec: 0 })).unwrap() > 0);
            while let Some(event) = connector.next() {
                match event {
                    ProcessEvent::Exit { pid, code, .. } if pid == child.id() => codes.push(code),
                    _ => {}
                }
            }
        }
        assert_eq!(codes, [7 << 8]);
        assert!(crate::process::has_ended(&handle));
        child.wait().unwrap();
    }
}
