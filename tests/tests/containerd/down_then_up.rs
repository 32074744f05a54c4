//! containerd goes away while containers die: what was ruled then is delivered when it is back.

use anyhow::Result;
use coroner_tests::containerd::Containerd;
use coroner_tests::cri::{Container, Cri, Pod};
use coroner_tests::events::OOM;
use coroner_tests::report::{print, timed};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::beside::{Coroner, END, alone};

/// The router's log, one line each time the state changes.
const DOWN: &str = "containerd does not answer";
const UP: &str = "containerd answers again";

#[tokio::test]
async fn containerd_down_then_up() {
    let _turn = alone().await;
    let _timed = timed("containerd_down_then_up");
    let mut containerd = Containerd::start().await.unwrap();
    let mut cri = containerd.cri().await.unwrap();
    let pod = cri.run_pod(&containerd, "down").await.unwrap();
    let coroner = Coroner::start(&containerd).await.unwrap();
    for (round, action) in ["terminated", "killed"].into_iter().enumerate() {
        let changes = round + 1;
        let waiting = [
            Waiting::run(&mut cri, &pod, &format!("{action}-1"), "await child 64 1 0").await.unwrap(),
            Waiting::run(&mut cri, &pod, &format!("{action}-2"), "await self 64").await.unwrap(),
        ];
        match action {
            "terminated" => containerd.stop().await.unwrap(),
            _ => containerd.kill().unwrap(),
        }
        let mut ruled = Vec::new();
        for container in &waiting {
            kill_process(container.pid, Signal::USR1).unwrap();
            ruled.push(coroner.ruled("oom-kill", &container.container).await.unwrap());
            coroner.ruled("exited", &container.container).await.unwrap();
        }
        coroner.router.wait_logged(DOWN, changes, END).await.unwrap();
        assert_eq!(
            acked(&coroner, &ruled).unwrap(),
            Vec::<String>::new(),
            "delivered while containerd was {action}"
        );

        containerd.start_again().await.unwrap();
        for ruled in &ruled {
            let delivered = coroner.delivered(ruled, OOM).await.unwrap();
            print(format_args!("{action}: {} after {} ms", delivered["outcome"], delivered["waited-ms"]));
            assert_eq!(delivered["outcome"], "acked", "{delivered:#}");
        }
        let mut all: Vec<_> = ruled.iter().map(|ruled| ruled["signal"]["id"].to_string()).collect();
        let mut taken = acked(&coroner, &ruled).unwrap();
        // Two containers' events are in no order.
        all.sort();
        taken.sort();
        assert_eq!(taken, all, "each once");
        let changed = (coroner.router.logged(DOWN).unwrap(), coroner.router.logged(UP).unwrap());
        assert_eq!(changed, (changes, changes), "one log line for each change");

        let containers = waiting.map(|waiting| waiting.container);
        for container in &containers {
            cri.first_reading(container, END).await.unwrap();
            // The router's and the shim's own: an ack alone means that containerd broadcast it,
            // with or without a subscriber.
            containerd.wait_oom_taken_in(container, 2, END).await.unwrap();
        }
        let readings = cri.final_readings(&containers).await.unwrap();
        let readings: Vec<_> = readings.iter().map(ToString::to_string).collect();
        assert_eq!(readings, ["OOMKilled/1", "OOMKilled/137"], "containerd was {action}");
    }
}

/// A container that runs out of memory on a signal, which needs no containerd.
struct Waiting {
    container: Container,
    pid: Pid,
}

impl Waiting {
    async fn run(cri: &mut Cri, pod: &Pod, name: &str, arguments: &str) -> Result<Self> {
        let container = cri.run(pod, name, 32, arguments).await?;
        container.wait_printed("waiting", END).await?;
        Ok(Self { pid: cri.pid(&container).await?, container })
    }
}

/// The signal ids of those rulings that have a TaskOOM accepted by containerd.
fn acked(coroner: &Coroner, ruled: &[Value]) -> Result<Vec<String>> {
    let ids: Vec<_> = ruled.iter().map(|ruled| &ruled["signal"]["id"]).collect();
    let audit = coroner.router.audit()?;
    let delivered =
        audit.iter().filter(|record| record["record"] == "delivered" && record["outcome"] == "acked");
    let ours = delivered.filter(|record| record["sink"] == "containerd" && record["topic"] == OOM);
    Ok(ours.map(|record| &record["id"]).filter(|id| ids.contains(id)).map(Value::to_string).collect())
}
