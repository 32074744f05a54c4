//! The part that runs in the node: what one death of each handler takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coroner_tests::cri::{Cri, Sandbox};
use coroner_tests::events::{Events, OOM};
use rustix::process::{Signal, kill_process};

use crate::trace::Trace;

/// The first is stock's shim.
pub(crate) const HANDLERS: [&str; 3] = ["runc", "wrapped", "proxied"];
const POD: &str = "RunPodSandbox";
const START: &str = "StartContainer";
const OOM_EVENT: &str = "kill to TaskOOM at a subscriber";
const EXIT: &str = "kill of pid 1 to first EXITED reading";
pub(crate) const WHAT: [&str; 4] = [POD, START, OOM_EVENT, EXIT];

pub(crate) const SOCKET: &str = "/run/containerd/containerd.sock";
/// A container takes four seconds under emulation.
const END: Duration = Duration::from_secs(60);
/// Between two steps, so that one does not run into the next.
const QUIET: Duration = Duration::from_millis(500);

/// One time, printed as a line by the program in the node.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) what: String,
    pub(crate) handler: String,
    pub(crate) took: Duration,
}

impl Measured {
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut cells = line.split('\t').map(str::to_owned);
        let (what, handler, took) = (cells.next()?, cells.next()?, cells.next()?.parse().ok()?);
        Some(Self { what, handler, took: Duration::from_nanos(took) })
    }

    #[expect(clippy::print_stdout, reason = "the host reads it")]
    fn print(handler: &str, what: &str, took: Duration) {
        println!("{what}\t{handler}\t{}", took.as_nanos());
    }
}

/// Measures so many rounds of all handlers in turns, and prints a line for each time.
pub(crate) async fn inside(rounds: usize) -> Result<()> {
    let mut events = Events::subscribe(Path::new(SOCKET)).await?;
    let mut cri = Cri::connect(Path::new(SOCKET)).await?;
    let trace = Trace::open()?;
    for round in 0..rounds {
        for at in 0..HANDLERS.len() {
            let handler = HANDLERS[(round + at) % HANDLERS.len()];
            death(&mut cri, &mut events, &trace, handler, round).await?;
        }
    }
    Ok(())
}

async fn death(cri: &mut Cri, events: &mut Events, trace: &Trace, handler: &str, round: usize) -> Result<()> {
    let name = format!("b{}{handler}{round}", std::process::id());
    let cgroup = format!("kubepods-pod{name}.slice");
    let logs = Path::new("/tmp");
    let pod = cri.run_sandbox(Sandbox { name: &name, handler, cgroup: &cgroup, logs }).await?;
    Measured::print(handler, POD, pod.took);
    let container = cri.create(&pod, &name, 32, "await child 64 0 60000").await?;
    Measured::print(handler, START, cri.start(&container).await?);
    container.wait_printed("waiting", END).await?;
    let pid = cri.pid(&container).await?;
    tokio::time::sleep(QUIET).await;

    kill_process(pid, Signal::USR1)?;
    events.wait_for(OOM, &container.id, 1, END).await?;
    let event = events.of(&container.id).into_iter().find(|it| it.topic == OOM).context("waited for")?;
    let killed = trace.first_kill()?;
    Measured::print(handler, OOM_EVENT, event.received.saturating_duration_since(killed));
    tokio::time::sleep(QUIET).await;

    let start = Instant::now();
    kill_process(pid, Signal::KILL)?;
    cri.first_reading(&container, END).await?;
    Measured::print(handler, EXIT, start.elapsed());
    cri.remove_pod(&pod).await
}
