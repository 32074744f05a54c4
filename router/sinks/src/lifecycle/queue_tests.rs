//! A process's inputs in every order, through the state of its container's processes, its exit's
//! barrier and the queue.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::*;
use coroner_containerd::holds::{Holds, Input, Process, Processes, Reporter};
use coroner_core::signal::Forwarded;

const PID: u32 = 7;
const RULED: u32 = 3;
const RELEASED: u32 = 4;

/// What the router receives about one exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    Added,
    Started,
    Rule,
    Released,
    Exited,
}

const ALL: [Received; 5] =
    [Received::Added, Received::Started, Received::Rule, Received::Released, Received::Exited];

/// How its proxy reports it.
#[derive(Clone, Copy, Debug)]
struct Proxy {
    knows_pid: bool,
    has_hold_id: bool,
}

fn publish(topic: &str, exec: Option<&str>) -> Box<Publish> {
    let event = match topic {
        "/tasks/oom" => TaskEvent::Oom,
        "/tasks/exit" => TaskEvent::Exit {
            exec_id: exec.map(str::to_owned),
            pid: Some(PID),
            status: Some(RULED),
            exited_at_ms: 0,
            exited_at_rest_ns: 0,
            held: true,
        },
        _ => TaskEvent::Forwarded(Box::new(Forwarded {
            topic: topic.to_owned(),
            type_url: String::new(),
            value: Vec::new(),
            published_ns: None,
        })),
    };
    Box::new(Publish {
        signal: format!("{topic} {}", exec.unwrap_or("init")),
        container: "c".to_owned(),
        namespace: "k8s.io".to_owned(),
        bundle: None,
        exec: exec.map(str::to_owned),
        event,
        ruled: Instant::now(),
        repeat: false,
        ack: None,
    })
}

/// A router without clock, threads and sockets: source, pipeline, barrier and lane.
#[derive(Default)]
struct World {
    processes: Processes,
    holds: Holds,
    pipeline: VecDeque<Box<Publish>>,
    queues: Queues,
    parked: Vec<String>,
    published: Vec<Publish>,
}

impl World {
    fn receive(&mut self, received: Received, proxy: Proxy) {
        let process = |pid| Process { exec: Some("e".to_owned()), pid };
        let pid_of_proxy = Some(PID).filter(|_| proxy.knows_pid);
        match received {
            Received::Added => {
                self.processes.created(process(None));
                self.pipeline.push_back(publish("/tasks/exec-added", Some("e")));
            }
            Received::Started => {
                if let Some(exit) = self.processes.started(process(Some(PID))) {
                    self.holds.apply(&id(&exit), Input::Pid(PID));
                }
                self.pipeline.push_back(publish("/tasks/exec-started", Some("e")));
            }
            Received::Rule => {
                let id = self.ended(process(pid_of_proxy), Reporter::Request);
                self.holds.apply(&id, Input::Requested);
                if proxy.has_hold_id {
                    self.holds.bind("p-1", &id);
                }
            }
            Received::Exited => drop(self.ended(process(Some(PID)), Reporter::Shim)),
            Received::Released => {
                let is_known = proxy.has_hold_id && self.holds.release("p-1", RELEASED);
                if !is_known && let Some(exit) = self.processes.released(process(pid_of_proxy), RELEASED) {
                    self.holds.apply(&id(&exit), Input::Released(RELEASED));
                }
            }
        }
    }

    fn ended(&mut self, process: Process, reporter: Reporter) -> String {
        let ended = self.processes.ended(process, reporter);
        let id = id(&ended.process);
        self.holds.ended(&id, &ended, reporter);
        if ended.is_first {
            let mut exit = publish("/tasks/exit", Some("e"));
            exit.signal.clone_from(&id);
            if let TaskEvent::Exit { pid, .. } = &mut exit.event {
                *pid = ended.process.pid;
            }
            self.pipeline.push_back(exit);
        }
        id
    }

    /// Publishes what can be.
    fn run(&mut self) {
        self.pipeline.drain(..).for_each(|publish| self.queues.push(publish));
        let holds = self.holds.clone();
        let awaits_start = |signal: &str| holds.barrier(signal).awaits_start();
        loop {
            while let Some(turn) = self.queues.next(Some(&awaits_start)) {
                let resolved = match turn {
                    Turn::Send(publish) => {
                        let resolved = self.queues.sent(&publish);
                        self.published.push(*publish);
                        resolved
                    }
                    Turn::Park { signal, status, .. } => {
                        self.holds.apply(&signal, Input::Reached(status));
                        self.parked.push(signal);
                        Vec::new()
                    }
                    Turn::Unstarted(signals) => signals,
                };
                resolved.iter().for_each(|signal| self.holds.apply(signal, Input::StartResolved));
            }
            let clear = |signal: &String| self.holds.barrier(signal).published().is_some();
            let Some(at) = self.parked.iter().position(clear) else { return };
            let signal = self.parked.remove(at);
            let published = self.holds.barrier(&signal).published().unwrap();
            self.queues.release("c", &signal, published);
        }
    }

    fn time_out(&mut self, input: Input) {
        self.parked.iter().for_each(|signal| self.holds.apply(signal, input));
        self.run();
    }

    fn position(&self, topic: &str) -> Option<usize> {
        self.published.iter().position(|it| it.event.topic() == topic)
    }
}

fn id(process: &Process) -> String {
    format!("exit-{}-{}", process.exec.as_deref().unwrap_or("init"), process.pid.unwrap_or(0))
}

/// Every order of every choice of them.
fn arrangements(of: &[Received]) -> Vec<Vec<Received>> {
    let mut all = vec![Vec::new()];
    for first in of {
        let rest: Vec<Received> = of.iter().copied().filter(|it| it != first).collect();
        all.extend(arrangements(&rest).into_iter().map(|rest| [vec![*first], rest].concat()));
    }
    all
}

fn check(order: &[Received], proxy: Proxy, runs: usize, is_deleted: bool) {
    let case = format!("{order:?} {proxy:?} runs {runs:b} deleted {is_deleted}");
    let has = |received| order.contains(&received);
    let mut world = World::default();
    for (at, received) in order.iter().enumerate() {
        world.receive(*received, proxy);
        if runs >> at & 1 == 1 {
            world.run();
        }
    }
    world.run();
    if has(Received::Rule) {
        let answered = world.holds.barrier("exit-e-7").answer().is_some()
            || world.holds.barrier("exit-e-0").answer().is_some();
        assert!(answered, "the request is not answered at once: {case}");
    }
    let has_ended = has(Received::Rule) || has(Received::Exited);
    if has_ended && has(Received::Released) && has(Received::Started) {
        assert_eq!(world.queues.len(), 0, "a queue is blocked although its exit is released: {case}");
    }
    if is_deleted {
        world.pipeline.push_back(publish("/tasks/delete", None));
        world.run();
    } else {
        world.time_out(Input::StartResolved);
    }
    world.time_out(Input::ReleaseLate);
    assert_eq!((world.queues.len(), world.parked.len()), (0, 0), "a queue is blocked for ever: {case}");
    let exits: Vec<&Publish> =
        world.published.iter().filter(|it| it.event.topic() == "/tasks/exit").collect();
    assert_eq!(exits.len(), usize::from(has_ended), "{case}");
    for exit in exits {
        let at = world.position("/tasks/exit");
        let after = |topic| world.position(topic).is_none_or(|before| Some(before) < at);
        // A shim publishes exec-added first. Where it had to retry that, exec-started vouches for
        // it.
        let place = |of| order.iter().position(|it| *it == of);
        let in_order = has(Received::Started) && place(Received::Added) < place(Received::Started);
        assert!(after("/tasks/exec-added") || !in_order, "before exec-added: {case}");
        assert!(after("/tasks/exec-started"), "before exec-started: {case}");
        assert!(!is_deleted || at < world.position("/tasks/delete"), "after the deletion: {case}");
        let TaskEvent::Exit { pid, status, held: false, .. } = exit.event else { panic!("{exit:?}") };
        let expect = if has(Received::Released) { RELEASED } else { RULED };
        assert_eq!(status, Some(expect), "{case}");
        let is_known = has(Received::Started) || has(Received::Rule) && proxy.knows_pid;
        assert!(pid == Some(PID) || !is_known, "the pid is lost: {case}");
    }
}

#[test]
fn every_order_of_inputs_publishes_one_exit_after_its_start() {
    for order in arrangements(&ALL) {
        for runs in 0..1 << order.len() {
            for variant in 0..8 {
                let proxy = Proxy { knows_pid: variant & 1 == 0, has_hold_id: variant & 2 == 0 };
                check(&order, proxy, runs, variant & 4 == 0);
            }
        }
    }
}

/// What is published of these while the exit of `held` is parked.
fn published_behind(held: Option<&str>, behind: &[(&str, Option<&str>)]) -> Vec<String> {
    let mut world = World::default();
    world.pipeline.push_back(publish("/tasks/exit", held));
    world.pipeline.extend(behind.iter().map(|(topic, exec)| publish(topic, *exec)));
    world.run();
    let published = world.published.iter().map(|it| it.signal.clone()).collect();
    world.time_out(Input::ReleaseLate);
    assert_eq!((world.queues.len(), world.published.len()), (0, behind.len() + 1));
    published
}

#[test]
fn held_exit_delays_only_what_depends_on_it() {
    let (e, f) = (Some("e"), Some("f"));
    let none: [&str; 0] = [];
    assert_eq!(
        published_behind(e, &[("/tasks/exec-added", f), ("/tasks/oom", None), ("/tasks/paused", None)]),
        ["/tasks/exec-added f", "/tasks/oom init", "/tasks/paused init"]
    );
    assert_eq!(
        published_behind(None, &[("/tasks/exec-started", f), ("/tasks/oom", None)]),
        ["/tasks/exec-started f", "/tasks/oom init"]
    );
    assert_eq!(
        published_behind(e, &[("/tasks/exec-added", e), ("/tasks/exec-started", f)]),
        ["/tasks/exec-started f"]
    );
    assert_eq!(published_behind(e, &[("/tasks/delete", None), ("/tasks/exec-added", f)]), none);
    assert_eq!(published_behind(None, &[("/tasks/create", None), ("/tasks/start", None)]), none);
}

#[test]
fn containers_take_turns() {
    let mut queues = Queues::default();
    for (container, topic) in [("a", "1"), ("a", "2"), ("b", "3")] {
        let mut publish = publish(topic, None);
        container.clone_into(&mut publish.container);
        queues.push(publish);
    }
    let mut sending = Vec::new();
    while let Some(Turn::Send(publish)) = queues.next(None) {
        sending.push(publish);
    }
    let topics =
        |sent: &[Box<Publish>]| sent.iter().map(|it| it.event.topic().to_owned()).collect::<Vec<_>>();
    assert_eq!(topics(&sending), ["1", "3"], "one of each container at once");
    queues.sent(&sending[0]);
    let Some(Turn::Send(next)) = queues.next(None) else { panic!("{queues:?}") };
    assert_eq!(next.event.topic(), "2");
    queues.sent(&next);
    assert_eq!(queues.len(), 1);
    assert_eq!(queues.drain().count(), 0, "it is being sent");
}
