//! What containerd's event exchange carries: the router adds TaskOOM and leaves TaskExit to the
//! shim.

use anyhow::Result;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::events::{EXIT, Events, OOM};
use coroner_tests::report::{print, timed};

use crate::beside::{Coroner, END, alone};

/// Rounds until one in which the shim does not miss the kill: a busy machine misses one in ten.
const ROUNDS: usize = 8;

#[tokio::test]
async fn task_oom_is_added_and_task_exit_is_left_to_the_shim() {
    let _turn = alone().await;
    let _timed = timed("task_oom_is_added_and_task_exit_is_left_to_the_shim");
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let mut events = Events::subscribe(&containerd.socket()).await.unwrap();
    let pod = cri.run_pod(&containerd, "published").await.unwrap();

    let stock = child_is_killed(&mut cri, &mut events, &pod, "stock").await.unwrap();

    let coroner = Coroner::start(&containerd).await.unwrap();
    let mut added = false;
    for round in 0..ROUNDS {
        let beside = child_is_killed(&mut cri, &mut events, &pod, &format!("beside-{round}")).await.unwrap();
        let kill = coroner.ruled("oom-kill", &beside).await.unwrap();
        coroner.delivered(&kill, OOM).await.unwrap();
        coroner.ruled("exited", &beside).await.unwrap();
        // Runs the exchange dry: whatever the router still had to publish has arrived when this has
        // passed.
        cri.final_readings(&[stock.clone(), beside.clone()]).await.unwrap();

        let counts =
            |container: &Container| (events.count(OOM, &container.id), events.count(EXIT, &container.id));
        let (stock_ooms, stock_exits) = counts(&stock);
        let (ooms, exits) = counts(&beside);
        print(format_args!(
            "stock: {stock_ooms} /tasks/oom, {stock_exits} /tasks/exit; beside: {ooms}, {exits}"
        ));
        assert_eq!((stock_exits, exits), (1, 1), "/tasks/exit once each, from the shim");
        assert!(ooms >= 1, "the kill was not published");
        for event in events.of(&beside.id) {
            assert_eq!(event.namespace, "k8s.io", "{event:?}");
            assert!(event.published.is_some(), "an event without a time: {event:?}");
        }
        // The shim publishes at most one: a second is the router's. A round in which the shim
        // missed the kill shows nothing.
        added = ooms > 1;
        if added {
            break;
        }
    }
    assert!(added, "the router published no /tasks/oom of its own in {ROUNDS} rounds");
}

async fn child_is_killed(cri: &mut Cri, events: &mut Events, pod: &Pod, name: &str) -> Result<Container> {
    let container = cri.run(pod, name, 32, "child 64 1 0").await?;
    events.wait_for(EXIT, &container.id, 1, END).await?;
    cri.first_reading(&container, END).await?;
    Ok(container)
}
