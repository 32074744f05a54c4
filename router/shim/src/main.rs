//! `containerd-shim-coroner-v2`: what containerd starts instead of a stock shim, and what starts that one.
//!
//! [`arguments`] says what containerd asks, [`config`] what holds, [`inner`] which shim is the real one; [`start`] starts it, behind
//! [`router`] if that answers. All else than `start` goes to the inner shim. In mode `proxy` the shim's [`address`] gets a [`place`] in
//! front, where [`proxy`] runs in a process of its own: a [`link`] for each connection, cut into [`frames`], in which [`task`] finds by
//! [`wire`] what the [`processes`] did, and [`news`] of it for the router. docs/shims.md is the page.

mod arguments;
mod config;
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
mod news;
mod log;

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::inner::Lookup;
use crate::proxy::Options;
use crate::start::{Start, become_inner, failed};

/// It gives back what is freed, and has no caches: the proxy is there once for each pod.
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
            Some(options) => proxy::run(&options),
            None => failed("`proxy` is for the wrapper to call: docs/shims.md"),
        };
    }
    let call = arguments::parse(&arguments);
    let name = inner::name(&called_as);
    let loaded = config::load(name.as_deref());
    let own = env::current_exe().unwrap_or_else(|_| Path::new("/proc/self/exe").to_owned());
    let lookup = Lookup { called_as: &called_as, own: &own, path: env::var_os("PATH") };
    let inner = match lookup.find(loaded.config.inner.as_deref(), name.as_deref()) {
        Ok(inner) => inner,
        Err(error) => return failed(&error.to_string()),
    };
    if call.start {
        return Start { arguments, call, inner, loaded }.run();
    }
    become_inner(&inner, &arguments, |_| {})
}
