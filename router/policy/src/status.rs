//! The reports of one policy.

use std::collections::BTreeMap;

use serde_json::json;

use super::counts::unix_ms;
use super::policy::Policy;
use super::report::{Inspection, PolicyStatus};
use coroner_core::mode::PolicyMode;

impl Policy {
    /// The entry of `coroner policy list`.
    pub(super) fn status(&self, unmet_needs: BTreeMap<String, Vec<String>>) -> PolicyStatus {
        let (state, left) = self.breaker.state();
        let left = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        PolicyStatus {
            policy: self.name.clone(),
            version: self.version().to_owned(),
            digest: self.digest.clone(),
            mode: self.mode,
            state,
            until_ms: left.map(|left| unix_ms().saturating_add(left)),
            calls: self.counts.calls(),
            decided: self.counts.decided(),
            faults: self.counts.faults(),
            call_us: self.counts.call_time(),
            unmet_needs,
        }
    }

    /// The report of `coroner policy inspect`.
    pub(super) fn inspection(&self, unmet_needs: BTreeMap<String, Vec<String>>) -> Inspection {
        let limits = self.own.limits;
        let time = |time| json!(humantime::format_duration(time).to_string());
        Inspection {
            status: self.status(unmet_needs),
            imports: self.imports.clone(),
            wants: self.description.wants.names(),
            needs: self.needs().iter().map(|it| it.name().to_owned()).collect(),
            config_schema: self.schema(),
            size: self.size,
            limits: BTreeMap::from(
                [
                    ("fuel", json!(limits.fuel)),
                    ("memory", json!(limits.memory)),
                    ("call", time(limits.call)),
                    ("configure", time(limits.configure)),
                    ("table-elements", json!(limits.table_elements)),
                    ("log-rate", json!(limits.log_rate)),
                ]
                .map(|(name, limit)| (name.to_owned(), limit)),
            ),
            on_failure: self.own.on_failure,
            config: serde_json::from_str(&self.own.config).expect("it was written as JSON"),
            last_faults: self.counts.last_faults(),
            difference: (self.mode == PolicyMode::Shadow).then(|| self.counts.difference()),
        }
    }

    /// The schema as JSON; an invalid schema is shown as text.
    pub(super) fn schema(&self) -> Option<serde_json::Value> {
        let text = self.description.config_schema.as_deref()?;
        Some(serde_json::from_str(text).unwrap_or_else(|_| json!(text)))
    }
}
