//! A wrapped shim's containers in a guest with an agent, as Kata's are: the agent counts, the shim
//! reports the ends. Guest, agent, router and containerd are real; the shim is played, because
//! Kata's is not to be had here.

use coroner_tests::containerd::Containerd;
use coroner_tests::events::Events;
use coroner_tests::router::{Router, usual};
use coroner_tests::scratch::Scratch;
use coroner_tests::vm::Vm;

use super::reader::Reader;
use super::shim::Shim;
use super::truth::{ENDS, Truth, check};

const INIT: &str = include_str!("../../../examples/deploy/guest/init");
/// Rounds of each kind of end.
const ROUNDS: usize = 2;

fn config(containerd: &Containerd, vm: &Vm) -> String {
    format!(
        r#"{usual}
[guests]
directory = "@DIR@/guests.d"
[[source]]
name = "shims"
type = "shim"
address = "unix://@DIR@/shims.sock"
mode = "proxy"
[[guest]]
name = "s"
type = "agent"
address = "{agent}"
mode = "beside"
"#,
        usual = usual("test-node", &containerd.socket()),
        agent = vm.address(1030),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_agent_counts_kills_and_proxied_shim_reports_ends() {
    let containerd = Containerd::start().await.unwrap();
    let mut events = Events::subscribe(&containerd.socket()).await.unwrap();
    let vm = Vm::boot_image(INIT, |_| Ok(())).await.unwrap();
    vm.must("mkdir /sys/fs/cgroup/pods-a; echo '+memory' > /sys/fs/cgroup/pods-a/cgroup.subtree_control")
        .unwrap();
    let router = Router::start_in(Scratch::new().unwrap(), &config(&containerd, &vm)).await.unwrap();
    let agent = Reader::connect(&vm.address(1030)).await;
    let shim = Shim::connect(&router.path("shims.sock")).await;
    let mut truths = Vec::new();
    for at in 0..ROUNDS * ENDS.len() {
        let (id, (action, kills, status)) = (format!("shimmed-{at}"), ENDS[at % ENDS.len()]);
        shim.begin(&router.path(&id), &id).await;
        let run = format!("/guest run pods-a {id} memory.max=8M -- /oomtest await {action}");
        let pid = vm.must(&run).unwrap();
        agent.knows(&id, true).await;
        vm.go_on("pods-a", &id).unwrap();
        vm.must(&format!("while kill -0 {} 2> /dev/null; do :; done", pid.trim())).unwrap();
        // Kata's shim reports an OOM for any notice that memory ran out, and may do so late or
        // never.
        if at % 2 == 0 {
            shim.oom(&id).await;
        }
        let exited = u32::try_from(status).unwrap();
        assert_eq!(shim.rule(&id, exited, Vec::new()).await.unwrap(), exited);
        shim.release(&id, exited).await;
        shim.exit(&id, exited).await;
        shim.delete(&id).await;
        truths.push(Truth { id, kills, status });
    }
    check(&router, &mut events, &truths).await;
    let ruled: Vec<_> = router.audit().unwrap().into_iter().filter(|it| it["record"] == "ruled").collect();
    for record in &ruled {
        let event = &record["signal"]["event"];
        // A busy machine stalls a container for long enough that its agent reports pressure.
        let of_guest = ["oom-kill", "pressure", "evidence"].iter().any(|kind| !event[kind].is_null());
        assert_eq!(record["source"], if of_guest { "s" } else { "shims" }, "{record}");
    }
    assert!(ruled.iter().all(|it| it["signal"]["event"]["oom-kill"]["late"] != true), "{ruled:#?}");
}
