//! End to end: two guests, the real router on the host, and a containerd that receives how
//! containers in them ended.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use coroner_tests::containerd::Containerd;
use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::report::print;
use coroner_tests::router::{Router, usual};
use coroner_tests::scratch::Scratch;
use coroner_tests::vm::Vm;
use coroner_tests::wait::until;
use serde_json::Value;

use super::proxy::Proxy;
use super::reader::{PATIENCE, Reader};
use super::truth::{ENDS, Truth, check, repeats};

/// The init that docs/operating/guest.md shows.
const INIT: &str = include_str!("../../../examples/deploy/guest/init");
const CUTS: usize = 50;
/// Containers of the storm, at least: it lasts as long as links are cut.
const STORM: usize = 60;
/// Programs of the storm that live at once, and what is left of before. Without this bound they use
/// up the guest's memory and its processor, and no agent in it gets to send anything.
const AT_ONCE: usize = 24;
/// Processes of the groups that are killed as a whole.
const GROUPS: [u64; 3] = [1, 2, 100];
/// The time the router has to report that a guest is gone.
const LOST_WITHIN: Duration = Duration::from_secs(1);

/// The containers that still live when their guests are killed.
const LEFT: [(&str, usize); 2] = [("left-one", 3), ("left-two", 2)];

struct Stage {
    router: Router,
    events: Events,
    _containerd: Containerd,
    one: Vm,
    two: Vm,
    proxy: Proxy,
}

impl Stage {
    /// Guest one has the agent as pid 1, as in the example, and a link that can be cut; guest two
    /// has it as a sidecar, and is added later.
    async fn set() -> Self {
        let containerd = Containerd::start().await.unwrap();
        let events = Events::subscribe(&containerd.socket()).await.unwrap();
        let sidecar =
            "/agent run --listen vsock://-1:1031 --root watched > /dev/null 2>&1 &\nexec /guest serve 9000";
        let (one, two) = tokio::join!(Vm::boot_image(INIT, |_| Ok(())), Vm::boot(sidecar, |_| Ok(())));
        let (one, two) = (one.unwrap(), two.unwrap());
        let scratch = Scratch::new().unwrap();
        let link = scratch.path("one.vsock");
        let proxy = Proxy::start(&link, one.socket());
        let config = config(&containerd, &link, one.pid().unwrap());
        let router = Router::start_in(scratch, &config).await.unwrap();
        let added = router
            .request(&["guest", "add", "two", "--address", &two.address(1031), "--mode", "sole"])
            .unwrap();
        assert_eq!((&added["guest"], &added["configured"]), (&"two".into(), &false.into()), "{added}");
        let stage = Self { router, events, _containerd: containerd, one, two, proxy };
        stage.states(&["up", "up"]).await;
        stage
    }

    /// Waits until `coroner guest list` shows both in these states.
    async fn states(&self, wanted: &[&str]) {
        until("both guests to be listed as they are", PATIENCE, async || {
            let list = self.router.request(&["guest", "list"])?;
            let guests = list["guests"].as_array().cloned().unwrap_or_default();
            let of = |key: &str| guests.iter().map(|it| it[key].clone()).collect::<Vec<_>>();
            assert_eq!(
                (of("guest"), of("configured")),
                (vec!["one".into(), "two".into()], vec![true.into(), false.into()])
            );
            Ok((of("state") == wanted).then_some(()))
        })
        .await
        .unwrap();
    }

    /// What lives on until the machines are killed.
    fn leave(&self) {
        for ((vm, root), (name, count)) in
            [(&self.one, "pods-a"), (&self.two, "watched")].into_iter().zip(LEFT)
        {
            for at in 0..count {
                vm.must(&format!("/guest run {root} {name}-{at} -- /oomtest pause")).unwrap();
            }
        }
    }
}

fn config(containerd: &Containerd, link: &Path, monitor: u32) -> String {
    format!(
        r#"{usual}
[guests]
directory = "@DIR@/guests.d"
[[guest]]
name = "one"
type = "agent"
address = "hvsock://{link}:1030"
mode = "sole"
monitor_pid = {monitor}
"#,
        usual = usual("test-node", &containerd.socket()),
        link = link.display(),
    )
}

/// A shell script that begins containers one after the other until a file ends it; it prints how
/// many.
fn storm() -> String {
    let mut ends = String::new();
    for (at, (action, ..)) in ENDS.iter().enumerate() {
        write!(ends, "{at}) a='{action}';; ").unwrap();
    }
    format!(
        "i=0; while [ $i -lt {STORM} ] || [ ! -e /tmp/enough ]; do \
         while [ $(pidof oomtest | wc -w) -gt {AT_ONCE} ]; do sleep 0.05; done; case $((i % {})) in {ends}esac; \
         /guest run pods-a storm-$i memory.max=8M -- /oomtest $a > /dev/null || exit 1; i=$((i + 1)); done; echo $i",
        ENDS.len()
    )
}

fn truth(id: String, at: usize) -> Truth {
    let (_, kills, status) = ENDS[at % ENDS.len()];
    Truth { id, kills, status }
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_deaths_reach_containerd_over_cuts_and_restarts() {
    let mut stage = Stage::set().await;
    stage.one.must("mkdir /sys/fs/cgroup/pods-a; echo '+memory +cpu +io' > /sys/fs/cgroup/pods-a/cgroup.subtree_control").unwrap();
    stage.leave();
    quiet(&mut stage).await;
    one_kill_of_a_group_is_one_event(&mut stage).await;
    let mut truths = cut_in_a_storm(&mut stage).await;
    truths.extend((0..2 * ENDS.len()).map(|at| truth(format!("quiet-{at}"), at)));
    lost(&mut stage, &truths).await;
}

/// Every kind of end in guest two, each seen to begin.
async fn quiet(stage: &mut Stage) {
    let sidecar = Reader::connect(&stage.two.address(1031)).await;
    assert_eq!(sidecar.hello.placement, "sidecar");
    let ids: Vec<String> = (0..2 * ENDS.len()).map(|at| format!("quiet-{at}")).collect();
    for (at, id) in ids.iter().enumerate() {
        let action = ENDS[at % ENDS.len()].0;
        stage.two.must(&format!("/guest run watched {id} memory.max=8M -- /oomtest await {action}")).unwrap();
    }
    for id in &ids {
        sidecar.knows(id, true).await;
        stage.two.go_on("watched", id).unwrap();
    }
    let truths: Vec<Truth> = ids.into_iter().enumerate().map(|(at, id)| truth(id, at)).collect();
    check(&stage.router, &mut stage.events, &truths).await;
}

/// Invariant 12: the kernel kills a group one process at a time, and its counter is read in steps.
async fn one_kill_of_a_group_is_one_event(stage: &mut Stage) {
    let sidecar = Reader::connect(&stage.two.address(1031)).await;
    for processes in GROUPS {
        let id = format!("group-{processes}");
        let keys = "memory.max=32M memory.oom.group=1";
        let command = format!("/guest run watched {id} {keys} -- /oomtest await crowd {} 64", processes - 1);
        stage.two.must(&command).unwrap();
        sidecar.knows(&id, true).await;
        stage.two.go_on("watched", &id).unwrap();
        stage.events.wait_for(EXIT, &id, 1, PATIENCE).await.unwrap();
        let topics: Vec<String> = stage.events.of(&id).into_iter().map(|it| it.topic).collect();
        assert_eq!(topics, [OOM, EXIT], "{id}");
        let of = |kind: &str| -> anyhow::Result<Vec<Value>> {
            let fits = |it: &&Value| {
                it["record"] == "ruled"
                    && it["signal"]["target"]["container-id"] == *id
                    && !it["signal"]["event"][kind].is_null()
            };
            Ok(stage.router.audit()?.iter().filter(fits).cloned().collect())
        };
        let exit = async || Ok(of("exited")?.pop());
        let exit = until("the exit's ruling in the audit", PATIENCE, exit).await.unwrap();
        let kills = of("oom-kill").unwrap();
        let ruled = kills.iter().filter(|it| it["actions"][0] == "task-oom").count();
        assert_eq!(ruled, 1, "{id}: {kills:?}");
        print(format_args!("{id}: {} signals of one kill", kills.len()));
        let case = &exit["case"];
        assert!(case["kills"].as_u64().unwrap() >= processes, "{id}: {case}");
        assert_eq!(case["last-kill"][1]["group"], true, "{id}: {case}");
    }
}

/// Cuts guest one's link again and again while containers die in it, and kills the router twice.
async fn cut_in_a_storm(stage: &mut Stage) -> Vec<Truth> {
    let begun = Instant::now();
    let Stage { router, events, one, proxy, .. } = stage;
    let vm = &*one;
    let count: usize = std::thread::scope(|scope| {
        let storm = scope.spawn(|| vm.must(&storm()));
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                for cut in 0..CUTS {
                    // Early in what the guest sends, and later.
                    proxy.cut(60 + cut * 997 % 1500, PATIENCE).await;
                    if cut == CUTS / 3 || cut == 2 * CUTS / 3 {
                        router.kill().unwrap();
                        router.start_again().await.unwrap();
                    }
                }
            });
        });
        let during = router.audit().unwrap().len();
        vm.must("touch /tmp/enough").unwrap();
        let count = storm.join().unwrap().unwrap().trim().parse().unwrap();
        print(format_args!("{count} containers, {during} audit records when the last link was cut"));
        count
    });
    let truths: Vec<Truth> = (0..count).map(|at| truth(format!("storm-{at}"), at)).collect();
    check(router, events, &truths).await;
    let repeats = repeats(&router.audit().unwrap());
    print(format_args!(
        "{CUTS} cuts and 2 kills of the router in {:.1} s: {repeats} repeats, all the same",
        begun.elapsed().as_secs_f64()
    ));
    truths
}

/// Both machines are killed: each container that lived is reported lost, and none that had ended.
async fn lost(stage: &mut Stage, ended: &[Truth]) {
    stage.states(&["up", "up"]).await;
    for (at, (name, count)) in LEFT.into_iter().enumerate() {
        let killed = Instant::now();
        if at == 0 {
            stage.one.kill().unwrap()
        } else {
            stage.two.kill_with_socket().unwrap()
        }
        for left in 0..count {
            let id = format!("{name}-{left}");
            let record = stage
                .router
                .wait_record("guest-lost to be ruled", PATIENCE, |it| {
                    it["signal"]["target"]["container-id"] == id.as_str()
                        && !it["signal"]["event"]["guest-lost"].is_null()
                })
                .await
                .unwrap();
            assert_eq!(record["actions"][0]["task-exit"], Value::Null, "{record}");
        }
        let took = killed.elapsed();
        print(format_args!("guest-lost was ruled {} ms after its machine was killed", took.as_millis()));
        assert!(took < LOST_WITHIN, "{took:?}");
        for left in 0..count {
            let id = format!("{name}-{left}");
            stage.events.wait_for(EXIT, &id, 1, PATIENCE).await.unwrap();
            assert_eq!(
                stage.events.of(&id).iter().map(|it| it.status).collect::<Vec<_>>(),
                [Some(255)],
                "{id}"
            );
        }
    }
    stage.states(&["lost", "lost"]).await;
    let audit = stage.router.audit().unwrap();
    let id = |it: &Value| it["signal"]["target"]["container-id"].as_str().map(str::to_owned);
    let is_lost = |it: &&Value| !it["signal"]["event"]["guest-lost"].is_null();
    let mut lost: Vec<String> = audit.iter().filter(is_lost).filter_map(id).collect();
    let left = LEFT.into_iter().flat_map(|(name, count)| (0..count).map(move |at| format!("{name}-{at}")));
    let mut left: Vec<String> = left.collect();
    lost.sort();
    left.sort();
    let of_others: Vec<&Value> = audit
        .iter()
        .filter(|it| id(it).is_some_and(|id| lost.contains(&id) && !left.contains(&id)))
        .collect();
    assert_eq!(lost, left, "each once, and no container that had ended: {of_others:#?}");
    check(&stage.router, &mut stage.events, ended).await;
    let groups = GROUPS.map(|processes| format!("group-{processes}"));
    let all: HashSet<String> = ended.iter().map(|it| it.id.clone()).chain(left).chain(groups).collect();
    let reported = audit.iter().filter_map(|it| it["signal"]["target"]["container-id"].as_str());
    assert!(reported.into_iter().all(|id| all.contains(id)), "a container that never was");
}
