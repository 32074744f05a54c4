//! `coroner status`, `coroner policy`, `coroner guest` and `coroner tap`: asks a running router, and shows its answer.

mod show;
mod table;
mod tap;

use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::Duration;

use coroner_proto::control::{
    AddGuestRequest, Answer, InspectPolicyRequest, ListGuestsRequest, ListPoliciesRequest,
    PromotePolicyRequest, ReleasePolicyRequest, ReloadPoliciesRequest, RemoveGuestRequest, StatusRequest,
};
use coroner_proto::control_ttrpc::ControlClient;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::{Code, Error};

use crate::cli::{Ask, FAILED, GuestCommand, PolicyCommand, WRONG};
use show::Show;
pub(crate) use tap::tap;

/// A reload waits for compilers, which have a minute by default.
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) fn status(ask: &Ask) -> ExitCode {
    run(ask, async |client| {
        let answer = client.status(context(), &StatusRequest::default()).await?;
        Ok((answer, Show::status as View, ok as Verdict))
    })
}

pub(crate) fn policy(command: PolicyCommand) -> ExitCode {
    match command {
        PolicyCommand::List { ask } => run(&ask, async |client| {
            let answer = client.list_policies(context(), &ListPoliciesRequest::default()).await?;
            Ok((answer, Show::list as View, ok as Verdict))
        }),
        PolicyCommand::Inspect { name, ask } => run(&ask, async |client| {
            let request = InspectPolicyRequest { name, ..InspectPolicyRequest::default() };
            Ok((client.inspect_policy(context(), &request).await?, Show::inspect as View, ok as Verdict))
        }),
        PolicyCommand::Reload { ask } => run(&ask, async |client| {
            let answer = client.reload_policies(context(), &ReloadPoliciesRequest::default()).await?;
            let clean: Verdict = |answer| {
                answer["refused"].as_array().is_none_or(Vec::is_empty) && answer["problem"].is_null()
            };
            Ok((answer, Show::reload as View, clean))
        }),
        PolicyCommand::Promote { name, force, ask } => run(&ask, async |client| {
            let request = PromotePolicyRequest { name, force, ..PromotePolicyRequest::default() };
            let promoted: Verdict = |answer| answer["promoted"] == true;
            Ok((client.promote_policy(context(), &request).await?, Show::promote as View, promoted))
        }),
        PolicyCommand::Release { name, ask } => run(&ask, async |client| {
            let request = ReleasePolicyRequest { name, ..ReleasePolicyRequest::default() };
            Ok((client.release_policy(context(), &request).await?, Show::release as View, ok as Verdict))
        }),
        PolicyCommand::Check { .. } | PolicyCommand::Wrap { .. } => {
            unreachable!("they ask nobody, and main sends them elsewhere")
        }
    }
}

pub(crate) fn guest(command: GuestCommand) -> ExitCode {
    match command {
        GuestCommand::Add { name, address, mode, kind, containers, monitor_pid, lost_after, ask } => {
            let mut keys = json!({ "name": name, "type": kind, "address": address, "mode": mode });
            // A key that is not given is left out: none of them has a value for "not given".
            let given = [
                ("containers", (!containers.is_empty()).then(|| json!(containers))),
                ("monitor_pid", monitor_pid.map(|pid| json!(pid))),
                ("lost_after", lost_after.map(|time| json!(time))),
            ];
            for (key, value) in given.into_iter().filter_map(|(key, value)| Some((key, value?))) {
                keys[key] = value;
            }
            run(&ask, async |client| {
                let request = AddGuestRequest { guest: keys.to_string(), ..AddGuestRequest::default() };
                Ok((client.add_guest(context(), &request).await?, Show::guest as View, ok as Verdict))
            })
        }
        GuestCommand::Remove { name, ask } => run(&ask, async |client| {
            let request = RemoveGuestRequest { name, ..RemoveGuestRequest::default() };
            Ok((client.remove_guest(context(), &request).await?, Show::removed_guest as View, ok as Verdict))
        }),
        GuestCommand::List { ask } => run(&ask, async |client| {
            let answer = client.list_guests(context(), &ListGuestsRequest::default()).await?;
            Ok((answer, Show::guests as View, ok as Verdict))
        }),
    }
}

/// How an answer is shown to a person.
type View = fn(&Show, &Value);
/// Whether an answer is what was asked for.
type Verdict = fn(&Value) -> bool;

fn ok(_: &Value) -> bool {
    true
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(PATIENCE)
}

fn run(
    ask: &Ask,
    call: impl AsyncFnOnce(ControlClient) -> Result<(Answer, View, Verdict), Error>,
) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = runtime.map_err(|error| (FAILED, error.to_string())).and_then(|runtime| {
        runtime.block_on(async {
            let client = connect(ask).await?;
            call(client).await.map_err(|error| refused(&error))
        })
    });
    let parsed = asked.and_then(|(answer, view, verdict)| {
        let value = serde_json::from_str::<Value>(&answer.json);
        let value = value.map_err(|error| (FAILED, format!("the router's answer is no JSON: {error}")))?;
        Ok((answer.json, value, view, verdict))
    });
    match parsed {
        Ok((json, value, view, verdict)) => {
            show::Show::new().answer(ask.json.then_some(json), &value, view);
            if verdict(&value) { ExitCode::SUCCESS } else { WRONG.into() }
        }
        Err((code, message)) => {
            eprintln!("coroner: {message}");
            code.into()
        }
    }
}

async fn connect(ask: &Ask) -> Result<ControlClient, (u8, String)> {
    let path = ask.socket.display();
    let stream = UnixStream::connect(&ask.socket).await.map_err(|error| {
        let message = match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                format!(
                    "no router answers at {path}: is it running? (--socket or CORONER_SOCKET names another)"
                )
            }
            ErrorKind::PermissionDenied => {
                format!("{path} is for root and the router's own user alone: try it with sudo")
            }
            _ => format!("cannot connect to {path}: {error}"),
        };
        (FAILED, message)
    })?;
    Ok(ControlClient::new(Client::new(Socket::new(stream))))
}

/// What the router said, or that it said nothing.
fn refused(error: &Error) -> (u8, String) {
    match error {
        Error::RpcStatus(status) if is_refusal(status.code()) => (WRONG, status.message().to_owned()),
        Error::RpcStatus(status) => (FAILED, status.message().to_owned()),
        other => (FAILED, format!("the router did not answer: {other}")),
    }
}

fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::NOT_FOUND | Code::INVALID_ARGUMENT | Code::ALREADY_EXISTS | Code::FAILED_PRECONDITION
    )
}
