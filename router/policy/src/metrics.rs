//! Prometheus metrics of the policies in the chain.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::chain_snapshot::ActiveChain;
use super::counts::BUCKETS;
use super::policy::Policy;
use super::report::PolicyState;

/// Reads the chain snapshot that is current at the scrape.
#[derive(Debug)]
pub struct PolicyMetrics(pub ActiveChain);

/// Microseconds in a second.
const SECOND: f64 = 1e6;

impl Collector for PolicyMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let snapshot = self.0.now();
        self.encode_directory(snapshot.generation, &mut encoder)?;
        encode_policies(&snapshot.policies, &mut encoder)
    }
}

impl PolicyMetrics {
    /// Metrics of the policy directory and its chain.
    fn encode_directory(&self, generation: u64, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "Policy chains of this router's life: the one that rules now";
        let generation = i64::try_from(generation).unwrap_or(i64::MAX);
        encoder
            .encode_descriptor("coroner_policy_generation", help, None, MetricType::Gauge)?
            .encode_gauge(&generation)?;
        let reading = self.0.reading();
        let help = "Policies and files of the directory that are refused, as status lists them";
        let refused = i64::try_from(reading.refused()).unwrap_or(i64::MAX);
        encoder
            .encode_descriptor("coroner_policies_refused", help, None, MetricType::Gauge)?
            .encode_gauge(&refused)?;
        let help = "Policies that run as their last good version, in place of a refused file";
        let kept = i64::try_from(reading.kept()).unwrap_or(i64::MAX);
        encoder
            .encode_descriptor("coroner_policies_kept", help, None, MetricType::Gauge)?
            .encode_gauge(&kept)?;
        let help = "1 while the policy directory cannot be read, and the last good chain runs";
        encoder
            .encode_descriptor("coroner_policy_directory_failed", help, None, MetricType::Gauge)?
            .encode_gauge(&i64::from(reading.failed()))
    }
}

/// Metrics of each policy.
fn encode_policies(policies: &[Arc<Policy>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let mut each =
        |name: &str,
         help: &str,
         kind,
         encode: &dyn Fn(&Policy, &mut MetricEncoder<'_>) -> Result<(), Error>| {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            policies.iter().try_for_each(|policy| encode(policy, &mut family))
        };
    each("coroner_policy", "A policy of the chain", MetricType::Info, &|policy, family| {
        family.encode_info(&[
            ("policy", policy.name.as_str()),
            ("version", policy.version()),
            ("digest", policy.digest.as_str()),
            ("mode", policy.mode.name()),
        ])
    })?;
    each("coroner_policy_calls", "Calls of a policy", MetricType::Counter, &|policy, family| {
        family
            .encode_family(&labels(policy))?
            .encode_counter::<NoLabelSet, _, f64>(&policy.counts.calls(), None)
    })?;
    each("coroner_policy_rulings", "Calls a policy decided", MetricType::Counter, &|policy, family| {
        family
            .encode_family(&labels(policy))?
            .encode_counter::<NoLabelSet, _, f64>(&policy.counts.decided(), None)
    })?;
    each("coroner_policy_faults", "Calls that led to no ruling", MetricType::Counter, &|policy, family| {
        policy.counts.faults().into_iter().try_for_each(|(kind, count)| {
            let labels = [("policy", policy.name.as_str()), ("kind", kind.name())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&count, None)
        })
    })?;
    each("coroner_policy_call_seconds", "Time of a call", MetricType::Histogram, &|policy, family| {
        let (micros, counts) = policy.counts.times();
        let bounds = BUCKETS.iter().map(|micros| *micros as f64 / SECOND).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
        let labels = labels(policy);
        let mut family = family.encode_family(&labels)?;
        family.encode_histogram::<NoLabelSet>(micros as f64 / SECOND, counts.iter().sum(), &buckets, None)
    })?;
    each(
        "coroner_policy_quarantined",
        "1 while a policy is quarantined or on trial",
        MetricType::Gauge,
        &|policy, family| {
            let (state, _) = policy.breaker.state();
            family.encode_family(&labels(policy))?.encode_gauge(&i64::from(state != PolicyState::Running))
        },
    )
}

fn labels(policy: &Policy) -> [(&str, &str); 1] {
    [("policy", policy.name.as_str())]
}
