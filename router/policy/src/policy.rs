//! A loaded policy: what the instance of every worker is made of.

use std::sync::Arc;

use coroner_core::mode::{Known, PolicyMode};
use coroner_core::ruling::{Fault, FaultKind};

use super::bindings::{Description, PolicyPre};
use super::counts::PolicyCounts;
use super::host::{Host, Instance, StoreData};
use super::policy_config::{PolicyConfig, keys};
use super::policy_log::PolicyLog;
use super::quarantine::CircuitBreaker;

/// A loaded policy: every worker starts its own instance of it.
pub struct Policy {
    /// File name without `.wasm`.
    pub name: String,
    /// `sha256:...` of its bytes.
    pub digest: String,
    /// Whether its rulings are enforced.
    pub mode: PolicyMode,
    /// Size of the component, in bytes.
    pub(super) size: u64,
    /// Interfaces it imports.
    pub(super) imports: Vec<String>,
    /// Its description.
    pub(super) description: Description,
    pub(super) own: PolicyConfig,
    pub(super) vectors: Option<String>,
    pub(super) breaker: Arc<CircuitBreaker>,
    pub(super) counts: Arc<PolicyCounts>,
    pub(super) policy_log: Arc<PolicyLog>,
    pub(super) wasi: bool,
    pub(super) pre: PolicyPre<StoreData>,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("digest", &self.digest)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// The version in its description.
    pub fn version(&self) -> &str {
        &self.description.version
    }

    /// Facts it needs.
    pub fn needs(&self) -> Vec<Known> {
        self.description.needs.clone()
    }

    /// Starts a configured instance.
    pub(super) fn start(&self, host: &Host) -> Result<Instance, Fault> {
        let as_start = |fault: Fault| Fault { kind: FaultKind::Start, ..fault };
        let mut instance =
            host.start(&self.pre, &self.policy_log, self.own.limits, self.wasi).map_err(as_start)?;
        instance.configure(host, &self.own.config).map_err(as_start)?.map_err(|mistakes| Fault {
            kind: FaultKind::Start,
            message: format!("it refuses the configuration it took before: {}", keys(&mistakes)),
        })?;
        Ok(instance)
    }
}
