//! The main promise of mode `beside`, counted: final reasons are at least as right as stock, on the
//! deaths that stock misses.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::Container;
use coroner_tests::report::{print, timed};
use coroner_tests::variant::{Variant, runs, turns};

use crate::beside::{Coroner, alone, is_ruled};

/// Runs of each case in each variant.
const RUNS: usize = 100;

const CASES: [(&str, &str); 2] = [("child-oom-parent-exits-1", "child 64 1 0"), ("instant-oom", "self 64")];

#[tokio::test]
async fn final_reasons_are_at_least_as_right_as_stock() {
    let _turn = alone().await;
    let _timed = timed("final_reasons_are_at_least_as_right_as_stock");
    let runs = runs(RUNS).unwrap();
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "reasons").await.unwrap();
    let mut coroner = Coroner::start(&containerd).await.unwrap();
    coroner.stop().await.unwrap();

    let (mut stock_misses, mut our_misses, mut unexplained) = (0, 0, Vec::new());
    for (case, arguments) in CASES {
        let (mut stock, mut ours) = (Variant::default(), Variant::default());
        let mut explained: BTreeMap<String, usize> = BTreeMap::new();
        for (is_stock, names) in turns(case, runs) {
            if is_stock {
                stock.run(&mut cri, &pod, &names, arguments).await.unwrap();
                continue;
            }
            coroner.start_again().await.unwrap();
            for container in ours.run(&mut cri, &pod, &names, arguments).await.unwrap() {
                match explain(&coroner, &container).await {
                    Ok(why) => *explained.entry(why).or_default() += 1,
                    Err(error) => unexplained.push(format!("{}: {error:#}", container.name)),
                }
            }
            coroner.stop().await.unwrap();
        }
        print(format_args!("{case}, stock:        {stock}"));
        print(format_args!("{case}, with coroner: {ours}; misses explained by {explained:?}"));
        stock_misses += stock.missed;
        our_misses += ours.missed;
    }
    assert!(unexplained.is_empty(), "misses the audit does not explain: {unexplained:#?}");
    assert!(our_misses <= stock_misses, "{our_misses} misses with coroner, {stock_misses} without");
}

/// Why the audit holds no OOM kill of a container: what it could not know, or that nothing was
/// counted.
async fn explain(coroner: &Coroner, container: &Container) -> Result<String> {
    let exited = coroner.ruled("exited", container).await?;
    let attributes = exited["signal"]["attributes"].as_array().context("a signal has attributes")?;
    if let Some(why) = attributes.iter().find(|attribute| attribute[0] == "unknown-because") {
        return Ok(why[1].to_string());
    }
    let audit = coroner.router.audit()?;
    let counted = audit.iter().find(|record| is_ruled(record, "oom-kill", &container.id));
    match counted {
        None => Ok(format!("nothing was counted, kills in the case: {}", exited["case"]["kills"])),
        Some(kill) => anyhow::bail!("a kill was counted, ruled and not delivered: {}", kill["delivery"]),
    }
}
