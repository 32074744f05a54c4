//! The metrics of sources, sinks and the journal, for Prometheus.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::counts::{Count, Counts, JournalCounts, LinkState, SinkCounts, SourceCounts};
use crate::node_watch::NodeWatch;
use coroner_policy::{ActiveChain, PolicyMetrics};

/// The registry of all metrics.
pub fn registry(counts: Arc<Counts>, watch: NodeWatch, active_chain: ActiveChain) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(CountsCollector(counts, watch)));
    registry.register_collector(Box::new(PolicyMetrics(active_chain)));
    registry
}

/// Collects the state of the node, and the counts of sources, guests, sinks and the journal.
#[derive(Debug)]
struct CountsCollector(Arc<Counts>, NodeWatch);

impl Collector for CountsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (encoder, counts) = (&mut encoder, &*self.0);
        encoder
            .encode_descriptor("coroner_build", "The router", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        node(encoder, &self.1)?;
        sources(encoder, counts)?;
        guests(encoder, counts)?;
        sinks(encoder, counts)?;
        let help = "Reports that match no route";
        counter(encoder, "coroner_reports_unrouted", help, alone(&counts.reports_unrouted))?;
        journal(encoder, &counts.journal)?;
        let help = "OOM kills learnt after their container's exit had been ruled";
        counter(encoder, "coroner_late_kills", help, alone(&counts.late_kills))
    }
}

fn node(encoder: &mut DescriptorEncoder<'_>, watch: &NodeWatch) -> Result<(), Error> {
    let mut gauge = |name, help, value: i64| {
        encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    };
    let help = "1 while kills may be missed: an agent of this node is not connected, or there is none";
    gauge("coroner_degraded", help, i64::from(watch.degraded().is_some()))?;
    let help = "Pods that started without the router and still run";
    let size = |length| i64::try_from(length).unwrap_or(i64::MAX);
    gauge("coroner_unmanaged_pods", help, size(watch.unmanaged().len()))?;
    let help = "Containers in a cgroup that the node's agent does not find; absent while not known";
    watch.unwatched().map_or(Ok(()), |it| gauge("coroner_unwatched_containers", help, size(it.len())))
}

fn sources(encoder: &mut DescriptorEncoder<'_>, counts: &Counts) -> Result<(), Error> {
    let of_sources = |pick: fn(&SourceCounts) -> &Count| {
        counts.sources.iter().map(move |(name, counts)| (vec![("source", name.as_str())], pick(counts).get()))
    };
    let help = "Signals handed on";
    counter(encoder, "coroner_source_signals", help, of_sources(|it| &it.signals))?;
    let help = "Signals the agent dropped before they were read";
    counter(encoder, "coroner_source_lost", help, of_sources(|it| &it.lost))?;
    let help = "Signals that could not be decoded";
    counter(encoder, "coroner_source_refused", help, of_sources(|it| &it.refused))?;
    let help = "Links to the agent that came up";
    counter(encoder, "coroner_source_links", help, of_sources(|it| &it.links))?;
    let help = "1 while the link to the agent is up";
    let mut family = encoder.encode_descriptor("coroner_source_connected", help, None, MetricType::Gauge)?;
    for (name, counts) in &counts.sources {
        family
            .encode_family(&[("source", name.as_str())])?
            .encode_gauge(&i64::from(counts.is_connected()))?;
    }
    Ok(())
}

/// One line for all guests, not one a guest: a node may have a thousand, which come and go.
fn guests(encoder: &mut DescriptorEncoder<'_>, counts: &Counts) -> Result<(), Error> {
    let guests = counts.guests.all();
    let all = |pick: fn(&SourceCounts) -> &Count| {
        let sum = guests.iter().map(|(_, counts)| pick(counts).get()).sum();
        [(Vec::new(), sum)].into_iter()
    };
    counter(encoder, "coroner_guests_signals", "Signals of guests handed on", all(|it| &it.signals))?;
    let help = "Signals that agents of guests dropped before they were read";
    counter(encoder, "coroner_guests_lost", help, all(|it| &it.lost))?;
    let help = "Signals of guests about containers that are not their own, or malformed";
    counter(encoder, "coroner_guests_refused", help, all(|it| &it.refused))?;
    let help = "Pressure signals of guests that came too fast, and were dropped";
    counter(encoder, "coroner_guests_held_back", help, all(|it| &it.held_back))?;
    let help = "Guests by state";
    let mut family = encoder.encode_descriptor("coroner_guests", help, None, MetricType::Gauge)?;
    for state in LinkState::ALL {
        let count = guests.iter().filter(|(_, counts)| counts.state() == state).count();
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        family.encode_family(&[("state", state.name())])?.encode_gauge(&count)?;
    }
    Ok(())
}

fn sinks(encoder: &mut DescriptorEncoder<'_>, counts: &Counts) -> Result<(), Error> {
    let of_sinks = |pick: fn(&SinkCounts) -> &Count| {
        counts.sinks.iter().map(move |(name, counts)| (vec![("sink", name.as_str())], pick(counts).get()))
    };
    let help = "Actions or records the sink took";
    counter(encoder, "coroner_sink_delivered", help, of_sinks(|it| &it.delivered))?;
    counter(encoder, "coroner_sink_failed", "Tries that failed", of_sinks(|it| &it.failed))?;
    let dropped = counts.sinks.iter().flat_map(|(name, counts)| {
        counts
            .dropped
            .all()
            .map(move |(reason, count)| (vec![("sink", name.as_str()), ("reason", reason)], count))
    });
    counter(encoder, "coroner_sink_dropped", "Documents the sink did not take", dropped)?;
    let mut gauge = |name, help, value: fn(&SinkCounts) -> i64| {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        counts.sinks.iter().try_for_each(|(name, counts)| {
            family.encode_family(&[("sink", name.as_str())])?.encode_gauge(&value(counts))
        })
    };
    let help = "Documents that wait for the sink";
    gauge("coroner_sink_queued", help, |it| it.queued().try_into().unwrap_or(i64::MAX))?;
    let help = "Age of the oldest document that waits for the sink; 0 while none waits";
    gauge("coroner_sink_queued_seconds", help, |it| it.queued_since_ms().map_or(0, seconds_since))?;
    let help = "1 while the last try to reach the sink succeeded";
    gauge("coroner_sink_reachable", help, |it| i64::from(it.is_reachable()))
}

fn journal(encoder: &mut DescriptorEncoder<'_>, counts: &JournalCounts) -> Result<(), Error> {
    let help = "Signals and rulings written to the journal";
    counter(encoder, "coroner_journal_written", help, alone(&counts.written))?;
    let help = "Signals and rulings that could not be written, or not in time";
    counter(encoder, "coroner_journal_unjournaled", help, alone(&counts.unjournaled))?;
    let help = "Bytes of the journal's current file";
    let bytes = i64::try_from(counts.bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
    encoder.encode_descriptor("coroner_journal_bytes", help, None, MetricType::Gauge)?.encode_gauge(&bytes)
}

/// A count without labels.
fn alone(count: &Count) -> impl Iterator<Item = (Vec<(&'static str, &'static str)>, u64)> {
    std::iter::once((Vec::new(), count.get()))
}

/// Whole seconds from a time in unix milliseconds until now.
fn seconds_since(ms: u64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(now.saturating_sub(u128::from(ms)) / 1_000).unwrap_or(i64::MAX)
}

fn counter<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (Vec<(&'a str, &'a str)>, u64)>,
) -> Result<(), Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        if labels.is_empty() {
            family.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        } else {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
    }
    Ok(())
}
