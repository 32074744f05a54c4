//! The proxy of one shim: it listens in front of the inner shim's socket until that shim is gone.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::link::{Shared, carry};
use crate::news::News;
use crate::processes::Processes;
use crate::router::Router;
use crate::start::failed;

/// Sources that tokio hears of at once. Its own default takes 12 KiB.
const IO_EVENTS: usize = 64;
/// Out of descriptors, accept fails at once and again at once; and so may a connection to the inner shim.
const AFTER_FAILURE: Duration = Duration::from_millis(50);
/// Once the shim is gone, what is still to be told to the router has this long.
const LAST_NEWS: Duration = Duration::from_secs(1);
/// What ends others must not end a proxy: containerd would take the shim for dead, and kill the container.
const IGNORED: [i32; 3] =
    [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP];

/// What a proxy is told on its command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The inner shim's socket.
    pub(crate) inner: PathBuf,
    /// The router's.
    pub(crate) router: PathBuf,
    /// How long a reply may be held.
    pub(crate) hold: Duration,
    /// containerd's.
    pub(crate) namespace: String,
    /// Of the container whose start made this proxy; for people who look at the list of processes.
    pub(crate) id: String,
}

impl Options {
    /// The command line, after the command's name.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let hold = self.hold.as_millis().to_string();
        let mut arguments: Vec<OsString> = vec!["proxy".into(), "--inner".into(), self.inner.clone().into()];
        arguments.extend(["--router".into(), self.router.clone().into(), "--hold-ms".into(), hold.into()]);
        arguments.extend(["-namespace", &self.namespace, "-id", &self.id].map(OsString::from));
        arguments
    }

    /// Reads what [`Options::arguments`] writes, without the first.
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

/// Runs until the shim is gone. The listening socket is standard input; a byte on standard output says that the proxy is there.
pub(crate) fn run(options: &Options) -> ExitCode {
    match prepared(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&format!("the proxy cannot run: {error}")),
    }
}

fn prepared(options: &Options) -> io::Result<()> {
    let listener = StdListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let place =
        listener.local_addr()?.as_pathname().map(Path::to_owned).ok_or(io::ErrorKind::InvalidInput)?;
    listener.set_nonblocking(true)?;
    // A session of its own, or the signals of containerd's terminal were its too. Who leads a group already cannot, and need not.
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
    let router = Arc::new(Router::new(&options.router));
    let news = Arc::new(News::new(options.namespace.clone(), Arc::clone(&router)));
    let processes = Processes::new(options.namespace.clone(), options.hold, router, Arc::clone(&news));
    let (processes, kills) = (Arc::new(processes), AtomicU64::new(0));
    let shared = Arc::new(Shared { processes, news: Arc::clone(&news), proxy_id: random(), kills });
    let inner: Arc<Path> = Arc::from(options.inner.as_path());
    let (mut links, mut tellers) = (JoinSet::new(), JoinSet::new());
    tellers.spawn(Arc::clone(&news).run());
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
            // One that panicked costs its connection, or is begun again.
            Some(_) = links.join_next() => {}
            Some(_) = tellers.join_next() => {
                tellers.spawn(Arc::clone(&news).run());
            }
        }
    }
    // First of all, so that whoever dials anew learns at once that there is no shim.
    if own.is_some() && inode(place) == own {
        fs::remove_file(place).ok();
    }
    drop(listener);
    // containerd removes the socket that it knows, which is the proxy's.
    if UnixStream::connect(&options.inner).await.is_err_and(|error| gone(&error)) {
        fs::remove_file(&options.inner).ok();
    }
    // The shim has ended its connections; replies that are held are told before theirs end.
    timeout(options.hold, async { while links.join_next().await.is_some() {} }).await.ok();
    links.shutdown().await;
    timeout(LAST_NEWS, news.told()).await.ok();
}

/// Resolves when nobody listens on the inner shim's socket any more. One idle connection says so; it may end for other reasons.
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
        // A shim that takes connections and ends them at once would have the proxy spin.
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
    // Never waits and never fails once a machine is up; if it did, the pid and the clock in the request still tell proxies apart.
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
    fn the_command_line_is_read_as_it_is_written() {
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
