//! `coroner demo`: a real OOM kill through a real agent, the default policy and the containerd
//! sink, on one screen.

mod fake_containerd;
mod show;
mod stage;

use std::io::{BufRead, BufReader, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use coroner::node::Assembly;
use coroner::node::config::{
    Config, Containerd, Jsonl, Mode, Queue, Route, SinkKind, SinkSettings, Source, SourceKind,
};
use coroner_agent::Options;
use coroner_core::ruling::Action;
use coroner_core::signal::Event;
use coroner_policy::{CompileSettings, Settings};
use coroner_sources::replay;
use coroner_transport::Address;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::args::FAILED;
use crate::render::fail;
use crate::render::record::{RecordLine, read};
use crate::serve::{stop_signal, this_program};
use show::Show;
use stage::{Stage, StageError};

pub(crate) use stage::victim;

/// The timeout of the whole demo, which needs well under a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Records of one demo: four are expected.
const RECORDS: usize = 64;
static RECORDING: &str = include_str!("recording.jsonl");

pub(crate) fn run(json: bool) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(FAILED, format!("no runtime: {error}")),
    };
    let show = Show::new(json);
    let ended = runtime.block_on(async {
        // Registered before anything is made: an interrupt at any moment clears it.
        let stop = stop_signal()?;
        match Stage::set() {
            Ok(stage) => live(stage, show, stop).await,
            Err(error) => replayed(&error, show).await,
        }
    });
    runtime.shutdown_timeout(Duration::from_millis(200));
    ended.unwrap_or_else(|error| fail(FAILED, format!("the demo failed: {error}")))
}

/// The classic case: a child allocates past the limit and is killed, its parent exits 1.
async fn live(mut stage: Stage, mut show: Show, stop: impl Future<Output = ()>) -> Result<ExitCode, String> {
    tokio::pin!(stop);
    let set = Set::build(stage.folder()).await?;
    let mut tasks = JoinSet::new();
    let (ended, mut end) = watch::channel(false);
    let address = Address::Unix(stage.folder().join("agent.sock"));
    let (up, agent_up) = oneshot::channel();
    let options = Options {
        listen: vec![address.clone()],
        roots: vec![stage.root_name().to_owned()],
        ..Options::default()
    };
    // The agent outlives the router: a router that loses its agent logs a warning.
    let (router_ended, router_end) = oneshot::channel::<()>();
    tasks.spawn(async move {
        let ready = || up.send(()).unwrap_or(());
        let over = async move { drop(router_end.await) };
        coroner_agent::run(options, ready, over).await.map(drop).map_err(|error| error.to_string())
    });
    agent_up.await.map_err(|_| "the agent did not start".to_owned())?;
    let mut router = Assembly::start(&set.config).map_err(|error| error.to_string())?;
    let source = Source {
        name: "demo".to_owned(),
        kind: SourceKind::Agent,
        mode: Mode::Sole,
        guest: None,
        address: address.clone(),
        machine: None,
    };
    router.follow(&source);
    tasks.spawn(async move {
        let over = async move { drop(end.wait_for(|it| *it).await) };
        let stopped = router.until(over).await.map_err(|error| error.to_string());
        drop(router_ended);
        stopped
    });
    show.title(&stage);
    let seen = async {
        stage.start(&address).await.map_err(|error| error.to_string())?;
        Ok(follow(set.output, &mut show).await)
    };
    let seen = tokio::select! {
        seen = seen => seen,
        () = &mut stop => Err("interrupted".to_owned()),
        () = tokio::time::sleep(PATIENCE) => Err(format!("no result within {} s", PATIENCE.as_secs())),
        Some(ended) = tasks.join_next() => Err(match ended {
            Ok(Ok(())) => "a part of the demo ended early".to_owned(),
            Ok(Err(error)) => error,
            Err(error) => error.to_string(),
        }),
    };
    ended.send_replace(true);
    tasks.join_all().await;
    drop(set.kept);
    stage.clear();
    let seen = seen?;
    Ok(show.verdict(seen))
}

/// No cgroup can be made here: the same rulings on a recording, with an exit code of its own.
async fn replayed(error: &StageError, mut show: Show) -> Result<ExitCode, String> {
    show.replay(error);
    let folder = stage::folder().map_err(|error| error.to_string())?;
    let set = Set::build(folder.path()).await?;
    let mut envelopes = replay::read(RECORDING).map_err(|error| error.to_string())?;
    for envelope in &mut envelopes {
        envelope.origin = std::sync::Arc::new(coroner_sources::envelope::Origin {
            source: "recording".to_owned(),
            mode: envelope.origin.mode,
            known: envelope.origin.known.clone(),
            guest: None,
            shim: false,
        });
    }
    let mut router = Assembly::start(&set.config).map_err(|error| error.to_string())?;
    let sender = router.envelopes();
    router.add("source recording".to_owned(), replay::run(envelopes, sender));
    let (dry, seen) = tokio::join!(router.until_dry(), follow(set.output, &mut show));
    dry.map_err(|error| error.to_string())?;
    drop(set.kept);
    Ok(show.verdict_of_replay(seen))
}

/// What was ruled on the demo's container, in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Kill,
    KillThenExit,
    ExitWithoutKill,
}

/// Shows records as they come, until the exit was delivered.
async fn follow(mut output: DemoOutput, show: &mut Show) -> Seen {
    let mut seen = Seen::Nothing;
    while let Some(text) = output.records.recv().await {
        let Ok(entry) = read(&text) else { continue };
        if let RecordLine::Ruled(ruled) = &entry {
            seen = match (&ruled.signal.event, seen) {
                (Event::OomKill(kill), Seen::Nothing)
                    if kill.total.is_some_and(|it| it > 0) && ruled.actions.contains(&Action::TaskOom) =>
                {
                    Seen::Kill
                }
                (Event::Exited(_), Seen::Kill) => Seen::KillThenExit,
                (Event::Exited(_), Seen::Nothing) => Seen::ExitWithoutKill,
                _ => seen,
            };
        }
        let last = matches!(&entry, RecordLine::Delivered(delivered) if delivered.topic == "/tasks/exit");
        show.record(&text, &entry);
        if matches!(entry, RecordLine::Delivered(_))
            && let Ok(message) = output.messages.try_recv()
        {
            show.message(&message);
        }
        if last {
            break;
        }
    }
    seen
}

/// What the live demo and the replay share: a router's configuration, and its output.
struct Set {
    config: Config,
    output: DemoOutput,
    kept: Kept,
}

/// The router's records, and the messages that the stand-in for containerd received.
struct DemoOutput {
    records: mpsc::Receiver<String>,
    messages: mpsc::Receiver<String>,
}

/// What must outlive the router.
struct Kept {
    _writer: PipeWriter,
    _containerd: fake_containerd::FakeContainerd,
}

impl Set {
    async fn build(folder: &std::path::Path) -> Result<Self, String> {
        let (reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
        let socket = folder.join("containerd.sock.ttrpc");
        let (containerd, messages) = fake_containerd::FakeContainerd::start(&socket).await?;
        let compile = CompileSettings { program: Some(this_program()), ..CompileSettings::default() };
        let sink = |name: &str, kind| SinkSettings { name: name.to_owned(), kind, queue: Queue::default() };
        let audit = PathBuf::from(format!("/proc/self/fd/{}", writer.as_raw_fd()));
        let config = Config {
            node: "demo".to_owned(),
            policies: Settings { compile, ..Settings::default() },
            control: None,
            metrics: None,
            containerd: Some(Containerd {
                address: None,
                ttrpc_address: socket,
                namespace: "k8s.io".to_owned(),
            }),
            sources: Vec::new(),
            guests: Vec::new(),
            guests_directory: folder.join("guests.d"),
            journal: None,
            sinks: vec![
                sink(fake_containerd::NAME, SinkKind::Containerd),
                sink("audit", SinkKind::Jsonl(Jsonl::at(Some(audit)))),
            ],
            routes: vec![Route::of_audit("audit")],
        };
        let records = lines(reader);
        let output = DemoOutput { records, messages };
        Ok(Self { config, output, kept: Kept { _writer: writer, _containerd: containerd } })
    }
}

/// The lines of a pipe; its own thread ends with the last writer, or with the receiver.
fn lines(reader: PipeReader) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(RECORDS);
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}
