//! Memory that runs out within milliseconds of a start, which stock shims miss: counted against stock, in one containerd, in turns.

use coroner_tests::arm::{Arm, runs, turns};
use coroner_tests::containerd::{STOCK, WRAPPED};
use coroner_tests::report::{say, timed};

use crate::stand::{Mode, Stand, alone};

async fn instant(mode: Mode) -> Arm {
    let runs = runs(crate::RUNS).unwrap();
    let mut stand = Stand::start(mode).await.unwrap();
    let (mut stock, mut ours) = (Arm::default(), Arm::default());
    let pods = [
        stand.cri.run_pod_as(&stand.containerd, "stock", STOCK).await.unwrap(),
        stand.cri.run_pod_as(&stand.containerd, "ours", WRAPPED).await.unwrap(),
    ];
    for (is_stock, names) in turns("instant", runs) {
        let (arm, pod) = if is_stock { (&mut stock, &pods[0]) } else { (&mut ours, &pods[1]) };
        arm.run(&mut stand.cri, pod, &names, "self 64").await.unwrap();
    }
    say(format_args!("stock:   {stock}"));
    say(format_args!("{}: {ours}", mode.name()));
    assert_eq!(ours.missed, 0, "kills missed for good");
    ours
}

#[tokio::test]
async fn an_instant_oom_is_not_missed_behind_the_wrapper() {
    let _turn = alone().await;
    let _timed = timed("an_instant_oom_is_not_missed_behind_the_wrapper");
    instant(Mode::Wrapped).await;
}

#[tokio::test]
async fn an_instant_oom_is_right_at_the_first_reading_behind_the_proxy() {
    let _turn = alone().await;
    let _timed = timed("an_instant_oom_is_right_at_the_first_reading_behind_the_proxy");
    let ours = instant(Mode::Proxy).await;
    assert_eq!(ours.first_wrong, 0, "no hold expires on a machine that has nothing else to do");
}
