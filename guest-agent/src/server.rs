//! Serves the calls of docs/reference/agent-protocol.md. It validates requests; the state and the
//! watcher rely on that.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::agent::{
    EvidenceRequest, EvidenceResponse, HelloRequest, HelloResponse, NextSignalsRequest, NextSignalsResponse,
    PressureOf, PressureTrigger, SettleRequest, SettleResponse, SnapshotRequest, SnapshotResponse,
    UnwatchRequest, UnwatchResponse, WatchRequest, WatchResponse,
};
use coroner_proto::agent_ttrpc::Agent;
use coroner_transport::limits::{MAX_ANSWER, MAX_CONTAINER_ID, valid_container_id};
use protobuf::MessageField;
use tokio::sync::{Semaphore, mpsc, oneshot};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, Error, get_status};

use crate::cgroup::Hierarchy;
use crate::pressure::{MAX_TRIGGERS, PsiTrigger};
use crate::shared_state::SharedState;
use crate::watcher::requests::{ContainerWatch, Request, WatchRefusal};

/// Longest wait of a call for signals.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Signals in one answer. ttrpc holds an answer in memory three times before it is sent: without a
/// limit a reader could make the agent grow by as many as there are.
const MAX_SIGNALS: usize = 64;
/// Field number of `signals` in an answer: agent.proto.
const SIGNALS_FIELD: u32 = 2;
/// Field number of `evidence` in an answer.
const EVIDENCE_FIELD: u32 = 1;
/// Calls that may wait at once; a further one is answered at once. Each is a task and its request:
/// without a limit a peer could leave behind as many as it can send.
pub(crate) const MAX_WAITING: usize = 64;
/// Bytes of a cgroup path and of an exec id: the kernel's PATH_MAX and containerd's limit for
/// identifiers. Both are stored and sent to every reader.
const MAX_CGROUP: usize = 4096;
const MAX_EXEC: usize = 76;

/// Server of the agent protocol.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) shared: Arc<SharedState>,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) hello: HelloResponse,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) waiting: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(
        shared: Arc<SharedState>,
        hierarchy: Hierarchy,
        hello: HelloResponse,
        requests: mpsc::Sender<Request>,
        waiting: Arc<Semaphore>,
    ) -> Self {
        Self { shared, hierarchy, hello, requests, waiting }
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> ttrpc::Result<T> {
        let (answer, answered) = oneshot::channel();
        let stopping = || refused(Code::UNAVAILABLE, "the agent is stopping");
        self.requests.send(request(answer)).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())
    }
}

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloResponse> {
        Ok(self.hello.clone())
    }

    async fn next_signals(
        &self,
        _: &TtrpcContext,
        request: NextSignalsRequest,
    ) -> ttrpc::Result<NextSignalsResponse> {
        let ours = request.stream_id == self.hello.stream_id;
        let (after, ack) = if ours { (request.after_seq, request.ack_seq) } else { (0, 0) };
        let most = match request.max {
            0 => MAX_SIGNALS,
            max => MAX_SIGNALS.min(max as usize),
        };
        let permit = self.waiting.try_acquire();
        let wait = if permit.is_ok() {
            MAX_WAIT.min(Duration::from_millis(request.wait_ms.into()))
        } else {
            Duration::ZERO
        };
        let mut progress = self.shared.progress();
        self.shared.with(|state| state.ack(ack));
        let read = || self.shared.with(|state| state.next(after, most, MAX_ANSWER));
        let mut batch = read();
        // A reader that does not send `appeared` does not wait for it.
        let known = request.appeared.unwrap_or(progress.borrow().appeared);
        let empty = batch.signals.is_empty() && batch.lost == 0 && progress.borrow().appeared == known;
        if empty && !wait.is_zero() {
            let awaits_appeared = request.appeared.is_some();
            let changed = progress.wait_for(|progress| {
                progress.stopping || progress.seq > after || awaits_appeared && progress.appeared != known
            });
            // At the timeout, or when the agent stops, the answer is empty.
            drop(tokio::time::timeout(wait, changed).await);
            batch = read();
        }
        let mut answer = NextSignalsResponse {
            stream_id: self.hello.stream_id.clone(),
            lost: batch.lost,
            pressure_lost: batch.pressure_lost,
            appeared: progress.borrow().appeared,
            ..NextSignalsResponse::default()
        };
        // The encoded signals are added as raw fields: the wire format is the same.
        let fields = answer.special_fields.mut_unknown_fields();
        batch.signals.into_iter().for_each(|signal| fields.add_length_delimited(SIGNALS_FIELD, signal));
        Ok(answer)
    }

    async fn snapshot(&self, _: &TtrpcContext, request: SnapshotRequest) -> ttrpc::Result<SnapshotResponse> {
        let after = request.after_container_id;
        if after.len() > MAX_CONTAINER_ID {
            return Err(refused(Code::INVALID_ARGUMENT, "after_container_id is not a container id"));
        }
        let mut page = self.shared.with(|state| state.page(&after, MAX_ANSWER));
        for container in &mut page.containers {
            container.usage_bytes = self.hierarchy.memory(&container.cgroup).usage;
        }
        Ok(SnapshotResponse {
            containers: page.containers,
            as_of_seq: page.as_of_seq,
            more: page.more,
            ..SnapshotResponse::default()
        })
    }

    async fn settle(&self, _: &TtrpcContext, request: SettleRequest) -> ttrpc::Result<SettleResponse> {
        let id = valid_id(request.container_id)?;
        let known = self.request(|answer| Request::FinalCount { id, answer }).await?;
        Ok(SettleResponse {
            seq: known.seq,
            kills_total: known.kills_total,
            exit: MessageField::from_option(known.exit),
            ..SettleResponse::default()
        })
    }

    async fn watch(&self, _: &TtrpcContext, request: WatchRequest) -> ttrpc::Result<WatchResponse> {
        let watch = valid_watch(request)?;
        let answer = self.request(|answer| Request::ContainerWatch { watch, answer }).await?;
        // Not NOT_FOUND, which means that the call itself does not exist.
        let code = |refusal: &WatchRefusal| match refusal {
            WatchRefusal::NoCgroup(_) => Code::FAILED_PRECONDITION,
            WatchRefusal::Elsewhere { .. } | WatchRefusal::Taken { .. } | WatchRefusal::PidTaken(_) => {
                Code::ALREADY_EXISTS
            }
            WatchRefusal::Full => Code::RESOURCE_EXHAUSTED,
        };
        answer.map_err(|refusal| refused(code(&refusal), refusal))?;
        Ok(WatchResponse::default())
    }

    async fn unwatch(&self, _: &TtrpcContext, request: UnwatchRequest) -> ttrpc::Result<UnwatchResponse> {
        let id = valid_id(request.container_id)?;
        self.request(|answer| Request::Unwatch { id, answer }).await?;
        Ok(UnwatchResponse::default())
    }

    async fn get_evidence(
        &self,
        _: &TtrpcContext,
        request: EvidenceRequest,
    ) -> ttrpc::Result<EvidenceResponse> {
        let id = valid_id(request.container_id)?;
        let encoded = self.request(|answer| Request::Evidence { id, answer }).await?;
        let mut answer = EvidenceResponse::default();
        let fields = answer.special_fields.mut_unknown_fields();
        encoded.into_iter().for_each(|bytes| fields.add_length_delimited(EVIDENCE_FIELD, bytes));
        Ok(answer)
    }
}

fn refused(code: Code, message: impl ToString) -> Error {
    Error::RpcStatus(get_status(code, message.to_string()))
}

fn valid_id(id: String) -> ttrpc::Result<String> {
    if valid_container_id(&id) {
        return Ok(id);
    }
    Err(refused(Code::INVALID_ARGUMENT, "container_id is not a container id"))
}

fn valid_watch(request: WatchRequest) -> ttrpc::Result<ContainerWatch> {
    let invalid = |message: &str| refused(Code::INVALID_ARGUMENT, message);
    let cgroup = valid_cgroup(&request.cgroup).ok_or_else(|| {
        invalid("cgroup is not a path below the hierarchy's root: its names must not be `.` or `..`")
    })?;
    if let Some(exec) = &request.exec_id {
        if exec.len() > MAX_EXEC || !valid_container_id(exec) {
            return Err(invalid("exec_id is not a valid identifier"));
        }
        if request.init_pid.is_none() {
            return Err(invalid("exec_id requires init_pid: the exec's process"));
        }
    }
    if request.init_pid.is_some_and(|pid| pid == 0 || i32::try_from(pid).is_err()) {
        return Err(invalid("init_pid is not a process id"));
    }
    if request.pressure.len() > MAX_TRIGGERS {
        return Err(invalid("pressure has more than 6 triggers"));
    }
    let trigger = |it: &PressureTrigger| {
        let of = it.of.enum_value().unwrap_or(PressureOf::PRESSURE_OF_UNKNOWN);
        let trigger = PsiTrigger { of, full: it.full, stall_us: it.stall_us, window_us: it.window_us };
        trigger
            .invalid_because()
            .map_or(Ok(trigger), |why| Err(invalid(&format!("invalid pressure trigger: {why}"))))
    };
    let pressure = request.pressure.iter().map(trigger).collect::<Result<Vec<_>, _>>()?;
    let (pid, exec) = (request.init_pid, request.exec_id);
    Ok(ContainerWatch { id: valid_id(request.container_id)?, cgroup, pid, exec, pressure })
}

/// Normalizes a path: one leading slash, no trailing one; empty stays empty. The root is refused.
fn valid_cgroup(path: &str) -> Option<String> {
    if path.is_empty() {
        return Some(String::new());
    }
    if path.len() > MAX_CGROUP {
        return None;
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    let names: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
    let good =
        |name: &&str| !name.is_empty() && *name != "." && *name != ".." && !name.contains(['\0', '\n']);
    names.iter().all(good).then(|| format!("/{}", names.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup_outside_hierarchy_refused() {
        for (path, expect) in [
            ("", Some("")),
            ("/a/b", Some("/a/b")),
            ("a/b/", Some("/a/b")),
            ("/", None),
            ("//", None),
            ("/a//b", None),
            ("/..", None),
            ("/a/../../etc", None),
            ("/a/./b", None),
            ("/a\0b", None),
            (&"/a".repeat(2049), None),
        ] {
            assert_eq!(valid_cgroup(path).as_deref(), expect, "{path:?}");
        }
    }

    #[test]
    fn watch_with_invalid_field_refused() {
        let good =
            WatchRequest { container_id: "c".to_owned(), cgroup: "/c".to_owned(), ..WatchRequest::default() };
        assert!(valid_watch(good.clone()).is_ok());
        let check = |change: &dyn Fn(&mut WatchRequest)| {
            let mut request = good.clone();
            change(&mut request);
            let Err(Error::RpcStatus(status)) = valid_watch(request.clone()) else { panic!("{request:?}") };
            assert_eq!(status.code(), Code::INVALID_ARGUMENT);
            assert!(
                !status.message().contains("does not exist"),
                "the router reads that as: the call does not exist"
            );
        };
        check(&|request| request.container_id = "../x".to_owned());
        check(&|request| request.container_id = String::new());
        check(&|request| request.cgroup = "/a/../b".to_owned());
        check(&|request| request.init_pid = Some(0));
        check(&|request| request.init_pid = Some(u32::MAX));
        check(&|request| request.exec_id = Some("e".to_owned()));
        check(&|request| (request.init_pid, request.exec_id) = (Some(1), Some("e".repeat(77))));
    }
}
