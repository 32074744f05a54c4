//! A run: one pod for each handler, every case in turns, and the removal of what was made.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::args::Options;
use crate::busy::Busy;
use crate::card::{Card, Death, Skipped};
use crate::case::{Case, Fault, Proof};
use crate::cri::{Cri, Pod, PodSpec};
use crate::death::{First, attempt, start};
use crate::evidence::Evidence;
use crate::kernel_log::KernelLog;
use crate::node::{self, Cgroups};
use crate::progress::Progress;
use crate::screen::note;
use crate::turns::turn;
use crate::verdict::{Outcome, Reading};

/// Between two readings after the end.
const INTERVAL: Duration = Duration::from_millis(50);
/// Readings that still change after this many times of the time without a change are final too.
const LONGEST: u32 = 10;
/// The removal of the pods takes a second for each; a runtime that hangs is not waited for.
const REMOVAL: Duration = Duration::from_secs(60);

/// Runs the cases, and removes every pod and container that it made, also after an error or a
/// signal.
pub(crate) async fn run(options: &Options, cases: &[Case]) -> Result<Card> {
    check_handlers(&options.handlers)?;
    let (mut cri, runtime) = Cri::connect(&options.endpoint).await?;
    let log = if options.no_kernel_log { None } else { Some(KernelLog::open()?) };
    if node::has_kubelet() {
        note("a kubelet runs here: one of this runtime removes the pods of the run (systemctl stop kubelet)");
    }
    cri.ensure_image(&options.image).await?;
    let mut run = Run::new(options, cases, cri, runtime, log).await?;
    let interrupted = tokio::select! {
        result = run.all() => result.map(|()| false),
        result = interrupted() => result.map(|()| true),
    };
    let removed = run.remove().await;
    if let (Err(_), Err(error)) = (&interrupted, &removed) {
        note(&format!("{error:#}"));
    }
    run.card.interrupted = interrupted?;
    removed.map(|()| run.card)
}

/// A handler that is named twice would be one row of the card.
fn check_handlers(handlers: &[String]) -> Result<()> {
    let mut names = BTreeSet::new();
    match handlers.iter().find(|handler| !names.insert(*handler)) {
        Some(twice) => bail!("--handler {twice} is given twice: use --count for more containers"),
        None => Ok(()),
    }
}

async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// A run and what it has made.
struct Run<'a> {
    options: &'a Options,
    cases: &'a [Case],
    cri: Cri,
    /// Of all its pods and of nothing else.
    id: String,
    cgroups: Cgroups,
    logs: TempDir,
    log: Option<KernelLog>,
    subjects: Vec<Subject>,
    containers: usize,
    card: Card,
}

/// A handler with its pod.
struct Subject {
    /// As the card has it.
    name: String,
    pod: Pod,
    /// Whether its containers have a kernel of their own, with a log that is not this node's.
    is_guest: bool,
}

/// A container after its first reading.
struct Watched {
    handler: String,
    container: String,
    first: First,
    evidence: Evidence,
}

impl<'a> Run<'a> {
    async fn new(
        options: &'a Options,
        cases: &'a [Case],
        mut cri: Cri,
        runtime: String,
        log: Option<KernelLog>,
    ) -> Result<Self> {
        let logs =
            tempfile::Builder::new().prefix("deathtest-").tempdir().context("making a folder for logs")?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("{:x}{:x}", std::process::id(), since_1970.as_millis());
        let cgroups = Cgroups::new(options.cgroup_parent.as_deref(), cri.driver().await);
        let card = Card {
            runtime,
            handlers: handlers(options).map(shown).collect(),
            cases: cases.iter().map(|case| case.name.clone()).collect(),
            deaths: Vec::new(),
            skipped: Vec::new(),
            interrupted: false,
        };
        Ok(Self { options, cases, cri, id, cgroups, logs, log, subjects: Vec::new(), containers: 0, card })
    }

    async fn all(&mut self) -> Result<()> {
        for handler in handlers(self.options) {
            let subject = self.subject(handler).await.with_context(|| {
                format!(
                    "handler {}: check that the runtime's configuration has it, and --cgroup-parent (with the \
                     systemd driver it is a slice, such as deathtest.slice)",
                    shown(handler)
                )
            })?;
            self.skip(&subject);
            self.subjects.push(subject);
        }
        let rounds = usize::try_from(self.options.count)?;
        let all = (self.subjects.len() * self.cases.len() - self.card.skipped.len()) * rounds;
        let mut progress = Progress::new(all);
        let _busy = Busy::start(self.options.busy);
        for round in 0..rounds {
            for (at, case) in self.cases.iter().enumerate() {
                self.turn(round * self.cases.len() + at, case, &mut progress).await?;
            }
        }
        Ok(())
    }

    /// Starts a handler's pod, and one container that shows whether the host's kernel runs it.
    async fn subject(&mut self, handler: &str) -> Result<Subject> {
        let uid = format!("{}{}", self.id, self.subjects.len());
        let spec = PodSpec {
            run: &self.id,
            handler,
            name: format!("deathtest-{uid}"),
            cgroup: self.cgroups.pod(&uid),
            uid,
            logs: self.logs.path(),
        };
        let pod = self.cri.run_pod(&spec).await?;
        let is_guest = self.is_guest(&pod, &shown(handler)).await?;
        Ok(Subject { name: shown(handler), pod, is_guest })
    }

    async fn is_guest(&mut self, pod: &Pod, handler: &str) -> Result<bool> {
        let case = idle();
        let started = start(&self.cri, pod, &format!("idle-{handler}"), &self.options.image, &case).await;
        let id = started.map_err(|(_, error)| error)?.id;
        let status = self.cri.status(&id, true).await?;
        if let Some(ended) = status.ended {
            bail!("a container that sleeps ended with {ended}: image {} needs busybox", self.options.image);
        }
        // Read before the removal, which ends the process.
        let is_guest = status.init.is_some_and(|init| !node::is_in_cgroup_of(init, &id));
        self.cri.remove(&id).await?;
        Ok(is_guest)
    }

    /// Notes which cases do not apply to a handler.
    fn skip(&mut self, subject: &Subject) {
        for case in self.cases {
            if let Some(reason) = not_applicable(case, subject.is_guest, node::is_version_2()) {
                let (handler, case, reason) = (subject.name.clone(), case.name.clone(), reason.to_owned());
                self.card.skipped.push(Skipped { handler, case, reason });
            }
        }
    }

    fn is_skipped(&self, handler: &str, case: &str) -> bool {
        self.card.skipped.iter().any(|it| it.handler == handler && it.case == case)
    }

    /// One container of a case for each handler, one after another, and then their final readings.
    async fn turn(&mut self, number: usize, case: &Case, progress: &mut Progress) -> Result<()> {
        let mut watched = Vec::new();
        for at in turn(number, self.subjects.len()) {
            let handler = &self.subjects[at].name;
            if !self.is_skipped(handler, &case.name) {
                progress.next(handler, &case.name);
                watched.push(self.watch(at, case).await?);
            }
        }
        let finals = self.final_readings(&watched).await?;
        for (watched, last) in watched.into_iter().zip(finals) {
            let Watched { handler, container, first, evidence } = watched;
            if !container.is_empty() {
                self.cri.remove(&container).await?;
            }
            let death = Death::judged(&handler, case, container, outcome(first, last), evidence);
            self.card.deaths.push(death);
        }
        Ok(())
    }

    async fn watch(&mut self, at: usize, case: &Case) -> Result<Watched> {
        if let Some(log) = &mut self.log {
            drop(log.take()?);
        }
        let (subject, name) = (&self.subjects[at], format!("{}-{}", case.name, self.containers));
        self.containers += 1;
        let attempt = attempt(&self.cri, &subject.pod, &name, &self.options.image, case).await?;
        let init = attempt.init.map(|init| init.as_raw_nonzero().get().cast_unsigned());
        // The kernel writes its lines before it kills: the log has them before CRI shows the end.
        let evidence = match &mut self.log {
            Some(log) if !subject.is_guest => Evidence::of(&log.take()?, &attempt.container, init),
            Some(_) | None => Evidence::Assumed(case.proof),
        };
        let (container, first) = (attempt.container, attempt.first);
        Ok(Watched { handler: subject.name.clone(), container, first, evidence })
    }

    /// The readings of containers that have ended, once none of them has changed for a while.
    async fn final_readings(&mut self, watched: &[Watched]) -> Result<Vec<Option<Reading>>> {
        // Late events of a stock shim come within 10 ms; a shim that retries needs a second.
        let stable = Duration::from_millis(self.options.stable_ms);
        let start = Instant::now();
        let mut last = self.readings(watched).await?;
        let mut since = Instant::now();
        while since.elapsed() < stable && start.elapsed() < stable * LONGEST {
            sleep(INTERVAL).await;
            let now = self.readings(watched).await?;
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        Ok(last)
    }

    async fn readings(&mut self, watched: &[Watched]) -> Result<Vec<Option<Reading>>> {
        let mut readings = Vec::with_capacity(watched.len());
        for Watched { container, first, .. } in watched {
            readings.push(match first {
                First::Ended(_) => self.cri.status(container, false).await?.ended,
                First::NotStarted(_) | First::Running => None,
            });
        }
        Ok(readings)
    }

    async fn remove(&mut self) -> Result<()> {
        let removed = timeout(REMOVAL, self.cri.remove_pods(&self.id)).await;
        self.cgroups.remove();
        removed
            .with_context(|| format!("the runtime does not remove the pods within {} s", REMOVAL.as_secs()))
            .flatten()
            .context("pods of this run may remain: crictl pods --name deathtest lists them")
    }
}

fn outcome(first: First, last: Option<Reading>) -> Outcome {
    match (first, last) {
        (First::Ended(first), Some(last)) => Outcome::Ended { first, last },
        (First::NotStarted(reason), _) => Outcome::NotStarted(reason),
        (First::Ended(_) | First::Running, _) => Outcome::Running,
    }
}

/// The handlers of the command line; an empty one is the runtime's default.
fn handlers(options: &Options) -> impl Iterator<Item = &str> {
    let default = options.handlers.is_empty().then_some("");
    options.handlers.iter().map(String::as_str).chain(default)
}

fn shown(handler: &str) -> String {
    if handler.is_empty() { "default".to_owned() } else { handler.to_owned() }
}

/// Why a case cannot be tested.
fn not_applicable(case: &Case, is_guest: bool, is_version_2: bool) -> Option<&'static str> {
    match (case.group, case.fault) {
        (true, _) if is_guest => Some("the cgroups of this handler are those of another kernel"),
        (true, _) if !is_version_2 => Some("memory.oom.group needs cgroup v2"),
        (_, Fault::Kill) if is_guest => Some("the processes of this handler are those of another kernel"),
        _ => None,
    }
}

/// A container that stays until it is removed.
fn idle() -> Case {
    Case {
        name: "idle".to_owned(),
        about: String::new(),
        command: ["/bin/sh", "-c", "exec sleep 600"].map(str::to_owned).into(),
        memory: 16 << 20,
        group: false,
        fault: Fault::Nothing,
        expected: Reading { reason: "Error".to_owned(), status: 137 },
        proof: Proof::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    #[test]
    fn cases_of_the_host_do_not_apply_to_guests() {
        let skipped = |is_guest: bool, is_version_2: bool| {
            let cases = case::load(None).unwrap().into_iter();
            let skipped = cases.filter(|case| not_applicable(case, is_guest, is_version_2).is_some());
            skipped.map(|case| case.name).collect::<Vec<_>>()
        };
        assert_eq!(skipped(false, false), ["oom-group"]);
        assert!(skipped(false, true).is_empty());
        assert_eq!(skipped(true, true), ["oom-group", "killed-from-host"]);
    }

    #[test]
    fn handler_is_named_once() {
        let check =
            |names: &[&str]| check_handlers(&names.iter().map(|&it| it.to_owned()).collect::<Vec<_>>());
        assert!(check(&[]).is_ok() && check(&["runc", "kata"]).is_ok());
        let error = check(&["runc", "kata", "runc"]).unwrap_err().to_string();
        assert!(error.starts_with("--handler runc is given twice"), "{error}");
    }
}
