//! Serves what is counted to Prometheus, over HTTP on this machine alone.

use std::convert::Infallible;
use std::fmt::Error;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::MetricsAddress;
use crate::counts::{Count, Counts};
use crate::policy::{Lineups, PolicyMetrics};

/// Connections at once. Anybody on this machine may connect to a loopback address: without it they could have the router
/// hold as many as it has descriptors.
const CONNECTIONS: usize = 16;
/// A request's head must be there by then. Without it sixteen silent connections would keep Prometheus out.
const HEAD: Duration = Duration::from_secs(5);
/// Whole connections end after this, however they dawdle over the answer.
const LONGEST: Duration = Duration::from_secs(30);
/// What the answer is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A socket that waits for Prometheus.
#[derive(Debug)]
pub enum MetricsListener {
    /// On a loopback address.
    Http(TcpListener),
    /// On a unix socket.
    Unix(UnixListener),
}

impl MetricsListener {
    /// Opens it; to be called on the runtime.
    pub fn open(address: &MetricsAddress) -> io::Result<Self> {
        match address {
            MetricsAddress::Http(address) => {
                let listener = StdListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Http(TcpListener::from_std(listener)?))
            }
            MetricsAddress::Unix(path) => Ok(Self::Unix(coroner_proto::transport::bind(path)?)),
        }
    }
}

/// Everything that is counted.
pub fn registry(counts: Arc<Counts>, lineups: Lineups) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Parts(counts)));
    registry.register_collector(Box::new(PolicyMetrics(lineups)));
    registry
}

/// Answers until told to stop.
pub async fn serve(listener: MetricsListener, registry: Registry, mut stop: watch::Receiver<bool>) {
    let registry = Arc::new(registry);
    let mut connections = JoinSet::new();
    loop {
        let room = connections.len() < CONNECTIONS;
        tokio::select! {
            () = stopped(&mut stop) => return,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener), if room => match accepted {
                Ok(stream) => {
                    connections.spawn(answer(stream, Arc::clone(&registry)));
                }
                // Out of descriptors, accept fails at once and again at once.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender is gone: the router has stopped.
    drop(stop.wait_for(|it| *it).await);
}

/// A connection, whatever it came over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &MetricsListener) -> io::Result<Box<dyn Stream>> {
    match listener {
        MetricsListener::Http(listener) => Ok(Box::new(listener.accept().await?.0)),
        MetricsListener::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
    }
}

async fn answer(stream: Box<dyn Stream>, registry: Arc<Registry>) {
    let service = service_fn(|request| {
        let response = respond(&request, &registry);
        async { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // Whoever asked went away, or asked in no way that can be answered: neither is the router's concern.
    drop(tokio::time::timeout(LONGEST, connection).await);
}

fn respond(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut text = String::new();
            if encode(&mut text, registry).is_err() {
                return plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n");
            }
            let mut response = Response::new(Full::from(text));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, OPEN_METRICS.parse().expect("it is a header's value"));
            response
        }
        (_, "/metrics") => plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
        _ => plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n"),
    }
}

/// Sources and sinks.
#[derive(Debug)]
struct Parts(Arc<Counts>);

impl Collector for Parts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let counts = &self.0;
        encoder
            .encode_descriptor("coroner_build", "The router", None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        let sources = |pick: fn(&crate::counts::SourceCounts) -> &Count| {
            counts
                .sources
                .iter()
                .map(move |(name, counts)| (vec![("source", name.as_str())], pick(counts).get()))
        };
        let help = "Signals handed on";
        counter(&mut encoder, "coroner_source_signals", help, sources(|it| &it.signals))?;
        let help = "Signals the agent dropped before they were read";
        counter(&mut encoder, "coroner_source_lost", help, sources(|it| &it.lost))?;
        let help = "Signals that could not be decoded";
        counter(&mut encoder, "coroner_source_refused", help, sources(|it| &it.refused))?;
        let help = "Links to the agent that came up";
        counter(&mut encoder, "coroner_source_links", help, sources(|it| &it.links))?;
        let help = "1 while the link to the agent is up";
        let mut family =
            encoder.encode_descriptor("coroner_source_connected", help, None, MetricType::Gauge)?;
        for (name, counts) in &counts.sources {
            family
                .encode_family(&[("source", name.as_str())])?
                .encode_gauge(&i64::from(counts.is_connected()))?;
        }
        // One line each, not one a guest: a node may have a thousand, which come and go.
        let guests = counts.guests.all();
        let all = |pick: fn(&crate::counts::SourceCounts) -> &Count| {
            let sum = guests.iter().map(|(_, counts)| pick(counts).get()).sum();
            [(Vec::new(), sum)].into_iter()
        };
        counter(
            &mut encoder,
            "coroner_guests_signals",
            "Signals of guests handed on",
            all(|it| &it.signals),
        )?;
        let help = "Signals that agents of guests dropped before they were read";
        counter(&mut encoder, "coroner_guests_lost", help, all(|it| &it.lost))?;
        let help = "Signals of guests about containers that are not their own, or malformed";
        counter(&mut encoder, "coroner_guests_refused", help, all(|it| &it.refused))?;
        let help = "Pressure signals of guests that came too fast, and were dropped";
        counter(&mut encoder, "coroner_guests_held_back", help, all(|it| &it.held_back))?;
        let help = "Guests by state";
        let mut family = encoder.encode_descriptor("coroner_guests", help, None, MetricType::Gauge)?;
        for state in ["connecting", "up", "down", "lost"] {
            let count = guests.iter().filter(|(_, counts)| counts.state() == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            family.encode_family(&[("state", state)])?.encode_gauge(&count)?;
        }
        let sinks = |pick: fn(&crate::counts::SinkCounts) -> &Count| {
            counts.sinks.iter().map(move |(name, counts)| (vec![("sink", name.as_str())], pick(counts).get()))
        };
        let help = "Actions or records the sink took";
        counter(&mut encoder, "coroner_sink_delivered", help, sinks(|it| &it.delivered))?;
        let help = "Tries that failed";
        counter(&mut encoder, "coroner_sink_failed", help, sinks(|it| &it.failed))?;
        let dropped = counts.sinks.iter().flat_map(|(name, counts)| {
            counts
                .dropped
                .all()
                .map(move |(reason, count)| (vec![("sink", name.as_str()), ("reason", reason)], count))
        });
        counter(&mut encoder, "coroner_sink_dropped", "Documents the sink did not take", dropped)?;
        let help = "Reports whose topic no route takes";
        let unrouted = [(Vec::new(), counts.reports_unrouted.get())];
        counter(&mut encoder, "coroner_reports_unrouted", help, unrouted.into_iter())?;
        let journal = &counts.journal;
        let alone = |count: &Count| [(Vec::new(), count.get())].into_iter();
        let help = "Signals and rulings written to the journal";
        counter(&mut encoder, "coroner_journal_written", help, alone(&journal.written))?;
        let help = "Signals and rulings that could not be written, or not in time";
        counter(&mut encoder, "coroner_journal_unjournaled", help, alone(&journal.unjournaled))?;
        let help = "Bytes of the journal's current file";
        let bytes = i64::try_from(journal.bytes.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        encoder
            .encode_descriptor("coroner_journal_bytes", help, None, MetricType::Gauge)?
            .encode_gauge(&bytes)?;
        let help = "OOM kills learnt after their container's exit had been ruled";
        let late = [(Vec::new(), counts.late_kills.get())];
        counter(&mut encoder, "coroner_late_kills", help, late.into_iter())
    }
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
