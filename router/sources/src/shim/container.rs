//! One container of a wrapped shim: its identity, its signals, and the deduplication of what shim,
//! proxy and kernel report about it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use coroner_cgroup::{Kills, LimitHit};
use coroner_proto::shim;
use tokio::time::Instant;

use super::bundle::Bundle;
use super::kills_below::KillsBelow;
use super::poll_schedule::PollSchedule;
use crate::envelope::unix_ms;
use crate::signal_stream::target;
use coroner_containerd::holds::{Process, Processes};
use coroner_core::signal::{
    BUNDLE, ContainerId, Event, Evidence, Exited, Forwarded, KILLS_UNKNOWN, KillRequest, Level, Moment,
    OomKilled, POD_COUNTER, Signal, Target, WITNESS, Witness,
};

/// A shim announces a kill in milliseconds, and publishes the event again for some seconds if it
/// was not accepted.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(30);
/// Proxies remembered for one container: a proxy that crashed is replaced by another.
const PROXIES: usize = 4;

/// When to query containerd for the end of a container.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vanished {
    /// The query is sent then, unless the end is reported before.
    pub(super) at: Instant,
    /// Number of queries without an answer.
    pub(super) unanswered: u32,
}

/// The state of one container.
#[derive(Debug)]
pub(super) struct WrappedContainer {
    target: Target,
    attributes: Vec<(String, String)>,
    pub(super) memory_limit: Option<u64>,
    /// Its cgroup, where it has its own.
    pub(super) cgroup: Option<String>,
    /// An agent in its guest counts its kills.
    pub(super) counted_in_guest: bool,
    /// The counter as last reported.
    pub(super) kills: Option<Kills>,
    /// Why the last read of the counter failed, where no kill was reported before.
    pub(super) kills_unknown: Option<String>,
    /// An announced OOM was reported.
    pub(super) announced: bool,
    /// Cgroup v1: what was below it when its shim announced an OOM that its own counter does not
    /// show. `None`: there is no such announcement.
    pub(super) unconfirmed: Option<Announcement>,
    /// Cgroup v1: kills that its own counter showed before its shim announced them.
    pub(super) counted_first: CountedFirst,
    /// Cgroup v1: the kills below it that were reported, or that no announcement was of.
    pub(super) below: KillsBelow,
    pub(super) started: bool,
    /// Its counter is gone, and its end was not reported.
    pub(super) vanished: Option<Vanished>,
    /// The poll schedule of its counter after a notice.
    pub(super) poll_schedule: PollSchedule,
    pub(super) processes: Processes,
    requests: BTreeMap<String, u64>,
}

/// A shim's announcement that memory ran out at the container.
#[derive(Debug)]
pub(super) struct Announcement {
    /// The counters below the container at that time.
    pub(super) below: KillsBelow,
    /// It may be that of a kill which the container's own counter showed before.
    pub(super) is_counted: bool,
}

/// Kills that a shim is to announce. Not every kill is announced: the kernel notifies no container
/// when the machine is out of memory, and merges notices.
#[derive(Debug, Default)]
pub(super) struct CountedFirst {
    kills: u64,
    /// When the last of them was counted.
    at: Option<Instant>,
}

impl CountedFirst {
    pub(super) fn add(&mut self, kills: u64, now: Instant) {
        self.kills = self.kills.saturating_add(kills);
        self.at = Some(now);
    }

    /// Takes one off for an announcement. `false`: the announcement is of another kill.
    pub(super) fn take_one(&mut self, now: Instant) -> bool {
        if self.at.is_none_or(|at| now > at + ANNOUNCED_WITHIN) {
            self.kills = 0;
        }
        let is_one = self.kills > 0;
        self.kills = self.kills.saturating_sub(1);
        is_one
    }
}

impl WrappedContainer {
    /// A container with nothing but its id.
    pub(super) fn new(node: &str, namespace: &str, id: &ContainerId) -> Self {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Self {
            target: Target { containerd_namespace: namespace, ..target(node, None, id.clone()) },
            attributes: Vec::new(),
            memory_limit: None,
            cgroup: None,
            counted_in_guest: false,
            kills: None,
            kills_unknown: None,
            announced: false,
            unconfirmed: None,
            counted_first: CountedFirst::default(),
            below: KillsBelow::default(),
            started: false,
            vanished: None,
            poll_schedule: PollSchedule::default(),
            processes: Processes::default(),
            requests: BTreeMap::new(),
        }
    }

    /// Reads its identity from its bundle.
    pub(super) fn read(&mut self, folder: &str) -> Bundle {
        let bundle = Bundle::read(Path::new(folder));
        self.target.sandbox_id.clone_from(&bundle.sandbox_id);
        self.target.owner.clone_from(&bundle.owner);
        self.memory_limit = bundle.memory_limit;
        self.attributes = vec![(BUNDLE.to_owned(), folder.to_owned())];
        let log = bundle.termination_log.iter().map(|log| ("termination-log".to_owned(), log.clone()));
        self.attributes.extend(log);
        bundle
    }

    /// Its pod's sandbox, where its bundle has it.
    pub(super) fn sandbox(&self) -> Option<&str> {
        self.target.sandbox_id.as_deref()
    }

    /// Whether a kill request is new.
    pub(super) fn is_new_request(&mut self, request: &shim::KillRequest) -> bool {
        if !self.requests.contains_key(&request.proxy_id) && self.requests.len() >= PROXIES {
            self.requests.pop_first();
        }
        let last = self.requests.entry(request.proxy_id.clone()).or_default();
        let new = request.seq > *last;
        *last = request.seq.max(*last);
        new
    }

    fn signal(&self, source: &str, name: impl std::fmt::Display, at: Moment, event: Event) -> Signal {
        let Target { node, container_id, .. } = &self.target;
        Signal {
            id: format!("{node}::{source}:{container_id}:{name}"),
            at,
            target: self.target.clone(),
            event,
            attributes: self.attributes.clone(),
        }
    }

    /// The counter rose to `now`.
    pub(super) fn kill(&mut self, source: &str, now: Kills, limit: Option<u64>) -> Signal {
        let before = self.kills.unwrap_or_default();
        let level = match now.limit_hit_since(before) {
            LimitHit::Own => Level::Container,
            LimitHit::Below => Level::Child,
            LimitHit::Unknown => Level::Unknown,
        };
        let event = Event::OomKill(OomKilled {
            added: Some(now.total.saturating_sub(before.total)),
            total: Some(now.total),
            group: now.groups.map(|groups| groups > before.groups.unwrap_or(0)),
            level,
            cgroup: self.cgroup.clone(),
            limit_bytes: limit,
            groups: now.groups,
            witnesses: vec![Witness::Counter],
            ..OomKilled::new(Evidence::Counter)
        });
        self.kills = Some(now);
        self.signal(source, format_args!("kill-{}", now.total), moment(None), event)
    }

    /// The counter of its pod rose by `added`, and its own is gone.
    pub(super) fn killed_in_pod(&mut self, source: &str, added: u64) -> Signal {
        let total = self.kills.map_or(0, |it| it.total).saturating_add(added);
        let event = Event::OomKill(OomKilled {
            added: Some(added),
            total: Some(total),
            cgroup: self.cgroup.clone(),
            limit_bytes: self.memory_limit,
            witnesses: vec![Witness::PodCounter],
            ..OomKilled::new(Evidence::Announced)
        });
        self.kills = Some(Kills { total, ..self.kills.unwrap_or_default() });
        let mut signal = self.signal(source, format_args!("kill-{total}"), moment(None), event);
        signal.attributes.push((WITNESS.to_owned(), POD_COUNTER.to_owned()));
        signal
    }

    /// The kill that the shim announced and that a counter below the container shows, or may have
    /// shown: a cgroup there was removed since. `None`: the counters show no kill.
    pub(super) fn killed_below(&mut self, source: &str, now: KillsBelow) -> Option<Signal> {
        let announcement = self.unconfirmed.as_ref()?;
        let added = now.since(&self.below);
        if added == 0 && now.has_all_of(&announcement.below) {
            return None;
        }
        if added == 0 {
            return self.killed_unseen(source);
        }
        self.unconfirmed = None;
        let event = Event::OomKill(OomKilled {
            added: Some(added),
            cgroup: self.cgroup.clone(),
            limit_bytes: self.memory_limit,
            witnesses: vec![Witness::Announced],
            ..OomKilled::new(Evidence::Announced)
        });
        let name = format!("kill-below-{}", now.total());
        self.below = now;
        Some(self.signal(source, name, moment(None), event))
    }

    /// The kill that the shim announced, where the counter that may have shown it is gone.
    pub(super) fn killed_unseen(&mut self, source: &str) -> Option<Signal> {
        let announcement = self.unconfirmed.take()?;
        (!announcement.is_counted && !self.announced).then(|| self.announced(source))
    }

    /// An OOM that the shim announced, where no counter can be read.
    pub(super) fn announced(&mut self, source: &str) -> Signal {
        self.announced = true;
        let event = Event::OomKill(OomKilled {
            limit_bytes: self.memory_limit,
            ..OomKilled::new(Evidence::Announced)
        });
        self.signal(source, "oom", moment(None), event)
    }

    /// The id of a process's end.
    pub(super) fn exit_id(&self, source: &str, process: &Process) -> String {
        self.signal(source, exit_name(process), moment(None), Event::Exited(Exited::unknown())).id
    }

    /// A process has ended.
    pub(super) fn exit(
        &self,
        source: &str,
        process: &Process,
        status: Option<u32>,
        at_ns: Option<u64>,
        reconciled: bool,
    ) -> Signal {
        let exited = Exited {
            pid: process.pid,
            is_init: Some(process.exec.is_none()),
            status,
            at_ns,
            reconciled,
            ..Exited::unknown()
        };
        let mut signal = self.signal(source, exit_name(process), moment(at_ns), Event::Exited(exited));
        signal.target.exec_id.clone_from(&process.exec);
        if let Some(because) = &self.kills_unknown {
            signal.attributes.push((KILLS_UNKNOWN.to_owned(), because.clone()));
            signal.attributes.sort();
        }
        signal
    }

    /// A kill request: a signal that was sent through the runtime.
    pub(super) fn request(&self, source: &str, request: &shim::KillRequest) -> Option<Signal> {
        let signal = u8::try_from(request.signal).ok().filter(|signal| *signal <= 64)?;
        let mut at = moment(Some(request.at_ns));
        at.boot_ns = Some(request.boot_ns);
        // Only letters and digits of the proxy's id become part of an event id.
        let proxy: String = request.proxy_id.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let event = Event::KillRequest(KillRequest { signal, all: request.all });
        let mut signal = self.signal(source, format_args!("request-{proxy}-{}", request.seq), at, event);
        signal.target.exec_id = (!request.exec_id.is_empty()).then(|| request.exec_id.clone());
        Some(signal)
    }

    /// A forwarded event, unchanged; `exec`: the one it is about.
    pub(super) fn forwarded(&self, source: &str, exec: Option<&str>, event: Forwarded) -> Signal {
        let topic = event.topic.trim_matches('/').replace(['/', ':'], "-");
        let sum = crc32fast::hash(&event.value);
        let name = format!("{topic}-{}-{sum:08x}", event.published_ns.unwrap_or(0));
        let is_creation = event.is_creation();
        let mut signal = self.signal(source, name, moment(None), Event::Forwarded(Box::new(event)));
        signal.target.exec_id = exec.map(str::to_owned);
        if !is_creation {
            // The case has the attributes of the creation.
            signal.attributes.clear();
        }
        signal
    }
}

/// No part of an event's id contains a colon.
fn exit_name(process: &Process) -> String {
    let exec = process.exec.as_deref().unwrap_or("init").replace(':', "-");
    format!("exit-{exec}-{}", process.pid.unwrap_or(0))
}

/// A moment on both clocks of this node; `wall_ns`: its wall-clock time, where known.
fn moment(wall_ns: Option<u64>) -> Moment {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot =
        u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(boot.tv_nsec).unwrap_or(0);
    let received_ms = unix_ms();
    let wall_ns = wall_ns.unwrap_or(received_ms * 1_000_000);
    let ago = (received_ms * 1_000_000).saturating_sub(wall_ns);
    Moment { boot_ns: Some(boot.saturating_sub(ago)), wall_ms: Some(wall_ns / 1_000_000), received_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> WrappedContainer {
        WrappedContainer::new("n", "k8s.io", &ContainerId::try_from("c".to_owned()).unwrap())
    }

    fn init(pid: Option<u32>) -> Process {
        Process { exec: None, pid }
    }

    #[test]
    fn kills_that_are_not_announced_in_time_are_dropped() {
        let (mut counted, now) = (CountedFirst::default(), Instant::now());
        assert!(!counted.take_one(now));
        counted.add(2, now);
        assert!(counted.take_one(now));
        assert!(!counted.take_one(now + 2 * ANNOUNCED_WITHIN));
        assert!(!counted.take_one(now));
    }

    #[test]
    fn signal_ids_match_documented_format() {
        let mut container = container();
        assert_eq!(container.exit_id("shims", &init(Some(7))), "n::shims:c:exit-init-7");
        let kill = container.kill("shims", Kills { total: 2, ..Kills::default() }, None);
        assert_eq!(kill.id, "n::shims:c:kill-2");
        assert_eq!(container.announced("shims").id, "n::shims:c:oom");
        let request =
            shim::KillRequest { seq: 3, proxy_id: "a:b".to_owned(), signal: 15, ..Default::default() };
        assert_eq!(container.request("shims", &request).unwrap().id, "n::shims:c:request-ab-3");
        assert!(container.is_new_request(&request) && !container.is_new_request(&request));
    }
}
