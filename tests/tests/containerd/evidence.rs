//! The evidence of an OOM kill in the audit record and in `explain`, against what the case did.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroner_tests::agent::Agent;
use coroner_tests::containerd::{Containerd, STOCK};
use coroner_tests::cri::Container;
use coroner_tests::report::{print, timed};
use coroner_tests::router::Router;
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::beside::{Coroner, END, ROOTS, alone, config, first_process};

/// Runs in the gate; `CORONER_TEST_EVIDENCE` sets another number.
const RUNS: usize = 3;
/// The kernel logs so many reports in 5 s.
const REPORTS: usize = 10;
/// Between two of more kills than that.
const BETWEEN: Duration = Duration::from_millis(600);
const MIB: u64 = 1 << 20;
/// The pod's limit, and what its taker holds of it.
const POD: u64 = 128;
const TAKEN: u64 = 96;

#[tokio::test]
async fn container_that_took_the_memory_of_its_pod_is_named() {
    let _turn = alone().await;
    let _timed = timed("container_that_took_the_memory_of_its_pod_is_named");
    let runs = std::env::var("CORONER_TEST_EVIDENCE").map_or(RUNS, |it| it.parse().unwrap());
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod_as(&containerd, "shared", STOCK).await.unwrap();
    limit(pod.cgroup(), POD * MIB).unwrap();
    let taker = cri.run(&pod, "taker", 512, &format!("hold {TAKEN}")).await.unwrap();
    taker.wait_printed("held", END).await.unwrap();
    let agent = Agent::start_traced(pod.cgroup()).await.unwrap();
    let router = Router::start(&config(&containerd, &agent)).await.unwrap();
    let coroner = Coroner { agent, router };
    for run in 0..runs {
        let victim = cri.run(&pod, &format!("victim-{run}"), 512, "await slow 64 1").await.unwrap();
        victim.wait_printed("waiting", END).await.unwrap();
        let process = first_process(&pod, &victim).await.unwrap();
        // The kernel chooses it, not the largest.
        fs::write(format!("/proc/{}/oom_score_adj", process.as_raw_nonzero()), "1000").unwrap();
        kill_process(process, Signal::USR1).unwrap();
        let evidence = evidence(&coroner, &victim).await.unwrap();
        check(&evidence, pod.cgroup(), &taker, &victim).with_context(|| evidence.to_string()).unwrap();
        if runs > REPORTS {
            tokio::time::sleep(BETWEEN).await;
        }
    }
    print(format_args!("{runs} of {runs}: the taker was named"));
}

#[tokio::test]
async fn evidence_has_the_minute_before_the_kill_and_the_limits() {
    let _turn = alone().await;
    let _timed = timed("evidence_has_the_minute_before_the_kill_and_the_limits");
    let containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "minute").await.unwrap();
    let coroner = Coroner::start(&containerd).await.unwrap();
    let container = cri.run(&pod, "resized", 96, "await slow 64 100").await.unwrap();
    container.wait_printed("waiting", END).await.unwrap();
    let process = first_process(&pod, &container).await.unwrap();
    limit(&format!("{}/{}", pod.cgroup(), container.id), 32 * MIB).unwrap();
    kill_process(process, Signal::USR1).unwrap();
    let evidence = evidence(&coroner, &container).await.unwrap();
    let bytes = |list: &str, key: &str| -> Vec<u64> {
        evidence[list].as_array().unwrap().iter().map(|it| it[key].as_u64().unwrap()).collect()
    };
    assert_eq!(bytes("limits", "limit-bytes"), [96 * MIB, 32 * MIB], "{evidence}");
    let usage = bytes("samples", "usage-bytes");
    assert!(usage.is_sorted() && usage.last().is_some_and(|it| *it > 16 * MIB), "{evidence}");
    assert!(bytes("samples", "limit-bytes").iter().all(|it| *it == 32 * MIB), "{evidence}");
    let peak = evidence["cgroups"][0]["peak-bytes"].as_u64().unwrap();
    assert!(peak > 31 * MIB && peak <= 32 * MIB, "{evidence}");
    let case = coroner.ruled("exited", &container).await.unwrap()["case"].clone();
    assert_eq!(case["memory-limit"], 32 * MIB, "{case}");
    let limits: Vec<&Value> = case["limits"].as_array().unwrap().iter().map(|it| &it[1]).collect();
    assert_eq!(limits, [96 * MIB, 32 * MIB], "{case}");
}

/// The evidence of the container's kill, of which its record has the id.
async fn evidence(coroner: &Coroner, container: &Container) -> Result<Value> {
    let kill = coroner.ruled("oom-kill", container).await?;
    let ruled = coroner.ruled("evidence", container).await?;
    let evidence = &ruled["signal"]["event"]["evidence"];
    ensure!(evidence["kill"] == kill["signal"]["id"], "of {}: {evidence}", kill["signal"]["id"]);
    Ok(evidence.clone())
}

fn check(evidence: &Value, pod: &str, taker: &Container, victim: &Container) -> Result<()> {
    let pod = format!("/{pod}");
    let report = &evidence["report"];
    ensure!(report["limit-cgroup"] == pod.as_str(), "the limit's cgroup");
    let victims = report["victims"].as_array().context("victims")?;
    ensure!(victims.len() == 1 && victims[0]["comm"] == "oomtest", "the victim");
    let levels = evidence["cgroups"].as_array().context("cgroups")?;
    ensure!(levels[0]["path"] == format!("{pod}/{}", victim.id), "the container's own cgroup");
    let shared = levels.iter().find(|it| it["path"] == pod.as_str()).context("the pod's cgroup")?;
    ensure!(shared["limit"]["bytes"] == POD * MIB, "the pod's limit");
    let largest = &shared["children"][0];
    ensure!(largest[0] == format!("{pod}/{}", taker.id), "the largest below the limit");
    let bytes = largest[1].as_u64().context("its bytes")?;
    ensure!((TAKEN * MIB..(TAKEN + 8) * MIB).contains(&bytes), "{bytes} bytes");
    Ok(())
}

fn limit(cgroup: &str, bytes: u64) -> Result<()> {
    let files = [(ROOTS[0], "memory.limit_in_bytes"), (ROOTS[1], "memory.max")];
    let path = |(root, file): &(&str, &str)| Path::new(root).join(cgroup).join(file);
    let file = files.iter().map(path).find(|it| it.exists()).context("no limit file")?;
    Ok(fs::write(file, bytes.to_string())?)
}
