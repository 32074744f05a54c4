//! containerd's Task service, as far as it is about the ends of processes: requests and replies of
//! versions 2 and 3.

use coroner_transport::limits::MAX_CONTAINER_ID;

use crate::wire::{Fields, Malformed, Value, with_bytes, with_varint};

/// The services of containerd's api/runtime/task/v2/shim.proto and v3; the fields that are read
/// here have the same numbers in both.
const SERVICES: [&[u8]; 2] = [b"containerd.task.v2.Task", b"containerd.task.v3.Task"];
/// Status.STOPPED of api/types/task/task.proto.
const STOPPED: u64 = 3;
/// ttrpc's Response: status and payload.
const PAYLOAD: u32 = 2;
/// The messages in a reply to Stats: containerd's cgroups, cgroup1 and cgroup2/stats/metrics.proto.
const METRICS_V1: &[u8] = b"io.containerd.cgroups.v1.Metrics";
const METRICS_V2: &[u8] = b"io.containerd.cgroups.v2.Metrics";

/// A process of a shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ProcessId {
    pub(crate) container: String,
    /// Empty: the container's init.
    pub(crate) exec: String,
}

/// The calls with replies that are inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Create,
    Exec,
    Start,
    Wait,
    State,
    Delete,
    Stats,
}

/// A request that concerns the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A call with a reply that is inspected.
    Call(Method, ProcessId),
    /// A signal to a process.
    Kill { process: ProcessId, signal: u32, all: bool },
}

/// The end of a process, from a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) status: u32,
    pub(crate) exited_at_ns: Option<u64>,
    /// Only in replies to State and Delete.
    pub(crate) pid: Option<u32>,
}

/// The field numbers of an end in a reply.
struct Places {
    status: u32,
    exited_at: u32,
    pid: Option<u32>,
    state: Option<u32>,
}

impl Method {
    fn places(self) -> Option<Places> {
        match self {
            Self::Wait => Some(Places { status: 1, exited_at: 2, pid: None, state: None }),
            Self::Delete => Some(Places { status: 2, exited_at: 3, pid: Some(1), state: None }),
            Self::State => Some(Places { status: 9, exited_at: 10, pid: Some(3), state: Some(4) }),
            Self::Create | Self::Exec | Self::Start | Self::Stats => None,
        }
    }
}

/// Parses the body of a request's frame. Requests of other services, and malformed ones, are only
/// forwarded.
pub(crate) fn request(body: &[u8]) -> Option<Request> {
    let [service, method, payload] = bytes_of(body, [1, 2, 3])?;
    if !SERVICES.contains(&service) {
        return None;
    }
    let method = match method {
        b"Create" => Method::Create,
        b"Exec" => Method::Exec,
        b"Start" => Method::Start,
        b"Wait" => Method::Wait,
        b"State" => Method::State,
        b"Delete" => Method::Delete,
        b"Stats" => Method::Stats,
        b"Kill" => {
            let [signal, all] = numbers_of(payload, [3, 4]).ok()?;
            let signal = u32::try_from(signal).ok()?;
            return Some(Request::Kill { process: process(payload, true)?, signal, all: all != 0 });
        }
        _ => return None,
    };
    Some(Request::Call(method, process(payload, !matches!(method, Method::Create | Method::Stats))?))
}

/// Field 1 is the container's id in all requests, field 2 the exec's in all but Create's, where it
/// is the bundle, and Stats', where there is none. Ids longer than containerd's are not kept: they
/// would fill the proxy's memory.
fn process(payload: &[u8], with_exec: bool) -> Option<ProcessId> {
    let [container, exec] = bytes_of(payload, [1, 2])?;
    let text = |bytes: &[u8]| match bytes.len() <= MAX_CONTAINER_ID {
        true => Some(std::str::from_utf8(bytes).ok()?.to_owned()),
        false => None,
    };
    let exec = if with_exec { text(exec)? } else { String::new() };
    Some(ProcessId { container: text(container)?, exec }).filter(|process| !process.container.is_empty())
}

/// The payload of a response's body, if the call succeeded.
pub(crate) fn payload(body: &[u8]) -> Option<&[u8]> {
    let [status, payload] = bytes_of(body, [1, PAYLOAD])?;
    // google.rpc.Status: a code of zero is OK.
    matches!(numbers_of(status, [1]), Ok([0])).then_some(payload)
}

/// The pid in the reply to Create or Start.
pub(crate) fn pid(payload: &[u8]) -> Option<u32> {
    let [pid] = numbers_of(payload, [1]).ok()?;
    u32::try_from(pid).ok().filter(|pid| *pid != 0)
}

/// The end of a process in a reply; `None` if it has not ended, or was deleted without having run.
pub(crate) fn end(method: Method, payload: &[u8]) -> Option<End> {
    let places = method.places()?;
    let [status, pid, state] =
        numbers_of(payload, [places.status, places.pid.unwrap_or(0), places.state.unwrap_or(0)]).ok()?;
    if places.state.is_some() && state != STOPPED {
        return None;
    }
    let [exited_at] = bytes_of(payload, [places.exited_at])?;
    let exited_at_ns = nanoseconds(exited_at);
    let pid = u32::try_from(pid).ok().filter(|pid| *pid != 0);
    if method == Method::Delete && (pid.is_none() || exited_at_ns.is_none()) {
        return None;
    }
    Some(End { status: u32::try_from(status).ok()?, exited_at_ns, pid })
}

/// The body of a response with another status. All other fields stay unchanged, including unknown
/// ones.
pub(crate) fn with_status(method: Method, body: &[u8], status: u32) -> Result<Vec<u8>, Malformed> {
    let places = method.places().ok_or(Malformed)?;
    let [payload] = bytes_of(body, [PAYLOAD]).ok_or(Malformed)?;
    with_bytes(body, PAYLOAD, &with_varint(payload, places.status, status.into())?)
}

/// The body of a response to Stats that agrees with whether an OOM kill was ruled; `None`: it does,
/// or has metrics that are not known here. From 2.3 on containerd queries it after an exit with
/// status 137, and sets OOMKilled by itself if the count of OOM kills is above 0. Other metrics
/// stay; where the call failed, since the cgroup is gone, there are no others.
pub(crate) fn with_ruled_oom(body: &[u8], oom: bool) -> Option<Vec<u8>> {
    let payload = payload(body).unwrap_or_default();
    let [metrics] = bytes_of(payload, [1])?;
    let [kind, message] = bytes_of(metrics, [1, 2])?;
    let (events, oom_kill) = match kind {
        METRICS_V1 => (9, 3),
        METRICS_V2 | b"" => (8, 5),
        _ => return None,
    };
    let [counts] = bytes_of(message, [events])?;
    if matches!(numbers_of(counts, [oom_kill]), Ok([kills]) if (kills > 0) == oom) {
        return None;
    }
    let kind = if kind.is_empty() { METRICS_V2 } else { kind };
    with_oom_kills(kind, message, (events, oom_kill), oom.into()).ok()
}

fn with_oom_kills(
    kind: &[u8],
    message: &[u8],
    (events, oom_kill): (u32, u32),
    kills: u64,
) -> Result<Vec<u8>, Malformed> {
    let [counts] = bytes_of(message, [events]).ok_or(Malformed)?;
    let message = with_bytes(message, events, &with_varint(counts, oom_kill, kills)?)?;
    let metrics = with_bytes(&with_bytes(&[], 1, kind)?, 2, &message)?;
    with_bytes(&[], PAYLOAD, &with_bytes(&[], 1, &metrics)?)
}

/// google.protobuf.Timestamp as Unix time. Go's zero time lies before 1970 and means none.
fn nanoseconds(timestamp: &[u8]) -> Option<u64> {
    let [seconds, nanos] = numbers_of(timestamp, [1, 2]).ok()?;
    let seconds = u64::try_from(seconds.cast_signed()).ok()?;
    let total = seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?;
    (total != 0).then_some(total)
}

fn bytes_of<const N: usize>(message: &[u8], numbers: [u32; N]) -> Option<[&[u8]; N]> {
    let mut found = [&[][..]; N];
    for field in Fields(message) {
        let field = field.ok()?;
        if let (Some(at), Value::Bytes(bytes)) =
            (numbers.iter().position(|number| *number == field.number), field.value)
        {
            found[at] = bytes;
        }
    }
    Some(found)
}

/// The last value of each field number; a missing field is zero.
fn numbers_of<const N: usize>(message: &[u8], numbers: [u32; N]) -> Result<[u64; N], Malformed> {
    let mut found = [0; N];
    for field in Fields(message) {
        let field = field?;
        if let (Some(at), Value::Varint(value)) =
            (numbers.iter().position(|number| *number == field.number), field.value)
        {
            found[at] = value;
        }
    }
    Ok(found)
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
