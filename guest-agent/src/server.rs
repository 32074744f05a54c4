//! Answers the calls of docs/agent-protocol.md. It checks what a stranger sends; the state and the watcher trust it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coroner_proto::agent::{
    HelloRequest, HelloResponse, NextSignalsRequest, NextSignalsResponse, PressureOf, PressureTrigger,
    SettleRequest, SettleResponse, SnapshotRequest, SnapshotResponse, UnwatchRequest, UnwatchResponse,
    WatchRequest, WatchResponse,
};
use coroner_proto::agent_ttrpc::Agent;
use coroner_proto::limits::{MAX_ANSWER, MAX_CONTAINER_ID, valid_container_id};
use protobuf::MessageField;
use tokio::sync::{Semaphore, mpsc, oneshot};
use ttrpc::asynchronous::TtrpcContext;
use ttrpc::{Code, Error, get_status};

use crate::cgroup::Hierarchy;
use crate::pressure::{LINES, Trigger};
use crate::request::{Refusal, Request, Watch};
use crate::shared::Shared;

/// The longest a call waits for something to tell.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Signals in one answer, which is made whole, three times over, before it is sent: a reader could otherwise have the agent grow by as many
/// as there are.
const MAX_SIGNALS: usize = 64;
/// Their field of an answer: agent.proto.
const SIGNALS: u32 = 2;
/// Calls that may wait at once; one more is answered at once. Each is a task and its request: a peer could otherwise leave as
/// many behind as it can send.
pub(crate) const MAX_WAITING: usize = 64;
/// Bytes of a cgroup path and of an exec id: the kernel's PATH_MAX and containerd's limit for identifiers. Both are kept,
/// and told to every reader.
const MAX_CGROUP: usize = 4096;
const MAX_EXEC: usize = 76;

/// The protocol's server side.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) shared: Arc<Shared>,
    pub(crate) hierarchy: Hierarchy,
    pub(crate) hello: HelloResponse,
    pub(crate) requests: mpsc::Sender<Request>,
    pub(crate) waiting: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(
        shared: Arc<Shared>,
        hierarchy: Hierarchy,
        hello: HelloResponse,
        requests: mpsc::Sender<Request>,
        waiting: Arc<Semaphore>,
    ) -> Self {
        Self { shared, hierarchy, hello, requests, waiting }
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> ttrpc::Result<T> {
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
        let mut told = self.shared.told();
        self.shared.with(|state| state.ack(ack));
        let look = || self.shared.with(|state| state.next(after, most, MAX_ANSWER));
        let mut news = look();
        // What is not asked for is never another one.
        let known = request.appeared.unwrap_or(told.borrow().appeared);
        let nothing = news.signals.is_empty() && news.lost == 0 && told.borrow().appeared == known;
        if nothing && !wait.is_zero() {
            let asked = request.appeared.is_some();
            let heard =
                told.wait_for(|told| told.stopping || told.seq > after || asked && told.appeared != known);
            // Time is up, or the agent stops: there is nothing to tell, and that is told.
            drop(tokio::time::timeout(wait, heard).await);
            news = look();
        }
        let mut answer = NextSignalsResponse {
            stream_id: self.hello.stream_id.clone(),
            lost: news.lost,
            pressure_lost: news.pressure_lost,
            appeared: told.borrow().appeared,
            ..NextSignalsResponse::default()
        };
        // On the link a field is its number and its bytes, known or not.
        let fields = answer.special_fields.mut_unknown_fields();
        news.signals.into_iter().for_each(|signal| fields.add_length_delimited(SIGNALS, signal));
        Ok(answer)
    }

    async fn snapshot(&self, _: &TtrpcContext, request: SnapshotRequest) -> ttrpc::Result<SnapshotResponse> {
        let after = request.after_container_id;
        if after.len() > MAX_CONTAINER_ID {
            return Err(refused(Code::INVALID_ARGUMENT, "after_container_id is no container id"));
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
        let id = checked(request.container_id)?;
        let known = self.ask(|answer| Request::Settle { id, answer }).await?;
        Ok(SettleResponse {
            seq: known.seq,
            kills_total: known.kills_total,
            exit: MessageField::from_option(known.exit),
            ..SettleResponse::default()
        })
    }

    async fn watch(&self, _: &TtrpcContext, request: WatchRequest) -> ttrpc::Result<WatchResponse> {
        let watch = checked_watch(request)?;
        let answer = self.ask(|answer| Request::Watch { watch, answer }).await?;
        // NOT_FOUND would say that the call itself is not there.
        let code = |refusal: &Refusal| match refusal {
            Refusal::NoCgroup(_) => Code::FAILED_PRECONDITION,
            Refusal::Elsewhere { .. } | Refusal::Taken { .. } | Refusal::PidTaken(_) => Code::ALREADY_EXISTS,
            Refusal::Full => Code::RESOURCE_EXHAUSTED,
        };
        answer.map_err(|refusal| refused(code(&refusal), refusal))?;
        Ok(WatchResponse::default())
    }

    async fn unwatch(&self, _: &TtrpcContext, request: UnwatchRequest) -> ttrpc::Result<UnwatchResponse> {
        let id = checked(request.container_id)?;
        self.ask(|answer| Request::Unwatch { id, answer }).await?;
        Ok(UnwatchResponse::default())
    }
}

fn refused(code: Code, message: impl ToString) -> Error {
    Error::RpcStatus(get_status(code, message.to_string()))
}

fn checked(id: String) -> ttrpc::Result<String> {
    if valid_container_id(&id) {
        return Ok(id);
    }
    Err(refused(Code::INVALID_ARGUMENT, "container_id is no container id"))
}

fn checked_watch(request: WatchRequest) -> ttrpc::Result<Watch> {
    let invalid = |message: &str| refused(Code::INVALID_ARGUMENT, message);
    let cgroup = checked_cgroup(&request.cgroup)
        .ok_or_else(|| invalid("cgroup is no path below the hierarchy's root: names without `.` and `..`"))?;
    if let Some(exec) = &request.exec_id {
        if exec.len() > MAX_EXEC || !valid_container_id(exec) {
            return Err(invalid("exec_id is no identifier"));
        }
        if request.init_pid.is_none() {
            return Err(invalid("exec_id takes an init_pid: the exec's process"));
        }
    }
    if request.init_pid.is_some_and(|pid| pid == 0 || i32::try_from(pid).is_err()) {
        return Err(invalid("init_pid is no process id"));
    }
    if request.pressure.len() > LINES {
        return Err(invalid("pressure has more than 6 triggers"));
    }
    let trigger = |it: &PressureTrigger| {
        let of = it.of.enum_value().unwrap_or(PressureOf::PRESSURE_OF_UNKNOWN);
        let trigger = Trigger { of, full: it.full, stall_us: it.stall_us, window_us: it.window_us };
        trigger
            .wrong()
            .map_or(Ok(trigger), |why| Err(invalid(&format!("a pressure trigger is wrong: {why}"))))
    };
    let pressure = request.pressure.iter().map(trigger).collect::<Result<Vec<_>, _>>()?;
    let (pid, exec) = (request.init_pid, request.exec_id);
    Ok(Watch { id: checked(request.container_id)?, cgroup, pid, exec, pressure })
}

/// The path with one leading slash and no trailing one; empty stays empty. The root itself is no container.
fn checked_cgroup(path: &str) -> Option<String> {
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
    fn cgroups_stay_below_the_hierarchy() {
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
            assert_eq!(checked_cgroup(path).as_deref(), expect, "{path:?}");
        }
    }

    #[test]
    fn a_watch_is_refused_for_what_it_names() {
        let good =
            WatchRequest { container_id: "c".to_owned(), cgroup: "/c".to_owned(), ..WatchRequest::default() };
        assert!(checked_watch(good.clone()).is_ok());
        let check = |change: &dyn Fn(&mut WatchRequest)| {
            let mut request = good.clone();
            change(&mut request);
            let Err(Error::RpcStatus(status)) = checked_watch(request.clone()) else { panic!("{request:?}") };
            assert_eq!(status.code(), Code::INVALID_ARGUMENT);
            assert!(!status.message().contains("does not exist"), "that would say the call is not there");
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
