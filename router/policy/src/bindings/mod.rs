//! The bindings of the policy contract, one file for each version: the only place that converts the
//! router's types to a component's and back. A value that a version has no name for becomes `other`
//! or `unknown` in it.

mod description;
mod evidence;
pub(super) mod v0_1;
pub(super) mod v0_2;

use coroner_core::case::Case;
use coroner_core::ruling::{Action, Ruling};
use coroner_core::signal::Signal;
use wasmtime::component::InstancePre;
use wasmtime::{AsContextMut, Store};

pub(super) use description::{Description, Wants};
pub(super) use evidence::kill_evidence;

/// The package of every import and export of a policy.
pub(super) const PACKAGE: &str = "coroner:policy";

/// The versions of the contract that this router serves, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contract {
    V0_1,
    V0_2,
}

impl Contract {
    pub(super) const ALL: [Self; 2] = [Self::V0_1, Self::V0_2];

    pub(super) fn version(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.0",
            Self::V0_2 => "0.2.0",
        }
    }

    /// The interfaces that a component of this version may import.
    pub(super) fn imports(self) -> &'static [&'static str] {
        match self {
            Self::V0_1 => &["log", "types"],
            Self::V0_2 => &["evidence", "log", "types"],
        }
    }

    /// The interface that a component of this version exports.
    pub(super) fn rules(self) -> String {
        format!("{PACKAGE}/rules@{}", self.version())
    }
}

/// A component that is prepared for its instances.
pub(super) enum PolicyPre<T: 'static> {
    V0_1(v0_1::PolicyPre<T>),
    V0_2(v0_2::PolicyPre<T>),
}

impl<T> PolicyPre<T> {
    pub(super) fn new(contract: Contract, pre: InstancePre<T>) -> wasmtime::Result<Self> {
        Ok(match contract {
            Contract::V0_1 => Self::V0_1(v0_1::PolicyPre::new(pre)?),
            Contract::V0_2 => Self::V0_2(v0_2::PolicyPre::new(pre)?),
        })
    }

    pub(super) fn contract(&self) -> Contract {
        match self {
            Self::V0_1(_) => Contract::V0_1,
            Self::V0_2(_) => Contract::V0_2,
        }
    }

    pub(super) fn instantiate(&self, store: &mut Store<T>) -> wasmtime::Result<Exports> {
        Ok(match self {
            Self::V0_1(pre) => Exports::V0_1(pre.instantiate(store)?),
            Self::V0_2(pre) => Exports::V0_2(pre.instantiate(store)?),
        })
    }
}

/// The three calls of an instance.
pub(super) enum Exports {
    V0_1(v0_1::Policy),
    V0_2(v0_2::Policy),
}

impl Exports {
    pub(super) fn describe(&self, store: impl AsContextMut) -> wasmtime::Result<Description> {
        match self {
            Self::V0_1(policy) => v0_1::describe(policy, store),
            Self::V0_2(policy) => v0_2::describe(policy, store),
        }
    }

    /// The inner error is the policy's: keys and messages.
    pub(super) fn configure(
        &self,
        store: impl AsContextMut,
        json: &str,
    ) -> wasmtime::Result<Result<(), Vec<(String, String)>>> {
        match self {
            Self::V0_1(policy) => v0_1::configure(policy, store, json),
            Self::V0_2(policy) => v0_2::configure(policy, store, json),
        }
    }

    /// The inner error is the policy's refusal.
    pub(super) fn rule(
        &self,
        store: impl AsContextMut,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> wasmtime::Result<Result<Ruling, String>> {
        match self {
            Self::V0_1(policy) => v0_1::rule(policy, store, signal, case, draft),
            Self::V0_2(policy) => v0_2::rule(policy, store, signal, case, draft),
        }
    }
}
