//! `containerd-shim-coroner-v2` wraps a shim: containerd starts it in place of the stock shim, and
//! it starts the stock shim.
//!
//! [`arguments`] parses the command line, [`coroner_shim_config`] the configuration, and [`inner`]
//! finds the stock shim. [`start`] runs it, with its events directed to [`router`] if that answers.
//! Every command other than `start` is passed to the inner shim.
//!
//! In mode `proxy` the [`address`] that the shim prints is replaced by that of a socket beside it
//! ([`place`]). There [`proxy`] runs in a process of its own: a [`link`] for each connection, split
//! into [`frames`]. [`task`] decodes the requests and replies by [`wire`], [`processes`] holds the
//! state of each process, and [`outbox`] is the queue of kill requests and released statuses for
//! the router. docs/operating/shims.md is the page.

mod arguments;
mod inner;
mod start;
mod router;
mod address;
mod place;
mod proxy;
mod link;
mod frames;
mod task;
mod wire;
mod processes;
mod outbox;
mod log;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use coroner_shim_config::{File, VARIABLE, WrapperName};

use crate::inner::Lookup;
use crate::proxy::Options;
use crate::start::{Start, become_inner, failed};

/// It returns freed memory to the kernel and has no caches. Without it the proxy, which runs once
/// for each pod, would keep its peak.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let mut given = env::args_os();
    let called_as = given.next().unwrap_or_default();
    let arguments: Vec<OsString> = given.collect();
    if let Some((first, rest)) = arguments.split_first()
        && first == "proxy"
    {
        return match Options::parse(rest) {
            Some(options) => match proxy::run(&options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(&format!("the proxy cannot run: {error}")),
            },
            None => failed("only the wrapper itself runs `proxy`: see docs/operating/shims.md"),
        };
    }
    let call = arguments::parse(&arguments);
    let name = WrapperName::of(Path::new(&called_as));
    let (path, named) = coroner_shim_config::path(env::var_os(VARIABLE).map(PathBuf::from));
    let file = File::read(&path, named);
    let config = file.config(&name);
    let own = env::current_exe().unwrap_or_else(|_| Path::new("/proc/self/exe").to_owned());
    let lookup = Lookup { called_as: &called_as, own: &own, path: env::var_os("PATH") };
    let inner = match lookup.find(config.inner.as_deref(), &name) {
        Ok(inner) => inner,
        Err(error) => return failed(&error.to_string()),
    };
    if call.start {
        return Start { arguments, call, inner, config, mistake: file.mistake().map(str::to_owned) }.run();
    }
    become_inner(&inner, &arguments, |_| {})
}
