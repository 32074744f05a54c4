//! The processes of a shim: their pids, and the rulings on those that ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coroner_proto::shim::RuleRequest;
use coroner_proto::shim_ttrpc::ShimClient;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::outbox::{Outbox, Release};
use crate::router::RouterClient;
use crate::task::{End, ProcessId};

/// Capacity: a shim has one process for each container and exec that is not deleted yet. The oldest
/// is evicted.
const REMEMBERED: usize = 1024;

/// The ruling on a process's exit.
#[derive(Debug)]
pub(crate) struct ExitRuling {
    /// The status that callers receive.
    pub(crate) status: u32,
    /// Whether an OOM kill of the container was ruled; `None`: not known.
    oom: Option<bool>,
    /// The hold ended without a ruling of the router: a timeout or a failed call.
    expired: bool,
    pid: Option<u32>,
    /// Number of the hold in this proxy.
    hold: u64,
    /// A caller has received the status.
    reported: AtomicBool,
}

/// A ruling that several callers wait for.
pub(crate) type Pending = Shared<BoxFuture<'static, Arc<ExitRuling>>>;

/// The state of a ruling. A final one is kept without its future: there may be many.
#[derive(Clone, Debug)]
pub(crate) enum RulingState {
    Final(Arc<ExitRuling>),
    Pending(Pending),
}

/// The processes of one shim.
#[derive(Debug)]
pub(crate) struct ProcessTable {
    namespace: String,
    hold: Duration,
    router: Arc<RouterClient>,
    outbox: Arc<Outbox>,
    rows: Mutex<Rows>,
    /// A Start call was answered, or ended without an answer.
    start_over: Notify,
}

#[derive(Debug, Default)]
struct Rows {
    rows: BTreeMap<ProcessId, TableRow>,
    count: u64,
    holds: u64,
}

#[derive(Debug, Default)]
struct TableRow {
    /// Sequence number of the row.
    age: u64,
    pid: Option<u32>,
    /// A Start call is open: its reply has the pid.
    starting: bool,
    ruling: Option<RulingState>,
}

impl ProcessTable {
    pub(crate) fn new(
        namespace: String,
        hold: Duration,
        router: Arc<RouterClient>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self { namespace, hold, router, outbox, rows: Mutex::default(), start_over: Notify::new() }
    }

    /// Records a created process: what was known under its name belongs to another process.
    pub(crate) fn made(&self, process: &ProcessId, pid: Option<u32>) {
        let mut rows = self.rows();
        rows.rows.remove(process);
        rows.row(process).pid = pid;
    }

    /// Records an open Start call; its reply has the pid.
    pub(crate) fn starting(&self, process: &ProcessId) {
        self.rows().row(process).starting = true;
    }

    /// Records the end of a Start call, with the pid if it succeeded. A short process may have
    /// ended by then: the shim may answer its Wait first.
    pub(crate) fn started(&self, process: &ProcessId, pid: Option<u32>) {
        {
            let mut rows = self.rows();
            let row = rows.row(process);
            (row.pid, row.starting) = (pid.or(row.pid), false);
        }
        self.start_over.notify_waiters();
    }

    /// Records that a process was deleted. With a container's init its execs are deleted too.
    pub(crate) fn deleted(&self, process: &ProcessId) {
        let rows = &mut self.rows().rows;
        if process.exec.is_empty() {
            rows.retain(|other, _| other.container != process.container);
        } else {
            rows.remove(process);
        }
    }

    /// The ruling on a process that has ended. The first caller requests it, and all callers share
    /// it.
    pub(crate) fn ruling(self: &Arc<Self>, process: &ProcessId, end: End) -> RulingState {
        let mut rows = self.rows();
        let row = rows.row(process);
        row.pid = row.pid.or(end.pid);
        if let Some(ruling) = &row.ruling {
            return ruling.clone();
        }
        let hold = rows.next_hold();
        let (this, of) = (Arc::clone(self), process.clone());
        let ruling = async move { Arc::new(this.rule(of, hold, end).await) }.boxed().shared();
        let ruling = RulingState::Pending(ruling);
        rows.row(process).ruling = Some(ruling.clone());
        ruling
    }

    /// Whether an OOM kill of a container that has ended was ruled; `None`: not known.
    pub(crate) fn oom(&self, process: &ProcessId) -> Option<bool> {
        match self.rows().rows.get(process)?.ruling.as_ref()? {
            RulingState::Final(ruling) => ruling.oom,
            RulingState::Pending(pending) => pending.peek()?.oom,
        }
    }

    /// Records that a caller has received the status. The first time it is reported to the router.
    pub(crate) fn reply_sent(&self, process: &ProcessId, ruling: &Arc<ExitRuling>) {
        if ruling.reported.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(row) = self.rows().rows.get_mut(process)
            && let Some(RulingState::Pending(pending)) = &row.ruling
            && pending.peek().is_some_and(|known| Arc::ptr_eq(known, ruling))
        {
            row.ruling = Some(RulingState::Final(Arc::clone(ruling)));
        }
        let ExitRuling { status, expired, pid, hold, .. } = **ruling;
        self.outbox.release(Release { process: process.clone(), pid, hold, status, expired });
    }

    async fn rule(&self, process: ProcessId, hold: u64, end: End) -> ExitRuling {
        let deadline = Instant::now() + self.hold;
        // Without the pid the router could not distinguish this process from another one of its
        // name.
        let pid = timeout_at(deadline, self.pid(&process)).await.unwrap_or_default();
        let request = RuleRequest {
            namespace: self.namespace.clone(),
            process: Some(process.message(pid)).into(),
            status: end.status,
            exited_at_ns: end.exited_at_ns,
            requests: self.outbox.kills_of(&process.container),
            hold_id: self.outbox.hold_id(hold),
            ..Default::default()
        };
        let call = |client: ShimClient, context| {
            let request = request.clone();
            async move { client.rule(context, &request).await }
        };
        let answer = self.router.call(deadline.saturating_duration_since(Instant::now()), call).await;
        if answer.is_ok() {
            self.outbox.acknowledged(&request.requests);
        }
        let (status, oom, expired) =
            answer.map_or((end.status, None, true), |ruled| (ruled.status, ruled.oom, false));
        ExitRuling { status, oom, expired, pid, hold, reported: AtomicBool::new(false) }
    }

    /// The pid of a process, once no Start call is open with a reply that would have it.
    async fn pid(&self, process: &ProcessId) -> Option<u32> {
        loop {
            let mut over = std::pin::pin!(self.start_over.notified());
            over.as_mut().enable();
            let (pid, starting) =
                self.rows().rows.get(process).map_or((None, false), |row| (row.pid, row.starting));
            if pid.is_some() || !starting {
                return pid;
            }
            over.await;
        }
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rows {
    fn next_hold(&mut self) -> u64 {
        self.holds += 1;
        self.holds
    }

    fn row(&mut self, process: &ProcessId) -> &mut TableRow {
        if self.rows.len() >= REMEMBERED && !self.rows.contains_key(process) {
            let oldest = self.rows.iter().min_by_key(|(_, row)| row.age).map(|(process, _)| process.clone());
            oldest.and_then(|process| self.rows.remove(&process));
        }
        self.count += 1;
        let age = self.count;
        self.rows.entry(process.clone()).or_insert_with(|| TableRow { age, ..TableRow::default() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn processes(hold: Duration) -> Arc<ProcessTable> {
        let router = Arc::new(RouterClient::new(Path::new("/nowhere")));
        let outbox = Arc::new(Outbox::new(String::new(), String::new(), Arc::clone(&router)));
        Arc::new(ProcessTable::new(String::new(), hold, router, outbox))
    }

    fn of(container: &str, exec: &str) -> ProcessId {
        ProcessId { container: container.into(), exec: exec.into() }
    }

    #[tokio::test]
    async fn deleted_init_removes_its_execs() {
        let processes = processes(Duration::ZERO);
        for process in [of("a", ""), of("a", "e"), of("b", "e"), of("b", "f")] {
            processes.made(&process, None);
        }
        processes.deleted(&of("a", ""));
        processes.deleted(&of("b", "f"));
        assert_eq!(processes.rows().rows.keys().collect::<Vec<_>>(), [&of("b", "e")]);
    }

    async fn status(known: RulingState) -> u32 {
        match known {
            RulingState::Final(ruling) => ruling.status,
            RulingState::Pending(pending) => pending.await.status,
        }
    }

    #[tokio::test]
    async fn process_created_again_is_ruled_again() {
        let processes = processes(Duration::ZERO);
        let (process, end) = (of("a", "e"), End { status: 1, exited_at_ns: None, pid: None });
        assert_eq!(status(processes.ruling(&process, end)).await, 1);
        processes.started(&process, Some(7));
        assert_eq!(status(processes.ruling(&process, End { status: 2, ..end })).await, 1);
        processes.made(&process, None);
        assert_eq!(status(processes.ruling(&process, End { status: 2, ..end })).await, 2);
    }

    #[tokio::test]
    async fn ruling_waits_for_pid_of_open_start() {
        let processes = processes(Duration::from_secs(30));
        let (process, end) = (of("a", "e"), End { status: 1, exited_at_ns: None, pid: None });
        let pid = |known: RulingState| async {
            let RulingState::Pending(pending) = known else { panic!("it was not released") };
            pending.await.pid
        };
        for (over, expect) in [(Some(7), Some(7)), (None, None)] {
            processes.made(&process, None);
            processes.starting(&process);
            let mut ruling = std::pin::pin!(pid(processes.ruling(&process, end)));
            assert!(futures::poll!(&mut ruling).is_pending());
            processes.started(&process, over);
            assert_eq!(ruling.await, expect);
        }
    }

    #[tokio::test]
    async fn full_table_evicts_oldest_process() {
        let processes = processes(Duration::ZERO);
        for count in 0..=REMEMBERED {
            processes.made(&of("a", &count.to_string()), None);
        }
        let rows = processes.rows();
        assert_eq!(rows.rows.len(), REMEMBERED);
        assert!(!rows.rows.contains_key(&of("a", "0")) && rows.rows.contains_key(&of("a", "1")));
    }
}
