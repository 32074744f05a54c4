//! Every kind of container end, in a real kernel with cgroup v2, seen from each placement of an
//! agent.

use coroner_proto::agent::{CauseKind, Level, PressureOf, signal::Event};
use coroner_tests::report::print;
use coroner_tests::vm::Vm;
use coroner_tests::wait::until;

use super::reader::{PATIENCE, Reader};

/// An agent, and how containers are started below its root.
struct Place<'a> {
    vm: &'a Vm,
    reader: Reader,
    root: &'static str,
    shell: u32,
    /// The reason that its exits without a status carry; none where each has a status.
    unknown: Option<&'static str>,
    /// A container that ends before it is first checked has no status.
    misses: bool,
    causes: Causes,
}

/// Causes of ends by a signal: how many were stated, none of them another than what was done.
#[derive(Debug, Default)]
struct Causes {
    stated: usize,
    unknown: Vec<String>,
}

/// A container, and what must be reported of it.
struct Case {
    id: &'static str,
    keys: &'static str,
    action: &'static str,
    kills: u64,
    end: (u32, Option<u32>),
}

const LIMIT: &str = "memory.max=8M";

const fn case(
    id: &'static str,
    keys: &'static str,
    action: &'static str,
    kills: u64,
    end: (u32, Option<u32>),
) -> Case {
    Case { id, keys, action, kills, end }
}

/// A process that sends a signal lives on for a moment: the cgroup of one that ends at once is not
/// known.
const MOMENT: &str = "sleep 0.2";

const CASES: [Case; 12] = [
    case("pid1-oom", LIMIT, "self 64", 1, (137, Some(9))),
    case("child-oom", LIMIT, "child 64 1 0", 1, (1, None)),
    case("survivor", LIMIT, "children 2 64 300", 2, (0, None)),
    case("group", "memory.max=8M memory.oom.group=1", "child 64 0 0", 1, (137, Some(9))),
    case("exit-0", "", "exit 0", 0, (0, None)),
    case("exit-1", "", "exit 1", 0, (1, None)),
    case("exit-7", "", "exit 7", 0, (7, None)),
    case("exit-137", "", "exit 137", 0, (137, None)),
    case("exit-143", "", "exit 143", 0, (143, None)),
    case("crash", "", "crash", 0, (139, Some(11))),
    case("seccomp", "", "seccomp", 0, (159, Some(31))),
    case("slow", "memory.high=20M memory.max=22M", "slow 48 10", 1, (137, Some(9))),
];

impl Place<'_> {
    fn run(&self, id: &str, keys: &str, action: &str) -> u32 {
        let command = format!("/guest run {} {id} {keys} -- /oomtest {action}", self.root);
        self.vm.must_at(self.shell, &command).unwrap().trim().parse().unwrap()
    }

    fn remove(&self, id: &str) {
        // The kernel may still be at the last process.
        let folder = format!("/sys/fs/cgroup/{}/{id}", self.root);
        self.vm
            .must(&format!(
                "while ! rmdir {folder} 2>/dev/null; do [ -d {folder} ] || break; sleep 0.05; done"
            ))
            .unwrap();
    }

    async fn ended(&mut self, id: &str) {
        self.reader.until(id, |reader| reader.end(id).is_some()).await;
    }

    /// Reports match what happened: the counter, each kill before the exit, and the status, or that
    /// it is not known.
    fn check(&self, id: &str, kills: u64, end: (u32, Option<u32>)) {
        let reported = self.reader.end(id).unwrap();
        match self.unknown {
            None => assert_eq!(reported, (Some(end.0), end.1, String::new()), "{id}"),
            Some(because) => assert_eq!(reported, (None, None, because.to_owned()), "{id}"),
        }
        self.check_kills(id, kills);
    }

    fn check_kills(&self, id: &str, kills: u64) {
        let signals = self.reader.of(id);
        let counted = self.reader.kills(id);
        if kills == 0 || id != "group" {
            assert_eq!(counted, kills, "{id}: {signals:?}");
        } else {
            assert!(counted >= kills, "{id}: {signals:?}");
        }
        let exit = signals.iter().find(|it| matches!(it.event, Some(Event::Exited(_)))).unwrap();
        for signal in &signals {
            if let Some(Event::OomKill(kill)) = &signal.event {
                assert!(signal.seq < exit.seq, "{id}: a kill after the exit");
                assert_eq!(kill.level.enum_value(), Ok(Level::LEVEL_CONTAINER), "{id}");
                // The kernel logs ten victims in five seconds; the rest only show in the counters.
                assert!(kill.victim.as_ref().is_none_or(|it| it.comm == "oomtest"), "{id}: {kill:?}");
                assert_eq!(kill.group.unwrap(), id == "group", "{id}");
            }
        }
    }

    /// The cause that is stated is what was done; none is stated where no signal ended it.
    fn check_cause(&mut self, id: &str, done: Option<CauseKind>) {
        match (self.reader.cause(id), done) {
            (None, Some(_)) => self.causes.unknown.push(id.to_owned()),
            (stated, done) => {
                assert_eq!(stated, done, "{id}: {:?}", self.reader.of(id));
                self.causes.stated += usize::from(stated.is_some());
            }
        }
    }

    /// Prints how many causes were stated. With a trace it is most of them.
    fn end_causes(&self, is_traced: bool) {
        let Causes { stated, unknown } = &self.causes;
        print(format_args!("{}: {stated} causes stated, unknown of {unknown:?}", self.root));
        assert!(!is_traced || unknown.len() * 4 <= *stated, "{:?}", self.causes);
    }

    async fn every_case(&mut self) {
        for case in &CASES {
            self.run(case.id, case.keys, case.action);
        }
        for case in &CASES {
            self.ended(case.id).await;
            self.check(case.id, case.kills, case.end);
            let done = match case.end.1 {
                Some(9) => Some(CauseKind::CAUSE_KERNEL_OOM),
                Some(11) => Some(CauseKind::CAUSE_CRASH),
                Some(31) => Some(CauseKind::CAUSE_SECCOMP),
                signal => {
                    assert_eq!(signal, None, "a signal without a cause");
                    None
                }
            };
            self.check_cause(case.id, done);
            self.remove(case.id);
        }
        let first = self.reader.of("pid1-oom");
        let victim = first.iter().find_map(|it| match &it.event {
            Some(Event::OomKill(kill)) => kill.victim.as_ref(),
            _ => None,
        });
        // The kernel logs ten victims in five seconds, and may have done so for another container
        // just before.
        let logged = self.vm.must("dmesg").unwrap().contains(&format!("task_memcg=/{}/pid1-oom,", self.root));
        assert!(logged || self.root != "reaped", "no victim came before");
        // The trace names it too.
        assert!(victim.is_some() || !logged, "{first:?}");
        assert!(victim.is_none_or(|it| it.comm == "oomtest"), "{first:?}");
        let pressure = self.reader.pressure("slow");
        let (first, reported) = pressure.first().expect("slow reclaim trips the trigger, or memory.high");
        let kill =
            self.reader.of("slow").iter().find(|it| matches!(it.event, Some(Event::OomKill(_)))).unwrap().seq;
        assert!(*first < kill, "pressure ahead of the kill: {first} {kill}");
        assert_eq!(reported.of.enum_value(), Ok(PressureOf::PRESSURE_OF_MEMORY));
        assert!(pressure.iter().any(|(_, it)| it.high_events > Some(0)), "{pressure:?}");
        assert!(pressure.iter().skip(1).all(|(_, it)| it.stalled_us.is_some()), "{pressure:?}");
        print(format_args!("{}: {} pressure signals before a slow OOM", self.root, pressure.len()));
    }

    async fn killed_from_outside(&mut self) {
        let (root, cgroups) = (self.root, "/sys/fs/cgroup");
        for (id, within, done) in [
            ("killed", String::new(), CauseKind::CAUSE_NODE_PROCESS),
            (
                "killed-within",
                format!("echo $$ > {cgroups}/{root}/killed-within/cgroup.procs;"),
                CauseKind::CAUSE_CONTAINER_PROCESS,
            ),
        ] {
            let pid = self.run(id, "", "pause");
            self.knows(id).await;
            self.vm.must(&format!("{within} kill -9 {pid}; {MOMENT}")).unwrap();
            self.ended(id).await;
            self.check(id, 0, (137, Some(9)));
            self.check_cause(id, Some(done));
            self.remove(id);
        }
        self.run("cgroup-kill", "", "pause");
        self.knows("cgroup-kill").await;
        self.vm.must(&format!("echo 1 > {cgroups}/{root}/cgroup-kill/cgroup.kill; {MOMENT}")).unwrap();
        self.ended("cgroup-kill").await;
        self.check_cause("cgroup-kill", Some(CauseKind::CAUSE_CGROUP_KILL));
        self.remove("cgroup-kill");
    }

    /// The agent is stopped while a container is killed and ends. It knew the container if `known`.
    async fn asleep(&mut self, id: &str, agent: &str, known: bool) {
        let stop = |signal: &str| self.vm.must(&format!("kill -{signal} {agent}")).unwrap();
        if known {
            self.run(id, LIMIT, "delay 2000 self 64");
            self.knows(id).await;
            stop("STOP");
        } else {
            stop("STOP");
            self.run(id, LIMIT, "self 64");
        }
        let events = format!("/sys/fs/cgroup/{}/{id}/cgroup.events", self.root);
        self.vm.must(&format!("while ! grep -q 'populated 0' {events}; do sleep 0.05; done")).unwrap();
        self.vm.must(&format!("kill -CONT {agent}")).unwrap();
        self.ended(id).await;
        self.check(id, 1, (137, Some(9)));
        self.remove(id);
    }

    /// Waits until the agent follows the container, and its init where it can.
    async fn knows(&self, id: &str) {
        self.reader.knows(id, self.unknown.is_none()).await;
    }

    /// Fifty at once, of all kinds.
    async fn storm(&mut self, name: &str) {
        let kind = |at: usize| match at % 5 {
            0 => ("self 64", 1, (137, Some(9))),
            1 => ("child 64 1 0", 1, (1, None)),
            2 => ("exit 0", 0, (0, None)),
            3 => ("exit 143", 0, (143, None)),
            _ => ("children 2 64 10", 2, (0, None)),
        };
        let ids: Vec<String> = (0..50).map(|at| format!("{name}-{at}")).collect();
        let misses = self.misses;
        let slow = |at: usize| misses && at.is_multiple_of(2);
        let start = |(at, id): (usize, &String)| {
            let waits = if slow(at) { "await " } else { "" };
            let (root, action) = (self.root, kind(at).0);
            format!("{{ /guest run {root} {id} {LIMIT} -- /oomtest {waits}{action} || echo not started; }} &")
        };
        let all: Vec<String> = ids.iter().enumerate().map(start).collect();
        let printed = self.vm.must_at(self.shell, &format!("{} wait", all.join(" "))).unwrap();
        assert!(!printed.contains("not started"), "{printed}");
        for (_, id) in ids.iter().enumerate().filter(|(at, _)| slow(*at)) {
            self.knows(id).await;
            self.vm.go_on(self.root, id).unwrap();
        }
        let because = self.unknown.unwrap_or("init not known");
        let mut missed = 0;
        for (at, id) in ids.iter().enumerate() {
            let (_, kills, end) = kind(at);
            if misses && !slow(at) {
                // A container that was never seen alive is over when its cgroup goes.
                let events = format!("/sys/fs/cgroup/{}/{id}/cgroup.events", self.root);
                self.vm
                    .must(&format!("while ! grep -q 'populated 0' {events}; do sleep 0.05; done"))
                    .unwrap();
                self.remove(id);
                self.ended(id).await;
                let reported = self.reader.end(id).unwrap();
                let unknown = reported.0.is_none() && reported.1.is_none() && reported.2.contains(because);
                assert!(unknown || reported == (Some(end.0), end.1, String::new()), "{id}: {reported:?}");
                missed += u32::from(unknown);
                self.check_kills(id, kills);
            } else {
                self.ended(id).await;
                self.check(id, kills, end);
                self.remove(id);
            }
        }
        if self.misses {
            print(format_args!("{}: of 25 lives that began at once {missed} had no status", self.root));
        }
    }
}

const ROUTER: &str = r#"
    node = "in-the-guest"
    [control]
    socket = "/run/control.sock"
    [[source]]
    name = "agent"
    type = "agent"
    address = "vsock://1:1030"
    mode = "sole"
    [[sink]]
    name = "audit"
    type = "jsonl"
    path = "/tmp/audit.jsonl"
"#;

#[tokio::test]
async fn container_ends_are_reported_exactly_from_each_placement() {
    let router = coroner_tests::binary::find("coroner", "coroner-cli").unwrap();
    let vm = Vm::boot("exec /guest serve 9000", |files| {
        files.file("coroner.toml", ROUTER.as_bytes());
        files.program("coroner", &router)
    })
    .await
    .unwrap();
    let start =
        |command: &str| vm.must(&format!("{command} > /tmp/log 2>&1 & echo $!")).unwrap().trim().to_owned();
    vm.must("mount -t tracefs none /sys/kernel/tracing").unwrap();
    let reaper =
        start("/agent run --listen vsock://-1:1030 --root reaped --root narrow -- /guest serve 9001");
    let sidecar = start("/agent run --listen vsock://-1:1031 --root watched");
    start("unshare -p -n -f --mount-proc /agent run --listen vsock://-1:1032 --root apart");
    vm.listens(9001).await.unwrap();

    let reader = Reader::connect(&vm.address(1030)).await;
    assert_eq!((reader.hello.placement.as_str(), reader.hello.cgroup_version), ("reaper", 2));
    let mut place = Place {
        vm: &vm,
        reader,
        root: "reaped",
        shell: 9001,
        unknown: None,
        misses: false,
        causes: Causes::default(),
    };
    place.every_case().await;
    place.killed_from_outside().await;
    place.asleep("asleep", &reaper, true).await;
    place.asleep("unseen", &reaper, false).await;
    place.end_causes(true);
    place.storm("storm").await;

    let reader = Reader::connect(&vm.address(1031)).await;
    assert_eq!(reader.hello.placement, "sidecar");
    let mut place = Place {
        vm: &vm,
        reader,
        root: "watched",
        shell: 9000,
        unknown: None,
        misses: true,
        causes: Causes::default(),
    };
    place.every_case().await;
    place.killed_from_outside().await;
    place.asleep("asleep", &sidecar, true).await;
    place.end_causes(true);
    place.storm("storm").await;
    // Without a pid namespace of its own the init process cannot be identified: named by Watch its
    // status is known, else it is not, and never wrong.
    let share = |id: &str| {
        let command = format!("/guest share watched {id} -- /oomtest delay 1000 exit 3");
        vm.must(&command).unwrap().trim().parse::<u32>().unwrap()
    };
    let (named, _) = (share("named"), share("nameless"));
    place.reader.watch("named", "/watched/named", named).await;
    place.ended("named").await;
    place.check("named", 0, (3, None));
    place.remove("nameless");
    place.unknown = Some("init not known");
    place.ended("nameless").await;
    let reported = place.reader.end("nameless").unwrap();
    assert_eq!((reported.0, reported.1), (None, None), "{reported:?}");
    assert!(reported.2.contains("init not known"), "{reported:?}");

    let reader = Reader::connect(&vm.address(1032)).await;
    assert_eq!(reader.hello.placement, "namespaced");
    assert!(!reader.hello.capabilities.contains(&"exit-status".to_owned()));
    let mut place = Place {
        vm: &vm,
        reader,
        root: "apart",
        shell: 9000,
        unknown: Some("no process events here"),
        misses: true,
        causes: Causes::default(),
    };
    place.every_case().await;
    place.storm("storm").await;

    level_and_loopback(&vm).await;
}

/// The limit above a container, and a router that dials AF_VSOCK.
async fn level_and_loopback(vm: &Vm) {
    vm.must("/coroner run --config /coroner.toml > /tmp/router.log 2>&1 &").unwrap();
    vm.must("mkdir /sys/fs/cgroup/narrow; echo '+memory' > /sys/fs/cgroup/narrow/cgroup.subtree_control; echo 8M > /sys/fs/cgroup/narrow/memory.max").unwrap();
    // The kernel logs ten victims in five seconds, and only its log names the limit that was hit:
    // the budget that the cases before it used up recovers with time.
    for at in 0..LEVELS {
        let (kill, exit) = killed_above(vm, &format!("above-{at}")).await;
        assert_eq!(exit["signal"]["event"]["exited"]["status"], 137, "{exit}");
        assert_eq!(exit["actions"][0]["task-exit"], serde_json::Value::Null, "{exit}");
        match kill["signal"]["event"]["oom-kill"]["level"].as_str() {
            Some("ancestor") => return,
            level => assert_eq!(level, Some("unknown"), "{kill}"),
        }
    }
    panic!("the kernel's log named no victim of {LEVELS}");
}

/// Tries until the kernel's log has room: each takes a second or more.
const LEVELS: usize = 15;

/// A container killed for the limit above it: the audit's records of its kill and its exit.
async fn killed_above(vm: &Vm, id: &str) -> (serde_json::Value, serde_json::Value) {
    vm.must_at(9001, &format!("sleep 1; /guest run narrow {id} -- /oomtest self 64")).unwrap();
    let audit = until("the router in the guest to rule on an exit", PATIENCE * 3, async || {
        let text = vm.sh("cat /tmp/audit.jsonl")?.text;
        let records: Vec<serde_json::Value> =
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let of = |kind: &str| {
            records
                .iter()
                .find(|it| {
                    it["signal"]["target"]["container-id"] == id && !it["signal"]["event"][kind].is_null()
                })
                .cloned()
        };
        Ok(of("oom-kill").zip(of("exited")))
    })
    .await;
    audit.map_err(|error| format!("{error}: {}", vm.must("cat /tmp/router.log").unwrap())).unwrap()
}

#[tokio::test]
async fn agent_as_pid_1_reports_the_shortest_containers() {
    let init = "exec /agent run --listen vsock://-1:1030 --root reaped -- /guest serve 9000";
    let vm = Vm::boot(init, |_| Ok(())).await.unwrap();
    assert_eq!(vm.must("cat /proc/1/comm").unwrap().trim(), "agent");
    let reader = Reader::connect(&vm.address(1030)).await;
    assert_eq!(reader.hello.placement, "reaper");
    let mut place = Place {
        vm: &vm,
        reader,
        root: "reaped",
        shell: 9000,
        unknown: None,
        misses: false,
        causes: Causes::default(),
    };
    place.every_case().await;
    place.end_causes(false);
    place.storm("storm").await;
    assert!(vm.must("/agent check").unwrap().contains("placement sidecar"), "it is not pid 1 itself");
}
