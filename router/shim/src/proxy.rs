//! The proxy of one shim: it listens beside the inner shim's socket until that shim has ended.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::link::{ProxyState, carry};
use crate::outbox::Outbox;
use crate::processes::ProcessTable;
use crate::router::RouterClient;

/// I/O events that tokio processes at once. Its own default takes 12 KiB.
const IO_EVENTS: usize = 64;
/// Delay after a failed accept or connect. Without descriptors both fail at once, again and again.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Drain timeout of the outbox once the shim has ended.
const OUTBOX_DRAIN: Duration = Duration::from_secs(1);
/// Signals that must not end a proxy: containerd would consider the shim dead, and kill the
/// container.
const IGNORED: [i32; 3] =
    [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP];

/// The proxy's command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The inner shim's socket.
    pub(crate) inner: PathBuf,
    /// The router's socket.
    pub(crate) router: PathBuf,
    /// Timeout of a hold.
    pub(crate) hold: Duration,
    /// containerd's namespace.
    pub(crate) namespace: String,
    /// Id of the container that this proxy was started with, for the list of processes.
    pub(crate) id: String,
}

impl Options {
    /// The arguments, without the program's name.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let hold = self.hold.as_millis().to_string();
        let mut arguments: Vec<OsString> = vec!["proxy".into(), "--inner".into(), self.inner.clone().into()];
        arguments.extend(["--router".into(), self.router.clone().into(), "--hold-ms".into(), hold.into()]);
        arguments.extend(["-namespace", &self.namespace, "-id", &self.id].map(OsString::from));
        arguments
    }

    /// Parses the result of [`Options::arguments`], without the first argument.
    pub(crate) fn parse(arguments: &[OsString]) -> Option<Self> {
        let value = |name: &str| {
            let pair = arguments.chunks_exact(2).find(|pair| pair[0] == *name)?;
            Some(pair[1].clone())
        };
        Some(Self {
            inner: value("--inner")?.into(),
            router: value("--router")?.into(),
            hold: Duration::from_millis(value("--hold-ms")?.to_str()?.parse().ok()?),
            namespace: value("-namespace")?.to_string_lossy().into_owned(),
            id: value("-id")?.to_string_lossy().into_owned(),
        })
    }
}

/// Runs until the shim has ended. The listening socket is standard input; a byte on standard output
/// reports that the proxy is ready.
pub(crate) fn run(options: &Options) -> io::Result<()> {
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let place =
        listener.local_addr()?.as_pathname().map(Path::to_owned).ok_or(io::ErrorKind::InvalidInput)?;
    listener.set_nonblocking(true)?;
    // Without a session of its own it would receive the signals of containerd's terminal. The call
    // fails for a process group leader, which does not need it.
    rustix::process::setsid().ok();
    for signal in IGNORED {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_io_events_per_tick(IO_EVENTS)
        .build()?;
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener)?;
        let lifeline = UnixStream::connect(&options.inner).await?;
        io::stdout().write_all(b"+")?;
        io::stdout().flush()?;
        rustix::stdio::dup2_stdout(&null)?;
        drop(null);
        serve(options, listener, &place, lifeline).await;
        Ok(())
    })
}

async fn serve(options: &Options, listener: UnixListener, place: &Path, lifeline: UnixStream) {
    let own = inode(place);
    let router = Arc::new(RouterClient::new(&options.router));
    let proxy_id = random();
    let outbox = Arc::new(Outbox::new(options.namespace.clone(), proxy_id.clone(), Arc::clone(&router)));
    let processes = ProcessTable::new(options.namespace.clone(), options.hold, router, Arc::clone(&outbox));
    let (processes, kills) = (Arc::new(processes), AtomicU64::new(0));
    let shared = Arc::new(ProxyState { processes, outbox: Arc::clone(&outbox), proxy_id, kills });
    let inner: Arc<Path> = Arc::from(options.inner.as_path());
    let (mut links, mut senders) = (JoinSet::new(), JoinSet::new());
    senders.spawn(Arc::clone(&outbox).run());
    let mut ended = std::pin::pin!(ended(lifeline, &options.inner));
    loop {
        tokio::select! {
            () = &mut ended => break,
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let (inner, shared) = (Arc::clone(&inner), Arc::clone(&shared));
                    links.spawn(async move { carry(client, &inner, &shared).await.ok() });
                }
                Err(_) => sleep(AFTER_FAILURE).await,
            },
            // A panic ends only one connection; the outbox's task is restarted.
            Some(_) = links.join_next() => {}
            Some(_) = senders.join_next() => {
                senders.spawn(Arc::clone(&outbox).run());
            }
        }
    }
    // First of all, so that a new connection fails at once: the shim has ended.
    if own.is_some() && inode(place) == own {
        fs::remove_file(place).ok();
    }
    drop(listener);
    // containerd removes only the socket that it knows, the proxy's.
    if UnixStream::connect(&options.inner).await.is_err_and(|error| gone(&error)) {
        fs::remove_file(&options.inner).ok();
    }
    // The shim has ended its connections; held replies are sent before the clients' connections
    // end.
    timeout(options.hold, async { while links.join_next().await.is_some() {} }).await.ok();
    links.shutdown().await;
    timeout(OUTBOX_DRAIN, outbox.drained()).await.ok();
}

/// Resolves when the inner shim's socket has no listener any more. An idle connection detects that;
/// it may also end for other reasons.
async fn ended(mut lifeline: UnixStream, inner: &Path) {
    loop {
        let mut buffer = [0; 64];
        while matches!(lifeline.read(&mut buffer).await, Ok(1..)) {}
        lifeline = loop {
            match UnixStream::connect(inner).await {
                Ok(stream) => break stream,
                Err(error) if gone(&error) => return,
                Err(_) => sleep(AFTER_FAILURE).await,
            }
        };
        // Without the delay a shim that accepts and closes connections at once would make the proxy
        // spin.
        sleep(AFTER_FAILURE).await;
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

/// 64 bits as text.
fn random() -> String {
    let mut bytes = [0; 8];
    // Never blocks and never fails once a machine is up. Otherwise the pid, with the clock in the
    // request, still distinguishes proxies.
    let seeded = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).is_ok();
    if !seeded {
        bytes = u64::from(std::process::id()).to_be_bytes();
    }
    format!("{:016x}", u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_round_trip_through_arguments() {
        let options = Options {
            inner: "/run/a".into(),
            router: "/run/b".into(),
            hold: Duration::from_millis(1_500),
            namespace: "-id".into(),
            id: "--inner".into(),
        };
        assert_eq!(Options::parse(&options.arguments()[1..]), Some(options));
        assert_eq!(Options::parse(&["--inner".into()]), None);
    }
}
