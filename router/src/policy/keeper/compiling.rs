//! Compilers at work beside the keeper, so that one that takes its whole minute holds nobody up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::mpsc;
use wasmtime::component::Component;

use crate::policy::ask::Ask;
use crate::policy::cache::{Bytes, Cache};
use crate::policy::compile::CompileError;
use crate::policy::host::Host;

/// Compilers at once: one that takes its whole minute holds nobody else up.
const COMPILERS: usize = 2;
/// What a policy that is not there yet is told to be.
pub(super) const COMPILING: &str = "is being compiled";

/// Compilers at work, and what they made.
#[derive(Default)]
pub(super) struct Compiling {
    /// `None` while the router starts: then it is waited for.
    pub(super) done: Option<mpsc::Sender<Ask>>,
    pub(super) running: HashSet<String>,
    pub(super) ready: HashMap<String, Result<Component, CompileError>>,
}

impl Compiling {
    /// Compiles beside, unless enough are at work: what has to wait is found again at the look that the next one's end leads to.
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
            // The keeper has stopped, and nobody needs it.
            done.blocking_send(Ask::Compiled { digest, outcome }).unwrap_or(());
        })?;
        Ok(())
    }
}
