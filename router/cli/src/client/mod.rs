//! `coroner status`, `coroner policy`, `coroner guest` and `coroner tap`: they query a running
//! router and show its answer.

mod http;
mod policies;
mod status;
mod tap;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use coroner_policy::report::{Promoted, Reloaded};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::http::{Call, Client, Failure, encode};
use crate::args::{FAILED, GuestCommand, PolicyCommand, Query, WRONG};
use crate::render::{Screen, fail};
pub(crate) use tap::tap;

pub(crate) fn status(query: &Query) -> ExitCode {
    run(query, Call::get("/status"), status::status)
}

pub(crate) fn policy(command: PolicyCommand) -> ExitCode {
    match command {
        PolicyCommand::List { query } => run(&query, Call::get("/policies"), policies::list),
        PolicyCommand::Inspect { name, query } => {
            run(&query, Call::get(format!("/policies/{}", encode(&name))), policies::inspect)
        }
        PolicyCommand::Reload { query } => {
            let clean: SuccessCheck<Reloaded> = |answer| {
                let listing = &answer.listing;
                listing.refused.is_empty() && listing.problem.is_none()
            };
            judged(&query, Call::slow("/policies/reload"), policies::reload, clean)
        }
        PolicyCommand::Promote { name, force, query } => {
            let path = format!("/policies/{}/promote?force={force}", encode(&name));
            let promoted: SuccessCheck<Promoted> = |answer| answer.promoted;
            judged(&query, Call::slow(path), policies::promote, promoted)
        }
        PolicyCommand::Release { name, query } => {
            let path = format!("/policies/{}/release", encode(&name));
            run(&query, Call::new(Method::POST, path), policies::release)
        }
        PolicyCommand::Check { .. } | PolicyCommand::Wrap { .. } => {
            unreachable!("main runs them without a router")
        }
    }
}

/// The body of `POST /guests`. A key that is not given is left out: none of them has a value for
/// "not given".
#[derive(Serialize)]
struct NewGuest {
    name: String,
    r#type: String,
    address: String,
    mode: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    containers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    monitor_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_after: Option<String>,
}

pub(crate) fn guest(command: GuestCommand) -> ExitCode {
    match command {
        GuestCommand::Add { name, address, mode, kind, containers, monitor_pid, lost_after, query } => {
            let guest = NewGuest { name, r#type: kind, address, mode, containers, monitor_pid, lost_after };
            let body = serde_json::to_string(&guest).expect("its keys are strings");
            run(&query, Call::new(Method::POST, "/guests").with(body), status::added)
        }
        GuestCommand::Remove { name, query } => {
            let path = format!("/guests/{}", encode(&name));
            run(&query, Call::new(Method::DELETE, path), status::removed)
        }
        GuestCommand::List { query } => run(&query, Call::get("/guests"), status::guest_list),
    }
}

/// Puts an answer on a screen for a person.
type Renderer<T> = fn(&T, &mut Screen);
/// Whether the router did what it was called for.
type SuccessCheck<T> = fn(&T) -> bool;

/// A call that succeeds whenever it is answered.
fn run<T: DeserializeOwned>(query: &Query, call: Call, view: Renderer<T>) -> ExitCode {
    show(query, call, view, None)
}

/// A call with an answer that may be a refusal.
fn judged<T: DeserializeOwned>(
    query: &Query,
    call: Call,
    view: Renderer<T>,
    verdict: SuccessCheck<T>,
) -> ExitCode {
    show(query, call, view, Some(verdict))
}

fn show<T: DeserializeOwned>(
    query: &Query,
    call: Call,
    view: Renderer<T>,
    verdict: Option<SuccessCheck<T>>,
) -> ExitCode {
    let text = match answer(query, call) {
        Ok(text) => text,
        Err((code, message)) => return fail(code, message),
    };
    let mut screen = Screen::new();
    if query.json {
        screen.verbatim(&text);
    }
    // Programs may read what this version cannot.
    if query.json && verdict.is_none() {
        return screen.finish(ExitCode::SUCCESS);
    }
    let answer = match serde_json::from_str::<T>(&text) {
        Ok(answer) => answer,
        Err(error) => {
            let message = format!(
                "the router's answer cannot be read: {error}; use the `coroner` of its version, or --json"
            );
            return screen.finish(fail(FAILED, message));
        }
    };
    if !query.json {
        view(&answer, &mut screen);
    }
    let is_done = verdict.is_none_or(|verdict| verdict(&answer));
    screen.finish(if is_done { ExitCode::SUCCESS } else { WRONG.into() })
}

fn answer(query: &Query, call: Call) -> Result<String, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| (FAILED, format!("no runtime: {error}")))?;
    runtime.block_on(async { Client::connect(&query.socket).await?.call(call).await })
}
