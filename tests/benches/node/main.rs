//! What Coroner costs on the platform of our users: a node with systemd and cgroup v2, in a virtual
//! machine. Stock and Coroner's handlers take turns on one containerd. Needs `cargo xtask package`.

mod idle;
mod measure;
mod trace;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use coroner_tests::node::Node;
use coroner_tests::times::Times;
use coroner_tests::{binary, containerd, scratch::Scratch};

use measure::{HANDLERS, Measured, WHAT};

/// Deaths of each handler with and without the node's agent.
const ROUNDS: usize = 20;
const ROUNDS_VARIABLE: &str = "CORONER_BENCH_ROUNDS";
/// The agent runs or not in blocks of this many rounds, in turns.
const BLOCK: usize = 5;
/// This program's path in the node.
const PROGRAM: &str = "/usr/local/bin/bench-node";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, inside, what] = arguments.as_slice()
        && inside == "inside"
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return match what.as_str() {
            "idle" => runtime.block_on(idle::inside()),
            rounds => runtime.block_on(measure::inside(rounds.parse()?)),
        };
    }
    let rounds = std::env::var(ROUNDS_VARIABLE).map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let node = installed()?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds.div_ceil(BLOCK) {
        for (action, measured) in [("stop", &mut without), ("start", &mut with)] {
            node.run(&format!("systemctl {action} coroner-agent && sleep 2"))?;
            let lines = node.run(&format!("{PROGRAM} inside {BLOCK}"))?;
            measured.extend(lines.lines().filter_map(Measured::read));
        }
    }
    print("without the node's agent: the handler runc is stock alone", &without);
    print("with the node's agent and its trace: the handler runc is in mode beside", &with);
    print_text(&node.run(&format!("{PROGRAM} inside idle"))?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn print_text(text: &str) {
    print!("{text}");
}

/// A node with the package, the handlers, this program and the image.
fn installed() -> Result<Node> {
    let package = binary::target("package")?.join("coroner.deb");
    ensure!(package.is_file(), "{} is missing: cargo xtask package", package.display());
    let scratch = Scratch::new()?;
    let image = scratch.path("image.tar");
    File::create(&image)?.write_all(&containerd::image_archive()?)?;
    let node = Node::up("bench")?;
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/node/coroner");
    for name in ["install.sh", "shim.toml", "containerd.toml"] {
        node.copy(&files.join(name), &format!("/tmp/{name}"))?;
    }
    node.copy(&package, "/tmp/coroner.deb")?;
    node.copy(&image, "/tmp/image.tar")?;
    node.copy(&std::env::current_exe().context("this program")?, PROGRAM)?;
    node.run("cd /tmp && sh install.sh && ctr --namespace k8s.io images import image.tar")?;
    Ok(node)
}

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn print(title: &str, measured: &[Measured]) {
    println!("\n{title}");
    for what in WHAT {
        let times = |handler: &str| -> Times {
            let of = measured.iter().filter(|it| it.handler == handler && it.what == what);
            of.map(|it| it.took).collect()
        };
        let stock = times(HANDLERS[0]);
        println!("  {what}");
        for handler in HANDLERS {
            let times = times(handler);
            let ratio = |percent: usize| {
                let [ours, stock] = [&times, &stock].map(|it| it.percentile(percent));
                ours.zip(stock).map_or(f64::NAN, |(ours, stock)| ours.as_secs_f64() / stock.as_secs_f64())
            };
            println!("    {handler:<8} {times}; over runc's: p50 {:.2}, p95 {:.2}", ratio(50), ratio(95));
        }
    }
}
