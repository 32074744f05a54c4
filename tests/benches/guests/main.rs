//! A thousand guests of one router: the memory of each and the latency of their signals, against
//! one agent of the node that emits as many.

mod agents;
mod containerd;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coroner_tests::router::{Memory, Router};
use coroner_tests::scratch::Scratch;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use containerd::Containerd;

const GUESTS: usize = 1000;
/// Signals a second, of all guests together.
const RATE: usize = 10_000;
const SECONDS: usize = 10;
/// What comes within this comes.
const PATIENCE: Duration = Duration::from_secs(120);

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|it| it == "agents") {
        return agents::main(&arguments[2..]);
    }
    more_files()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (none, one, many) = runtime.block_on(async {
        let none = measure(0, "").await?;
        let one = measure(1, &section("source", 0)).await?;
        let guests: String = (0..GUESTS).map(|at| section("guest", at)).collect();
        anyhow::Ok((none, one, measure(GUESTS, &guests).await?))
    })?;
    println!(
        "{RATE} signals a second for {SECONDS} s, kills and exits in turn, agents' sockets to containerd's:"
    );
    println!("                         one source   {GUESTS} guests");
    let row = |what: &str, of: &dyn Fn(&Measured) -> f64, unit: &str| {
        println!("  {what:<22} {:>10.2} {:>13.2} {unit}", of(&one), of(&many));
    };
    row("rate reached", &|it| it.rate, "a second");
    row("p50", &|it| it.latency(50), "ms");
    row("p99", &|it| it.latency(99), "ms");
    row("longest", &|it| it.latency(100), "ms");
    row("processors taken", &|it| it.busy.as_secs_f64() / SECONDS as f64, "by the router");
    let each =
        |memory: Memory, base: Memory| (memory.anonymous as f64 - base.anonymous as f64) / GUESTS as f64;
    let (without, before) = (none.idle.anonymous, many.idle.anonymous);
    println!("  anonymous memory: {without} KiB with no guest, {before} KiB with {GUESTS} idle");
    let after = (one.after.anonymous, many.after.anonymous);
    println!("  after the load: {} KiB with one source, {} KiB with {GUESTS} guests", after.0, after.1);
    println!("  a guest: {:.1} KiB idle", each(many.idle, none.idle));
    println!("  a guest: {:.1} KiB more than one source after the load", each(many.after, one.after));
    Ok(())
}

/// What one router was seen to take and to do.
struct Measured {
    idle: Memory,
    after: Memory,
    /// By rising length, in microseconds.
    latencies: Vec<u64>,
    rate: f64,
    busy: Duration,
}

impl Measured {
    /// In milliseconds.
    fn latency(&self, percent: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get(last * percent / 100).map_or(0.0, |us| *us as f64 / 1000.0)
    }
}

/// A router with so many agents, idle, and then under load.
async fn measure(agents: usize, sections: &str) -> Result<Measured> {
    let scratch = Scratch::new()?;
    let mut containerd = Containerd::serve(&scratch.path("containerd.sock")).await?;
    let mut simulated = Simulated::start(&scratch, agents)?;
    let mut router = Router::start_in(scratch, &format!("{CONFIG}{sections}")).await?;
    router.wait_logged("agent link up", agents, PATIENCE).await?;
    // Timers of the start are over, and what was allocated for it has been given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let idle = router.memory()?;
    let before = router.cpu()?;
    let (mut latencies, mut rate) = (Vec::new(), 0.0);
    if agents > 0 {
        simulated.go()?;
        let took = containerd.take(RATE * SECONDS, PATIENCE).await?;
        rate = took.latencies.len() as f64 / took.within.as_secs_f64();
        latencies = took.latencies;
        latencies.sort_unstable();
        simulated.done()?;
    }
    let busy = router.cpu()? - before;
    let after = router.memory()?;
    router.stop().await?;
    simulated.end()?;
    Ok(Measured { idle, after, latencies, rate, busy })
}

/// The process that plays the agents.
struct Simulated {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Simulated {
    fn start(scratch: &Scratch, agents: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("agents").arg(scratch.directory()).args([agents, RATE, SECONDS].map(|it| it.to_string()));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut simulated = Self { input: child.stdin.take(), child, output };
        simulated.receive("ready")?;
        Ok(simulated)
    }

    fn go(&mut self) -> Result<()> {
        Ok(self.input.as_mut().context("a pipe")?.write_all(b"go\n")?)
    }

    /// Waits until the whole load is emitted.
    fn done(&mut self) -> Result<()> {
        self.receive("done")
    }

    fn receive(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == word, "{word}: {line}");
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.input.take();
        ensure!(self.child.wait()?.success(), "the agents' process failed");
        Ok(())
    }
}

/// Each agent is a listener and a link, on both sides.
fn more_files() -> Result<()> {
    let most = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })?)
}

const CONFIG: &str = r#"
node = "n"
[policies]
directory = "@DIR@/policies"
cache = "@DIR@/cache"
[control]
socket = "@DIR@/control.sock"
[journal]
directory = "@DIR@/journal"
[guests]
directory = "@DIR@/guests.d"
[containerd]
address = "@DIR@/no-such.sock"
ttrpc_address = "@DIR@/containerd.sock"
[[sink]]
name = "containerd"
type = "containerd"
"#;

fn section(kind: &str, at: usize) -> String {
    format!(
        "[[{kind}]]\nname = \"a{at}\"\ntype = \"agent\"\naddress = \"unix://@DIR@/{at}.sock\"\nmode = \"sole\"\n"
    )
}
