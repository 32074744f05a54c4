//! What router and agent need while nothing happens: memory, processor time and wake-ups.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use coroner_tests::cri::{Cri, Sandbox};

use crate::measure::{HANDLERS, SOCKET};

const PODS: usize = 20;
const IDLE: Duration = Duration::from_secs(60);
const UNITS: [&str; 2] = ["coroner", "coroner-agent"];

/// A process's needs so far.
#[derive(Debug)]
struct Needs {
    /// In KiB.
    anonymous: u64,
    /// Hundredths of a second.
    ticks: u64,
    /// Voluntary context switches of all threads.
    wakeups: u64,
}

impl Needs {
    fn of(pid: u32) -> Result<Self> {
        let process = Path::new("/proc").join(pid.to_string());
        let rollup = fs::read_to_string(process.join("smaps_rollup"))?;
        let stat = fs::read_to_string(process.join("stat"))?;
        // proc(5): user and system time are the 12th and 13th field after the name.
        let (_, after) = stat.rsplit_once(')').context("a name in parentheses")?;
        let times = after.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
        let mut wakeups = 0;
        for task in fs::read_dir(process.join("task"))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            wakeups += keyed(&status, "voluntary_ctxt_switches:")?;
        }
        Ok(Self { anonymous: keyed(&rollup, "Anonymous:")?, ticks: times.sum::<Result<_, _>>()?, wakeups })
    }
}

fn keyed(text: &str, key: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let value = line.and_then(|line| line.split_whitespace().next()).with_context(|| key.to_owned())?;
    Ok(value.parse()?)
}

fn pid(unit: &str) -> Result<u32> {
    let output = Command::new("systemctl").args(["show", "--property=MainPID", "--value", unit]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Starts pods of the wrapped handlers, waits, and prints what the units needed meanwhile.
#[expect(clippy::print_stdout, reason = "the host prints it")]
pub(crate) async fn inside() -> Result<()> {
    let mut cri = Cri::connect(Path::new(SOCKET)).await?;
    let mut pods = Vec::new();
    for at in 0..PODS {
        let (name, handler) = (format!("idle{at}"), HANDLERS[1 + at % 2]);
        let cgroup = format!("kubepods-pod{name}.slice");
        let logs = Path::new("/tmp");
        let pod = cri.run_sandbox(Sandbox { name: &name, handler, cgroup: &cgroup, logs }).await?;
        cri.run(&pod, &name, 32, "pause").await?;
        pods.push(pod);
    }
    let before: Vec<Needs> = UNITS.iter().map(|unit| Needs::of(pid(unit)?)).collect::<Result<_>>()?;
    tokio::time::sleep(IDLE).await;
    println!("\n{PODS} pods of one container, idle for {} s", IDLE.as_secs());
    for (unit, before) in UNITS.iter().zip(before) {
        let after = Needs::of(pid(unit)?)?;
        println!(
            "  {unit:<13} {} KiB of anonymous memory, {} ms of processor time, {} wake-ups",
            after.anonymous,
            (after.ticks - before.ticks) * 10,
            after.wakeups - before.wakeups
        );
    }
    for pod in pods {
        cri.remove_pod(&pod).await?;
    }
    Ok(())
}
