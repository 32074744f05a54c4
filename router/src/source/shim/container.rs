//! One container of a wrapped shim: who it is, what was told of it, and how signals about it are made.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use coroner_cgroup::Kills;
use coroner_proto::shim;
use tokio::time::Instant;

use super::bundle::Bundle;
use super::event::Process;
use super::looks::Looks;
use crate::arrival::unix_ms;
use crate::signal::{
    ContainerId, Event, Evidence, Exited, Forwarded, KillRequest, Level, Moment, OomKill, Signal, Target,
};

/// Processes remembered of one container: repeats come within half a minute. A container that is probed by execs has one more every few seconds.
const PROCESSES: usize = 64;
/// Proxies remembered of one container: there is one, and after its death another.
const PROXIES: usize = 4;

/// A process that was started or has ended.
#[derive(Debug)]
struct Seen {
    process: Process,
    told: bool,
}

/// A container whose end is to be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vanished {
    /// When, if nobody has told it by then.
    pub(super) at: Instant,
    /// So often containerd did not answer.
    pub(super) unanswered: u32,
}

/// What is known of a container.
#[derive(Debug)]
pub(super) struct Container {
    target: Target,
    attributes: Vec<(String, String)>,
    pub(super) memory_limit: Option<u64>,
    /// Its cgroup, where that is its own.
    pub(super) cgroup: Option<String>,
    /// An agent in its guest counts kills.
    pub(super) counted_in_guest: bool,
    /// The counter as it was told last.
    pub(super) kills: Option<Kills>,
    /// An OOM was announced and believed.
    pub(super) announced: bool,
    pub(super) started: bool,
    /// Its counter is gone, and nobody has told its end.
    pub(super) vanished: Option<Vanished>,
    /// Looks at the counter after a notice.
    pub(super) looks: Looks,
    processes: VecDeque<Seen>,
    requests: BTreeMap<String, u64>,
}

impl Container {
    /// Of whom nothing is known but where it is.
    pub(super) fn new(node: &str, namespace: &str, id: &ContainerId) -> Self {
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Self {
            target: Target {
                node: node.to_owned(),
                guest: None,
                containerd_namespace: namespace,
                sandbox_id: None,
                container_id: id.clone(),
                exec_id: None,
                owner: None,
            },
            attributes: Vec::new(),
            memory_limit: None,
            cgroup: None,
            counted_in_guest: false,
            kills: None,
            announced: false,
            started: false,
            vanished: None,
            looks: Looks::default(),
            processes: VecDeque::new(),
            requests: BTreeMap::new(),
        }
    }

    /// Reads who it is.
    pub(super) fn read(&mut self, folder: &str) -> Bundle {
        let bundle = Bundle::read(Path::new(folder));
        self.target.sandbox_id.clone_from(&bundle.sandbox_id);
        self.target.owner.clone_from(&bundle.owner);
        self.memory_limit = bundle.memory_limit;
        self.attributes = vec![("bundle".to_owned(), folder.to_owned())];
        let log = bundle.termination_log.iter().map(|log| ("termination-log".to_owned(), log.clone()));
        self.attributes.extend(log);
        bundle
    }

    /// Its pod's sandbox, where its bundle says it.
    pub(super) fn sandbox(&self) -> Option<&str> {
        self.target.sandbox_id.as_deref()
    }

    /// A process is there.
    pub(super) fn begun(&mut self, process: Process) {
        self.remember(Seen { process, told: false });
    }

    /// A process has ended: which it is, or none if that was told before. Who tells may not know its pid.
    pub(super) fn ended(&mut self, mut process: Process) -> (Process, bool) {
        let pid = process.pid;
        let same = |it: &&mut Seen| {
            it.process.exec == process.exec
                && (pid.is_none() || it.process.pid.is_none() || it.process.pid == pid)
        };
        if let Some(seen) = self.processes.iter_mut().rev().find(same) {
            process.pid = seen.process.pid.or(pid);
            return (process, !std::mem::replace(&mut seen.told, true));
        }
        self.remember(Seen { process: process.clone(), told: true });
        (process, true)
    }

    /// The same, not yet told to have ended.
    pub(super) fn known(&self, mut process: Process) -> Process {
        let pid = process.pid;
        let seen = self.processes.iter().rev().find(|it| {
            it.process.exec == process.exec
                && (pid.is_none() || it.process.pid.is_none() || it.process.pid == pid)
        });
        process.pid = seen.and_then(|it| it.process.pid).or(pid);
        process
    }

    /// Whether its init's end was told.
    pub(super) fn is_over(&self) -> bool {
        self.processes.iter().any(|it| it.told && it.process.exec.is_none())
    }

    pub(super) fn init_pid(&self) -> Option<u32> {
        self.processes.iter().find(|it| it.process.exec.is_none())?.process.pid
    }

    fn remember(&mut self, seen: Seen) {
        if self.processes.len() >= PROCESSES {
            let oldest = self.processes.iter().position(|it| it.told).unwrap_or(0);
            self.processes.remove(oldest);
        }
        self.processes.push_back(seen);
    }

    /// Whether a kill request is new.
    pub(super) fn asked(&mut self, request: &shim::KillRequest) -> bool {
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
        let rose = |after: Option<u64>, before: Option<u64>| Some(after? > before.unwrap_or(0));
        let level = match (rose(now.own_ooms, before.own_ooms), rose(now.ooms, before.ooms)) {
            (Some(true), _) => Level::Container,
            (Some(false), Some(true)) => Level::Child,
            _ => Level::Unknown,
        };
        let event = Event::OomKill(OomKill {
            added: Some(now.total.saturating_sub(before.total)),
            total: Some(now.total),
            evidence: Evidence::Counter,
            group: now.groups.map(|groups| groups > before.groups.unwrap_or(0)),
            level,
            cgroup: self.cgroup.clone(),
            limit_bytes: limit,
            victim: None,
            late: false,
        });
        self.kills = Some(now);
        self.signal(source, format_args!("kill-{}", now.total), moment(None), event)
    }

    /// The shim says that memory ran out, and nothing counts kills here.
    pub(super) fn announced(&mut self, source: &str) -> Signal {
        self.announced = true;
        let event = Event::OomKill(OomKill {
            added: None,
            total: None,
            evidence: Evidence::Announced,
            group: None,
            level: Level::Unknown,
            cgroup: None,
            limit_bytes: self.memory_limit,
            victim: None,
            late: false,
        });
        self.signal(source, "oom", moment(None), event)
    }

    /// The id of a process's end.
    pub(super) fn exit_id(&self, source: &str, process: &Process) -> String {
        self.signal(source, exit_name(process), moment(None), Event::Exited(nothing())).id
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
            ..nothing()
        };
        let mut signal = self.signal(source, exit_name(process), moment(at_ns), Event::Exited(exited));
        signal.target.exec_id.clone_from(&process.exec);
        signal
    }

    /// A signal was sent through the runtime.
    pub(super) fn request(&self, source: &str, told: &shim::KillRequest) -> Option<Signal> {
        let signal = u8::try_from(told.signal).ok().filter(|signal| *signal <= 64)?;
        let mut at = moment(Some(told.at_ns));
        at.boot_ns = Some(told.boot_ns);
        // Of what a proxy says nothing goes into an id but letters and digits.
        let proxy: String = told.proxy_id.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let event = Event::KillRequest(KillRequest { signal, all: told.all });
        let mut signal = self.signal(source, format_args!("request-{proxy}-{}", told.seq), at, event);
        signal.target.exec_id = (!told.exec_id.is_empty()).then(|| told.exec_id.clone());
        Some(signal)
    }

    /// An event as it came.
    pub(super) fn forwarded(&self, source: &str, event: Forwarded) -> Signal {
        let topic = event.topic.trim_matches('/').replace(['/', ':'], "-");
        let sum = crc32fast::hash(&event.value);
        let name = format!("{topic}-{}-{sum:08x}", event.published_ns.unwrap_or(0));
        let is_creation = event.is_creation();
        let mut signal = self.signal(source, name, moment(None), Event::Forwarded(Box::new(event)));
        if !is_creation {
            // The case has them from there.
            signal.attributes.clear();
        }
        signal
    }
}

fn nothing() -> Exited {
    Exited {
        pid: None,
        is_init: None,
        status: None,
        signal: None,
        core: None,
        at_ns: None,
        reconciled: false,
    }
}

/// No part of an event's id holds a colon.
fn exit_name(process: &Process) -> String {
    let exec = process.exec.as_deref().unwrap_or("init").replace(':', "-");
    format!("exit-{exec}-{}", process.pid.unwrap_or(0))
}

/// On both clocks of this node; `wall_ns`: when it was, where that is known.
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

    fn container() -> Container {
        Container::new("n", "k8s.io", &ContainerId::try_from("c".to_owned()).unwrap())
    }

    fn init(pid: Option<u32>) -> Process {
        Process { exec: None, pid }
    }

    #[test]
    fn an_end_is_told_once_whoever_tells_it_and_knows_the_pid_or_not() {
        for (begun, first, second) in [
            (Some(7), None, Some(7)),
            (Some(7), Some(7), None),
            (None, Some(7), Some(7)),
            (None, None, Some(7)),
        ] {
            let mut container = container();
            container.begun(init(begun));
            assert!(container.ended(init(first)).1, "{begun:?} {first:?}");
            assert!(!container.ended(init(second)).1, "{begun:?} {first:?} {second:?}");
            assert!(container.is_over());
        }
    }

    #[test]
    fn an_exec_that_comes_again_under_its_id_is_another() {
        let mut container = container();
        let exec = |pid| Process { exec: Some("e".to_owned()), pid: Some(pid) };
        for pid in [8, 9] {
            container.begun(exec(pid));
            assert!(container.ended(exec(pid)).1);
        }
        assert!(!container.ended(exec(8)).1 && !container.is_over());
        for pid in 100..1100 {
            container.begun(exec(pid));
            container.ended(exec(pid));
        }
        assert_eq!(container.processes.len(), PROCESSES);
    }

    #[test]
    fn ids_are_those_of_the_page_and_the_same_each_time() {
        let mut container = container();
        assert_eq!(container.exit_id("shims", &init(Some(7))), "n::shims:c:exit-init-7");
        let kill = container.kill("shims", Kills { total: 2, ..Kills::default() }, None);
        assert_eq!(kill.id, "n::shims:c:kill-2");
        assert_eq!(container.announced("shims").id, "n::shims:c:oom");
        let request =
            shim::KillRequest { seq: 3, proxy_id: "a:b".to_owned(), signal: 15, ..Default::default() };
        assert_eq!(container.request("shims", &request).unwrap().id, "n::shims:c:request-ab-3");
        assert!(container.asked(&request) && !container.asked(&request));
    }
}
