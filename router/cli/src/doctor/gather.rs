//! Gathers facts of the machine: files, sockets and /proc. It changes nothing and judges nothing.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use coroner::node::config::{Config, Source, SourceKind};
use coroner::node::unwatched;
use coroner_shim_config::{VARIABLE, WrapperName};
use coroner_transport::Address;
use rustix::fs::{Access, access};
use tokio::net::UnixStream;

use super::containerd::{Configuration, Runtime};
use super::facts::{Cgroup, Daemon, Facts, Program, RouterFacts, Socket, SourceFacts};
use super::hello::hello;
use super::shims;
use super::wrapper::{self, Wrapper};
use crate::args::Doctor;
use crate::serve::read;

/// containerd's own default.
const ADDRESS: &str = "/run/containerd/containerd.sock";

/// Fails only without a runtime.
pub(super) fn all(options: &Doctor) -> Result<Facts, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(gather(options))
}

async fn gather(options: &Doctor) -> Result<Facts, String> {
    let config = read(&options.config).map_err(|error| error.to_string().trim_end().to_owned());
    let configuration = Configuration::read(&options.containerd_config);
    let listens = configuration.as_ref().ok().and_then(|it| it.address.clone());
    let configured = config.as_ref().ok().and_then(|config| config.containerd.as_ref()?.address.clone());
    let address = listens.or(configured).unwrap_or_else(|| ADDRESS.into());
    let ttrpc = configuration.as_ref().ok().and_then(|it| it.ttrpc.clone());
    let ttrpc = ttrpc.unwrap_or_else(|| format!("{}.ttrpc", address.display()).into());
    let pid = server(&address).await;
    let containerd = Daemon {
        version: coroner_containerd::version(address.clone()).await,
        ttrpc: socket(&ttrpc),
        // Of a socket that pid 1 opened it is not containerd that is seen.
        started: pid.filter(|pid| *pid > 1).and_then(started),
        address,
    };
    let environment = |name: &str| variable(pid?, name);
    let mut wrapper = Wrapper::read(environment(VARIABLE));
    let opt = configuration.as_ref().map_or_else(|_| PathBuf::new(), |it| it.opt.clone());
    let path_is_seen = environment("PATH").is_some();
    let search = search(&opt, environment("PATH").or_else(|| env::var("PATH").ok()), pid);
    let runtimes = configuration.as_ref().map(|it| it.runtimes.as_slice()).unwrap_or_default();
    let programs: Vec<Program> = runtimes.iter().map(|it| program(it, &wrapper, &search)).collect();
    wrapper.names = wrapper::installed(&search);
    wrapper.names.extend(programs.iter().filter(|it| it.wraps).map(|it| it.name.clone()));
    let router = match config {
        Ok(config) => Ok(router(&config).await),
        Err(error) => Err(error),
    };
    let mut sockets = wrapper.sockets();
    sockets.extend(router.iter().flat_map(|it| &it.sources).map(|it| it.socket.path.clone()));
    let shims = shims::running(&sockets, &containerd.ttrpc.path);
    Ok(Facts {
        root: rustix::process::geteuid().is_root(),
        cgroup: cgroup(),
        containerd,
        configuration,
        programs,
        path_is_seen,
        wrapper,
        installed: find(&search, "containerd-shim-coroner-v2"),
        router,
        shims,
    })
}

async fn router(config: &Config) -> RouterFacts {
    let mut sources = Vec::new();
    for source in config.sources.iter().filter(|source| source.kind == SourceKind::Shim) {
        if let Address::Unix(path) = &source.address {
            let (name, hello) = (source.name.clone(), hello(path).await);
            sources.push(SourceFacts { name, mode: source.mode, socket: socket(path), hello });
        }
    }
    let is_agent = |it: &&Source| it.kind == SourceKind::Agent && it.guest.is_none();
    let agents = config.sources.iter().filter(is_agent).filter_map(|source| match &source.address {
        Address::Unix(path) => Some((source.name.clone(), socket(path))),
        _ => None,
    });
    let containerd = config.containerd.as_ref();
    RouterFacts {
        containerd: containerd.and_then(|it| Some((it.address.clone()?, it.ttrpc_address.clone()))),
        control: config.control.as_deref().map(socket),
        sources,
        agents: agents.collect(),
        unwatched: unwatched(config).await,
    }
}

fn socket(path: &Path) -> Socket {
    let file = fs::metadata(path).map_err(|error| error.to_string()).and_then(|it| {
        let is_socket = it.file_type().is_socket();
        is_socket.then(|| (it.mode() & 0o777, it.uid())).ok_or_else(|| "it is not a socket".to_owned())
    });
    let file = file.and_then(|file| match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(error.to_string()),
        Ok(_) | Err(_) => Ok(file),
    });
    Socket { path: path.to_owned(), file }
}

/// The process that listens there.
async fn server(address: &Path) -> Option<u32> {
    let stream = UnixStream::connect(address).await.ok()?;
    stream.peer_cred().ok()?.pid()?.try_into().ok()
}

/// When a process started.
fn started(pid: u32) -> Option<SystemTime> {
    /// USER_HZ, which is 100 for every architecture that containerd runs on: proc(5).
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; the start is the 20th field after it.
    let ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let age = Duration::try_from_secs_f64(uptime - ticks / TICKS).ok()?;
    SystemTime::now().checked_sub(age)
}

/// Of another process's environment, as it was when it started.
fn variable(pid: u32, name: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = bytes.split(|byte| *byte == 0);
    variables
        .find_map(|it| Some(std::str::from_utf8(it).ok()?.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

/// The folders that containerd searches for shims: `opt`, its PATH, then that of its own program.
fn search(opt: &Path, path: Option<String>, pid: Option<u32>) -> Vec<PathBuf> {
    let own = pid.and_then(|pid| fs::read_link(format!("/proc/{pid}/exe")).ok());
    let own = own.and_then(|exe| exe.parent().map(Path::to_owned));
    let path = path.unwrap_or_default();
    std::iter::once(opt.join("bin")).chain(env::split_paths(&path)).chain(own).collect()
}

fn find(search: &[PathBuf], file: &str) -> Option<PathBuf> {
    search.iter().map(|folder| folder.join(file)).find(|path| runs(path))
}

fn runs(path: &Path) -> bool {
    access(path, Access::EXEC_OK).is_ok() && path.is_file()
}

fn program(runtime: &Runtime, wrapper: &Wrapper, search: &[PathBuf]) -> Program {
    let path = match &runtime.path {
        Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_absolute() && runs(path)),
        None if runtime.kind.starts_with('/') => Some(PathBuf::from(&runtime.kind)).filter(|path| runs(path)),
        None => wrapper::file_of(&runtime.kind).and_then(|file| find(search, &file)),
    };
    let named = runtime.path.clone().map(PathBuf::from);
    let named = named.or_else(|| wrapper::file_of(&runtime.kind).map(PathBuf::from));
    let wraps =
        named.as_deref().and_then(wrapper::called).is_some() || path.as_deref().is_some_and(wrapper::is_it);
    let name = named.as_deref().or(path.as_deref()).map(WrapperName::of).unwrap_or_default();
    let inner = wrapper.file.config(&name).inner.filter(|path| runs(path)).or_else(|| {
        let beside = path.as_deref().and_then(Path::parent).map(Path::to_owned);
        let folders: Vec<PathBuf> = beside.into_iter().chain(search.iter().cloned()).collect();
        let file = name.inner();
        folders.iter().map(|folder| folder.join(&file)).find(|path| runs(path) && !wrapper::is_it(path))
    });
    Program { wraps, name, inner: inner.filter(|_| wraps), path }
}

fn cgroup() -> Cgroup {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        Cgroup::V2
    } else if root.join("memory").exists() {
        Cgroup::V1
    } else {
        Cgroup::None
    }
}
