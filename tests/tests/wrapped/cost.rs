//! What wrapping costs, paired with stock in one containerd: starts of pods and containers, exits,
//! the latency of an OOM, and a proxy's memory.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use coroner_cgroup::Hierarchy;
use coroner_tests::containerd::{STOCK, WRAPPED};
use coroner_tests::cri::{Cri, Pod};
use coroner_tests::events::{Events, OOM};
use coroner_tests::report::{print, timed};
use coroner_tests::times::Times;

use super::fixture::{END, Fixture, Mode, alone};

/// Pairs of a stock and a wrapped run.
const PAIRS: usize = 12;
const PAIRS_VARIABLE: &str = "CORONER_TEST_PAIRS";
/// A proxy's own memory, in KiB.
const MOST: u64 = 1024;

#[derive(Debug, Default)]
struct Cost {
    pod: Times,
    start: Times,
    exit: Times,
    /// From the kernel's notice that memory ran out to the event.
    notice: Times,
    /// From the kill itself; events before it are counted.
    kill: Times,
    early: usize,
}

impl Cost {
    async fn measure(
        &mut self,
        fixture: &mut Fixture,
        events: &mut Events,
        name: &str,
        handler: &str,
    ) -> Result<()> {
        let pod = fixture.cri.run_pod_as(&fixture.containerd, name, handler).await?;
        self.pod.add(pod.took);
        let exits = fixture.cri.create(&pod, &format!("{name}-exits"), 32, "await exit 3").await?;
        self.start.add(fixture.cri.start(&exits).await?);
        exits.wait_printed("waiting", END).await?;
        let pid = fixture.cri.pid(&exits).await?;
        let start = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::USR1)?;
        fixture.cri.first_reading(&exits, END).await?;
        self.exit.add(start.elapsed());
        let oom = oom(&mut fixture.cri, events, &pod).await?;
        self.notice.add(oom.event.saturating_duration_since(oom.notice));
        self.kill.add(oom.event.saturating_duration_since(oom.kill));
        self.early += usize::from(oom.event < oom.kill);
        fixture.cri.remove_pod(&pod).await
    }

    fn print(&self, name: &str) {
        for (what, times) in [
            ("RunPodSandbox", &self.pod),
            ("StartContainer", &self.start),
            ("exit to first reading", &self.exit),
            ("memory runs out to event", &self.notice),
            ("kill to event", &self.kill),
        ] {
            print(format_args!("{name}: {what}: {times}"));
        }
        print(format_args!("{name}: events before anything was killed: {}", self.early));
    }
}

/// When one OOM was what.
#[derive(Debug)]
struct Oom {
    notice: Instant,
    kill: Instant,
    event: Instant,
}

/// The kernel's notice that memory ran out, the kill as its counter shows it, and the event at a
/// subscriber.
async fn oom(cri: &mut Cri, events: &mut Events, pod: &Pod) -> Result<Oom> {
    let container = cri.run(pod, &format!("{}-runs-out", pod.name), 32, "await child 64 0 60000").await?;
    container.wait_printed("waiting", END).await?;
    let pid = cri.pid(&container).await?;
    let hierarchy = Hierarchy::find()?;
    let number = pid.as_raw_nonzero().get().cast_unsigned();
    let cgroup = hierarchy.cgroup_of(number).context("it is in a memory cgroup")?;
    let notice = hierarchy.oom_event(&cgroup)?.context("this host has cgroup v1")?;
    let noticed = tokio::task::spawn_blocking(move || {
        let flags = rustix::fs::fcntl_getfl(&notice)?;
        rustix::fs::fcntl_setfl(&notice, flags - rustix::fs::OFlags::NONBLOCK)?;
        fs::File::from(notice).read_exact(&mut [0; 8])?;
        let notice = Instant::now();
        while hierarchy.kills(&cgroup).is_ok_and(|kills| kills.total == 0) {
            // The watching thread takes no processor from those that are measured.
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok::<_, std::io::Error>((notice, Instant::now()))
    });
    rustix::process::kill_process(pid, rustix::process::Signal::USR1)?;
    events.wait_for(OOM, &container.id, 1, END).await?;
    let event =
        events.of(&container.id).into_iter().find(|it| it.topic == OOM).context("it was waited for")?;
    let (notice, kill) = noticed.await??;
    Ok(Oom { notice, kill, event: event.received })
}

/// Anonymous memory of each proxy of this containerd, in KiB.
fn proxies(folder: &Path) -> Vec<u64> {
    let folder = folder.to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let anonymous = processes.filter_map(|process| {
        let arguments = fs::read_to_string(process.path().join("cmdline")).ok()?;
        let ours = arguments.contains("\0proxy\0--inner\0") && arguments.contains(&folder);
        let rollup = fs::read_to_string(process.path().join("smaps_rollup")).ok().filter(|_| ours)?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse().ok()
    });
    anonymous.collect()
}

async fn cost(mode: Mode) {
    let pairs = std::env::var(PAIRS_VARIABLE).map_or(PAIRS, |pairs| pairs.parse().unwrap());
    let mut fixture = Fixture::start(mode).await.unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let (mut stock, mut ours) = (Cost::default(), Cost::default());
    for pair in 0..pairs {
        for is_stock in [pair % 2 == 0, pair % 2 != 0] {
            let (cost, handler) = if is_stock { (&mut stock, STOCK) } else { (&mut ours, WRAPPED) };
            let name = format!("{handler}-{pair}");
            cost.measure(&mut fixture, &mut events, &name, handler).await.unwrap();
        }
    }
    stock.print("stock");
    ours.print(mode.name());
    for (what, stock, ours) in [
        ("RunPodSandbox", &stock.pod, &ours.pod),
        ("StartContainer", &stock.start, &ours.start),
        ("exit to first reading", &stock.exit, &ours.exit),
        ("memory runs out to event", &stock.notice, &ours.notice),
        ("kill to event", &stock.kill, &ours.kill),
    ] {
        let [stock, ours] = [stock, ours].map(|times| times.percentile(50).unwrap().as_secs_f64());
        print(format_args!("{}: {what}, median over stock's: {:.2}", mode.name(), ours / stock));
    }
}

#[tokio::test]
async fn wrapping_cost_is_printed() {
    let _turn = alone().await;
    let _timed = timed("wrapping_cost_is_printed");
    cost(Mode::Wrapped).await;
}

#[tokio::test]
async fn proxy_cost_is_printed() {
    let _turn = alone().await;
    let _timed = timed("proxy_cost_is_printed");
    cost(Mode::Proxy).await;
}

#[tokio::test]
async fn proxy_memory_is_at_most_a_mebibyte() {
    let _turn = alone().await;
    let _timed = timed("proxy_memory_is_at_most_a_mebibyte");
    let mut fixture = Fixture::start(Mode::Proxy).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "used", WRAPPED).await.unwrap();
    for at in 0..5 {
        let container = fixture.cri.run(&pod, &format!("used-{at}"), 32, "exit 3").await.unwrap();
        fixture.cri.first_reading(&container, END).await.unwrap();
    }
    let taken = proxies(&fixture.router.path(""));
    print(format_args!("anonymous memory of a proxy after five containers: {taken:?} KiB"));
    assert_eq!(taken.len(), 1, "one proxy for the pod");
    assert!(taken.iter().all(|it| *it <= MOST), "{taken:?} KiB");
}
