//! One container from its creation to its first EXITED reading.

use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::case::{Case, Fault};
use crate::cri::{Cri, MOST_RESTARTS, Pod, Status, Unavailable};
use crate::verdict::Reading;

/// Between two readings before the end. Late events of a stock shim come within 10 ms.
const INTERVAL: Duration = Duration::from_millis(2);
/// A container prints `ready` within milliseconds; this allows for a machine under load.
const READY: Duration = Duration::from_secs(60);
/// A container ends within a second of its start or of its fault, or after its grace period.
const END: Duration = Duration::from_secs(90);

/// A container that was made to die, or that did not start.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// Empty if it could not be created.
    pub(crate) container: String,
    /// Its first process, where CRI showed it before the end.
    pub(crate) init: Option<Pid>,
    pub(crate) first: First,
}

/// The first that CRI shows of an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum First {
    Ended(Reading),
    NotStarted(String),
    Running,
}

/// A container that was started, or why it was not.
type Started = Result<StartedContainer, (String, anyhow::Error)>;

/// A container that was started.
#[derive(Debug)]
pub(crate) struct StartedContainer {
    pub(crate) id: String,
    /// Its name in its pod.
    name: String,
}

/// Creates and starts the container `name`. If the runtime is restarted before the container has
/// started, another one is made: nothing is known about the first.
pub(crate) async fn start(cri: &Cri, pod: &Pod, name: &str, image: &str, case: &Case) -> Started {
    let (mut cri, mut again) = (cri.clone(), 0);
    loop {
        let name = if again == 0 { name.to_owned() } else { format!("{name}-{again}") };
        let (id, started) = match cri.create(pod, &name, image, case).await {
            Ok(id) => (id.clone(), cri.start(&id).await),
            Err(error) => (String::new(), Err(error)),
        };
        match started {
            Ok(()) => return Ok(StartedContainer { id, name }),
            Err(error) if error.is::<Unavailable>() && again < MOST_RESTARTS => {
                cri.wait_available().await.map_err(|error| (id.clone(), error))?;
                again += 1;
                // It may have started: its kill is not to be taken for that of the next one.
                if !id.is_empty() {
                    cri.remove(&id).await.map_err(|error| (id, error))?;
                }
            }
            Err(error) => return Err((id, error)),
        }
    }
}

/// Runs the container `name` of a case up to its first EXITED reading.
pub(crate) async fn attempt(cri: &Cri, pod: &Pod, name: &str, image: &str, case: &Case) -> Result<Attempt> {
    match start(cri, pod, name, image, case).await {
        Ok(StartedContainer { id, name }) => {
            let mut life = Life { cri: cri.clone(), container: id, init: None };
            let first = life.end(pod, &name, case).await?;
            Ok(Attempt { container: life.container, init: life.init, first })
        }
        Err((container, error)) => Ok(not_started(container, &error)),
    }
}

fn not_started(container: String, error: &anyhow::Error) -> Attempt {
    Attempt { container, init: None, first: First::NotStarted(format!("{error:#}")) }
}

/// A started container.
struct Life {
    cri: Cri,
    container: String,
    init: Option<Pid>,
}

impl Life {
    /// Carries the fault out and waits for the end.
    async fn end(&mut self, pod: &Pod, name: &str, case: &Case) -> Result<First> {
        if case.fault != Fault::Nothing
            && let Some(first) = self.ready(pod, name, case.fault == Fault::Kill).await?
        {
            return Ok(first);
        }
        match case.fault {
            Fault::Nothing => self.first_reading().await,
            Fault::Kill => {
                self.kill()?;
                self.first_reading().await
            }
            Fault::Stop(grace) => {
                let (mut cri, container) = (self.cri.clone(), self.container.clone());
                let (stopped, first) = tokio::join!(cri.stop(&container, grace), self.first_reading());
                stopped.and(first)
            }
        }
    }

    /// Waits until the container has printed `ready`. Answers what there is instead, if it ends
    /// before, or does not print it in time.
    async fn ready(&mut self, pod: &Pod, name: &str, needs_init: bool) -> Result<Option<First>> {
        let start = Instant::now();
        while start.elapsed() < READY {
            if let Some(reading) = self.status().await?.ended {
                return Ok(Some(First::Ended(reading)));
            }
            if pod.has_printed_ready(name) && (self.init.is_some() || !needs_init) {
                return Ok(None);
            }
            sleep(INTERVAL).await;
        }
        let what = if needs_init { "`ready`, or CRI shows no pid of it" } else { "`ready`" };
        Ok(Some(First::NotStarted(format!("it did not print {what} within {} s", READY.as_secs()))))
    }

    fn kill(&self) -> Result<()> {
        let init = self.init.context("a container that is ready has a pid")?;
        kill_process(init, Signal::KILL)
            .with_context(|| format!("killing process {}: run deathtest as root", init.as_raw_nonzero()))
    }

    async fn first_reading(&mut self) -> Result<First> {
        let start = Instant::now();
        while start.elapsed() < END {
            if let Some(reading) = self.status().await?.ended {
                return Ok(First::Ended(reading));
            }
            sleep(INTERVAL).await;
        }
        Ok(First::Running)
    }

    /// One reading; it is verbose until the pid is known.
    async fn status(&mut self) -> Result<Status> {
        let status = self.cri.status(&self.container, self.init.is_none()).await?;
        self.init = self.init.or(status.init);
        Ok(status)
    }
}
