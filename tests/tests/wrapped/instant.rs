//! Memory that runs out within milliseconds of a start, which stock shims miss: counted against
//! stock, in one containerd, in turns.

use coroner_tests::containerd::{STOCK, WRAPPED};
use coroner_tests::report::{print, timed};
use coroner_tests::variant::{Variant, runs, turns};

use super::fixture::{Fixture, Mode, alone};

async fn instant(mode: Mode) -> Variant {
    let runs = runs(crate::RUNS).unwrap();
    let mut fixture = Fixture::start(mode).await.unwrap();
    let (mut stock, mut ours) = (Variant::default(), Variant::default());
    let pods = [
        fixture.cri.run_pod_as(&fixture.containerd, "stock", STOCK).await.unwrap(),
        fixture.cri.run_pod_as(&fixture.containerd, "ours", WRAPPED).await.unwrap(),
    ];
    for (is_stock, names) in turns("instant", runs) {
        let (variant, pod) = if is_stock { (&mut stock, &pods[0]) } else { (&mut ours, &pods[1]) };
        variant.run(&mut fixture.cri, pod, &names, "self 64").await.unwrap();
    }
    print(format_args!("stock:   {stock}"));
    print(format_args!("{}: {ours}", mode.name()));
    assert_eq!(ours.missed, 0, "kills missed for good");
    ours
}

#[tokio::test]
async fn instant_oom_is_not_missed_behind_the_wrapper() {
    let _turn = alone().await;
    let _timed = timed("instant_oom_is_not_missed_behind_the_wrapper");
    instant(Mode::Wrapped).await;
}

#[tokio::test]
async fn instant_oom_is_right_at_the_first_reading_behind_proxy() {
    let _turn = alone().await;
    let _timed = timed("instant_oom_is_right_at_the_first_reading_behind_proxy");
    let ours = instant(Mode::Proxy).await;
    assert_eq!(ours.first_wrong, 0, "no hold expires on a machine that has nothing else to do");
}
