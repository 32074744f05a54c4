//! The cause of an exit, as an agent reports it.

use coroner_core::signal::{Cause, CauseKind, Sender, SignalError};
use coroner_proto::agent;
use protobuf::SpecialFields;

use super::{MAX_CGROUP, MAX_COMM, MAX_EXEC, bounded};

/// Sources of a cause; the protocol names five. Each is copied into audit records.
const MAX_SOURCES: usize = 8;

/// A cause of a later agent is unknown to this router.
pub(super) fn decode(message: &agent::Cause, container: &str) -> Result<Cause, SignalError> {
    let kind = match message.kind.enum_value() {
        Ok(agent::CauseKind::CAUSE_KERNEL_OOM) => CauseKind::KernelOom,
        Ok(agent::CauseKind::CAUSE_CONTAINER_PROCESS) => CauseKind::ContainerProcess,
        Ok(agent::CauseKind::CAUSE_NODE_PROCESS) => CauseKind::NodeProcess,
        Ok(agent::CauseKind::CAUSE_RUNTIME) => CauseKind::Runtime,
        Ok(agent::CauseKind::CAUSE_OOMD) => CauseKind::Oomd,
        Ok(agent::CauseKind::CAUSE_OOM_POLICY) => CauseKind::OomPolicy,
        Ok(agent::CauseKind::CAUSE_CGROUP_KILL) => CauseKind::CgroupKill,
        Ok(agent::CauseKind::CAUSE_SECCOMP) => CauseKind::Seccomp,
        Ok(agent::CauseKind::CAUSE_RESOURCE_LIMIT) => CauseKind::ResourceLimit,
        Ok(agent::CauseKind::CAUSE_CRASH) => CauseKind::Crash,
        Ok(agent::CauseKind::CAUSE_KERNEL) => CauseKind::Kernel,
        Ok(agent::CauseKind::CAUSE_UNKNOWN) | Err(_) => CauseKind::Unknown,
    };
    let sender = message.sender.as_ref().map(|it| {
        let cgroup = bounded(container, "sender's cgroup", it.cgroup.clone(), MAX_CGROUP)?;
        let exec_id = it.exec_id.clone().map(|id| bounded(container, "exec id", id, MAX_EXEC)).transpose()?;
        Ok(Sender {
            pid: it.pid,
            comm: bounded(container, "sender's comm", it.comm.clone(), MAX_COMM)?,
            cgroup: (!cgroup.is_empty()).then_some(cgroup),
            exec_id,
        })
    });
    if message.sources.len() > MAX_SOURCES {
        let (what, count) = ("sources of a cause", message.sources.len());
        return Err(SignalError::TooMany { what, count, limit: MAX_SOURCES });
    }
    let sources = message.sources.iter().map(|it| bounded(container, "source", it.clone(), MAX_COMM));
    Ok(Cause { kind, sender: sender.transpose()?, sources: sources.collect::<Result<_, _>>()? })
}

/// Bytes in the strings of a cause.
pub(super) fn texts(message: &agent::Cause) -> usize {
    let sender = message
        .sender
        .as_ref()
        .map_or(0, |it| it.comm.len() + it.cgroup.len() + it.exec_id.as_ref().map_or(0, String::len));
    sender + message.sources.iter().map(String::len).sum::<usize>()
}

/// Drops unknown fields. Without this a guest could have the router keep them.
pub(super) fn drop_unknown(exited: &mut agent::Exited) {
    if let Some(cause) = exited.cause.as_mut() {
        cause.special_fields = SpecialFields::new();
        if let Some(sender) = cause.sender.as_mut() {
            sender.special_fields = SpecialFields::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sources: usize, comm: &str) -> agent::Cause {
        let sender = agent::Sender { pid: 7, comm: comm.to_owned(), ..Default::default() };
        agent::Cause {
            kind: agent::CauseKind::CAUSE_NODE_PROCESS.into(),
            sender: Some(sender).into(),
            sources: vec!["trace".to_owned(); sources],
            ..Default::default()
        }
    }

    #[test]
    fn cause_decoded_with_its_sender() {
        let sender = Sender { pid: 7, comm: "bash".to_owned(), cgroup: None, exec_id: None };
        let expect =
            Cause { kind: CauseKind::NodeProcess, sender: Some(sender), sources: vec!["trace".to_owned()] };
        assert_eq!(decode(&message(1, "bash"), "c"), Ok(expect));
    }

    #[test]
    fn cause_in_a_snapshot_counts_and_loses_unknown_fields() {
        let mut cause = message(2, "bash");
        cause.special_fields.mut_unknown_fields().add_varint(99, 1);
        if let Some(sender) = cause.sender.as_mut() {
            sender.special_fields.mut_unknown_fields().add_varint(99, 1);
        }
        assert_eq!(texts(&cause), "tracetracebash".len());
        let mut exited = agent::Exited { cause: Some(cause).into(), ..Default::default() };
        drop_unknown(&mut exited);
        assert_eq!(exited.cause.as_ref(), Some(&message(2, "bash")));
    }

    #[test]
    fn cause_of_a_later_agent_is_unknown() {
        let later = agent::Cause { kind: protobuf::EnumOrUnknown::from_i32(99), ..message(0, "") };
        assert_eq!(decode(&later, "c").map(|it| it.kind), Ok(CauseKind::Unknown));
    }

    #[test]
    fn cause_over_its_limits_is_refused() {
        assert!(matches!(decode(&message(9, ""), "c"), Err(SignalError::TooMany { limit: 8, .. })));
        let long = decode(&message(0, &"x".repeat(65)), "c");
        assert!(matches!(long, Err(SignalError::TooLong { limit: 64, .. })), "{long:?}");
    }
}
