//! The compile pool: compile processes run beside the manager, so that a slow one does not block
//! it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use wasmtime::component::Component;

use crate::cache::{Bytes, Cache};
use crate::compile::CompileError;
use crate::host::Host;
use crate::manager_client::ManagerRequest;

/// Compile processes at once.
const COMPILERS: usize = 2;
/// The reason shown for a policy that is being compiled.
pub(super) const COMPILING: &str = "is being compiled";

/// Compile processes under way, and their results.
#[derive(Default)]
pub(super) struct CompilePool {
    /// `None` during the start, which waits for each compilation.
    pub(super) done: Option<mpsc::Sender<ManagerRequest>>,
    pub(super) running: HashSet<String>,
    pub(super) ready: HashMap<String, Result<Component, CompileError>>,
}

impl CompilePool {
    /// Starts a compilation, unless enough are under way. A waiting one is started by the reload
    /// that follows the next result.
    pub(super) fn begin(&mut self, host: &Arc<Host>, cache: &Cache, bytes: &Bytes) -> std::io::Result<()> {
        let Some(done) = self.done.clone() else { return Ok(()) };
        if self.running.contains(&bytes.digest) || self.running.len() >= COMPILERS {
            return Ok(());
        }
        let (host, cache, bytes) = (Arc::clone(host), cache.clone(), bytes.try_clone()?);
        let digest = bytes.digest.clone();
        self.running.insert(digest.clone());
        std::thread::Builder::new().name("policy-compiler".to_owned()).spawn(move || {
            let outcome = cache.compile(&host, &bytes);
            // The manager has stopped and needs no result.
            done.blocking_send(ManagerRequest::Compiled { digest, outcome }).unwrap_or(());
        })?;
        Ok(())
    }
}
