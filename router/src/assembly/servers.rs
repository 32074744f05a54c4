//! Starts the admin server on the control socket and on the metrics address.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use super::{Assembly, RunError};
use crate::admin::{self, Listener, Probes, StatusReader};
use crate::config::Config;
use crate::guests::GuestClient;
use coroner_policy::PolicyClient;

impl Assembly {
    /// Serves the control socket, if one is configured. `passed` is one that is already open.
    pub(super) fn control(&mut self, config: &Config, passed: Option<UnixListener>) -> Result<(), RunError> {
        let (Some(path), Some(status), Some((policies, guests))) =
            (&config.control, self.status(config), self.managers())
        else {
            return Ok(());
        };
        let listener = passed.map_or_else(|| admin::control_socket(path), admin::inherited_socket)?;
        let service =
            admin::AdminService { status, policies, guests, tap: self.records.tap(), stop: self.stopped() };
        let routes = service.routes(self.probes(config));
        self.add("control".to_owned(), admin::serve(listener, routes, self.stopped()));
        Ok(())
    }

    /// Serves metrics and probes on the metrics address, if the configuration has one.
    pub(super) fn metrics(&mut self, config: &Config) -> Result<(), RunError> {
        let Some(address) = &config.metrics else { return Ok(()) };
        let failed = |source| RunError::Metrics { address: format!("{address:?}"), source };
        let listener = Listener::open(address).map_err(failed)?;
        let routes = self.probes(config).routes();
        self.add("metrics".to_owned(), admin::serve(listener, routes, self.stopped()));
        Ok(())
    }

    /// The reader of the status; `None` without the managers of policies and guests.
    pub fn status(&self, config: &Config) -> Option<StatusReader> {
        let (policies, guests) = self.managers()?;
        Some(StatusReader::new(config, Arc::clone(&self.counts), policies, guests))
    }

    fn managers(&self) -> Option<(PolicyClient, GuestClient)> {
        self.policies().zip(self.guests.clone())
    }

    fn probes(&self, config: &Config) -> Probes {
        Probes::new(config, &self.counts, self.active_chain.clone())
    }
}
