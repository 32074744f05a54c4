//! What is known of a shim's processes: their pids, and what was ruled of those that ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::shim::RuleRequest;
use coroner_proto::shim_ttrpc::ShimClient;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};

use crate::news::{News, Told};
use crate::router::Router;
use crate::task::{End, Process};

/// Processes that are remembered: a shim has one for each container and exec that was not deleted yet. The oldest goes.
const REMEMBERED: usize = 1024;

/// What became of a process's status.
#[derive(Debug)]
pub(crate) struct Ruling {
    /// What is told.
    pub(crate) status: u32,
    /// The router had no say in it.
    expired: bool,
    pid: Option<u32>,
    /// Somebody was told.
    told: AtomicBool,
}

/// One ruling for all who wait for it.
pub(crate) type Pending = Shared<BoxFuture<'static, Arc<Ruling>>>;

/// What is known of an end. What was told is kept without the future that it came of: of these there may be many.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    Told(Arc<Ruling>),
    Pending(Pending),
}

/// The processes of one shim.
#[derive(Debug)]
pub(crate) struct Processes {
    namespace: String,
    hold: Duration,
    router: Arc<Router>,
    news: Arc<News>,
    rows: Mutex<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<Process, Row>,
    count: u64,
}

#[derive(Debug, Default)]
struct Row {
    /// Counts rows as they are made.
    age: u64,
    pid: Option<u32>,
    ruling: Option<Known>,
}

impl Processes {
    pub(crate) fn new(namespace: String, hold: Duration, router: Arc<Router>, news: Arc<News>) -> Self {
        Self { namespace, hold, router, news, rows: Mutex::default() }
    }

    /// A process has been made anew, or has started: what was known under its name is of another one.
    pub(crate) fn made(&self, process: &Process, pid: Option<u32>) {
        let mut rows = self.rows();
        rows.rows.remove(process);
        rows.row(process).pid = pid;
    }

    /// A process that was made has started. Its end may have been ruled already: a short one ends before the reply to Start is here.
    pub(crate) fn started(&self, process: &Process, pid: Option<u32>) {
        let mut rows = self.rows();
        let row = rows.row(process);
        row.pid = pid.or(row.pid);
    }

    /// A process was deleted; with a container's init go its execs.
    pub(crate) fn deleted(&self, process: &Process) {
        let rows = &mut self.rows().rows;
        if process.exec.is_empty() {
            rows.retain(|other, _| other.container != process.container);
        } else {
            rows.remove(process);
        }
    }

    /// The ruling on a process that has ended. All who ask share one, and the first of them begins it.
    pub(crate) fn ruling(self: &Arc<Self>, process: &Process, end: End) -> Known {
        let mut rows = self.rows();
        let row = rows.row(process);
        row.pid = row.pid.or(end.pid);
        if let Some(ruling) = &row.ruling {
            return ruling.clone();
        }
        let (this, process, pid) = (Arc::clone(self), process.clone(), row.pid);
        let ruling = async move { Arc::new(this.rule(process, pid, end).await) }.boxed().shared();
        let ruling = Known::Pending(ruling);
        row.ruling = Some(ruling.clone());
        ruling
    }

    /// Somebody was told; the first time the router hears of it.
    pub(crate) fn told(&self, process: &Process, ruling: &Arc<Ruling>) {
        if ruling.told.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(row) = self.rows().rows.get_mut(process)
            && let Some(Known::Pending(pending)) = &row.ruling
            && pending.peek().is_some_and(|known| Arc::ptr_eq(known, ruling))
        {
            row.ruling = Some(Known::Told(Arc::clone(ruling)));
        }
        let Ruling { status, expired, pid, .. } = **ruling;
        self.news.release(Told { process: process.clone(), pid, status, expired });
    }

    async fn rule(&self, process: Process, pid: Option<u32>, end: End) -> Ruling {
        let request = RuleRequest {
            namespace: self.namespace.clone(),
            process: Some(process.message(pid)).into(),
            status: end.status,
            exited_at_ns: end.exited_at_ns,
            requests: self.news.kills_of(&process.container),
            ..Default::default()
        };
        let ask = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.rule(context, &request).await }
        };
        let answer = self.router.call(self.hold, ask).await;
        if answer.is_ok() {
            self.news.known(&request.requests);
        }
        let (status, expired) = answer.map_or((end.status, true), |ruled| (ruled.status, false));
        Ruling { status, expired, pid, told: AtomicBool::new(false) }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    fn row(&mut self, process: &Process) -> &mut Row {
        if self.rows.len() >= REMEMBERED && !self.rows.contains_key(process) {
            let oldest = self.rows.iter().min_by_key(|(_, row)| row.age).map(|(process, _)| process.clone());
            oldest.and_then(|process| self.rows.remove(&process));
        }
        self.count += 1;
        let age = self.count;
        self.rows.entry(process.clone()).or_insert_with(|| Row { age, ..Row::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn processes() -> Arc<Processes> {
        let router = Arc::new(Router::new(Path::new("/nowhere")));
        let news = Arc::new(News::new(String::new(), Arc::clone(&router)));
        Arc::new(Processes::new(String::new(), Duration::ZERO, router, news))
    }

    fn of(container: &str, exec: &str) -> Process {
        Process { container: container.into(), exec: exec.into() }
    }

    #[tokio::test]
    async fn with_a_container_s_init_go_its_execs() {
        let processes = processes();
        for process in [of("a", ""), of("a", "e"), of("b", "e"), of("b", "f")] {
            processes.made(&process, None);
        }
        processes.deleted(&of("a", ""));
        processes.deleted(&of("b", "f"));
        assert_eq!(processes.rows().rows.keys().collect::<Vec<_>>(), [&of("b", "e")]);
    }

    async fn status(known: Known) -> u32 {
        match known {
            Known::Told(ruling) => ruling.status,
            Known::Pending(pending) => pending.await.status,
        }
    }

    #[tokio::test]
    async fn a_process_made_anew_is_ruled_anew_and_one_that_started_late_is_not() {
        let processes = processes();
        let (process, end) = (of("a", "e"), End { status: 1, exited_at_ns: None, pid: None });
        assert_eq!(status(processes.ruling(&process, end)).await, 1);
        processes.started(&process, Some(7));
        assert_eq!(status(processes.ruling(&process, End { status: 2, ..end })).await, 1);
        processes.made(&process, None);
        assert_eq!(status(processes.ruling(&process, End { status: 2, ..end })).await, 2);
    }

    #[tokio::test]
    async fn of_too_many_processes_the_oldest_is_forgotten() {
        let processes = processes();
        for count in 0..=REMEMBERED {
            processes.made(&of("a", &count.to_string()), None);
        }
        let rows = processes.rows();
        assert_eq!(rows.rows.len(), REMEMBERED);
        assert!(!rows.rows.contains_key(&of("a", "0")) && rows.rows.contains_key(&of("a", "1")));
    }
}
