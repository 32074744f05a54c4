//! Runs policies: the engine, one instance of a component, and its three calls under their limits.

use std::fmt;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store};

use super::bindings::{self, Bindings, BindingsPre, Rules, log, wit};
use super::limits::{self, Limits, Meter};
use crate::case::Case;
use crate::ruling::{Action, Fault, FaultKind, Ruling, within_limits};
use crate::signal::Signal;

/// Compiles and starts policies. One per process; cheap to share.
pub struct Host {
    engine: Engine,
    linker: Linker<State>,
    limits: Limits,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Host {
    /// An engine with the deterministic settings every ruling runs under.
    pub fn new(limits: Limits) -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config.consume_fuel(true);
        config.max_wasm_stack(limits::STACK);
        // The same bytes burn the same fuel and give the same answer on every machine.
        config.cranelift_nan_canonicalization(true);
        config.relaxed_simd_deterministic(true);
        // Fault messages are audited and replayed: no addresses in them.
        config.wasm_backtrace_max_frames(None);
        // Policies are small: reserve little address space, so that hundreds of instances fit a memory cgroup.
        config.memory_reservation(limits.memory);
        config.memory_reservation_for_growth(0);
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        log::add_to_linker::<State, HasSelf<State>>(&mut linker, |state| state)?;
        Ok(Self { engine, linker, limits })
    }

    pub(super) fn compile(&self, bytes: &[u8]) -> wasmtime::Result<Component> {
        Component::from_binary(&self.engine, bytes)
    }

    /// The full names of a component's imports that this router does not give.
    pub(super) fn foreign_imports(&self, component: &Component) -> Vec<String> {
        let ours = |name: &str| {
            ["log", "types"]
                .iter()
                .any(|it| name == format!("{}/{it}@{}", bindings::PACKAGE, bindings::VERSION))
        };
        let imports = component.component_type();
        let names = imports.imports(&self.engine).map(|(name, _)| name.to_owned());
        names.filter(|name| !ours(name)).collect()
    }

    pub(super) fn link(&self, component: &Component) -> wasmtime::Result<BindingsPre<State>> {
        BindingsPre::new(self.linker.instantiate_pre(component)?)
    }

    /// A fresh instance, not yet configured.
    pub(super) fn start(&self, name: &str, pre: &BindingsPre<State>) -> Result<Instance, Fault> {
        let state =
            State { policy: name.to_owned(), meter: Meter::new(self.limits), lines: 0, last_error: None };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.meter);
        store.set_hostcall_fuel(limits::ANSWER);
        store.set_fuel(self.limits.start_fuel()).expect("fuel is enabled in Host::new");
        let bindings = pre.instantiate(&mut store).map_err(|error| fault(&error, store.data()))?;
        Ok(Instance { store, bindings, limits: self.limits })
    }
}

/// One running policy. After a fault it is dropped: nothing it may have broken is reused.
pub(super) struct Instance {
    store: Store<State>,
    bindings: Bindings,
    limits: Limits,
}

impl Instance {
    pub(super) fn describe(&mut self) -> Result<wit::Description, Fault> {
        self.call(self.limits.start_fuel(), |rules, store| rules.call_describe(store)).0
    }

    /// Hands over the configuration. The inner error is the policy's: keys and messages.
    pub(super) fn configure(&mut self, json: &str) -> Result<Result<(), Vec<(String, String)>>, Fault> {
        self.call(self.limits.start_fuel(), |rules, store| rules.call_configure(store, json)).0
    }

    /// One ruling and the fuel it burnt.
    pub(super) fn rule(
        &mut self,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let (answer, fuel) = self.call(self.limits.fuel, |rules, store| {
            bindings::lowered(signal, case, draft, |signal, case, draft| {
                rules.call_rule(store, signal, case, draft)
            })
        });
        (answer.and_then(checked), fuel)
    }

    fn call<R>(
        &mut self,
        fuel: u64,
        call: impl FnOnce(&Rules, &mut Store<State>) -> wasmtime::Result<R>,
    ) -> (Result<R, Fault>, u64) {
        self.store.set_fuel(fuel).expect("fuel is enabled in Host::new");
        let state = self.store.data_mut();
        state.lines = 0;
        state.last_error = None;
        let answer = call(self.bindings.coroner_policy_rules(), &mut self.store);
        let left = self.store.get_fuel().expect("fuel is enabled in Host::new");
        (answer.map_err(|error| fault(&error, self.store.data())), fuel - left)
    }
}

fn checked(answer: Result<wit::Ruling, String>) -> Result<Ruling, Fault> {
    let ruling = answer
        .map(Ruling::from)
        .map_err(|message| Fault { kind: FaultKind::Refused, message: shortened(&message) })?;
    if let Ruling::Decide(decision) = &ruling {
        within_limits(decision).map_err(|message| Fault { kind: FaultKind::Answer, message })?;
    }
    Ok(ruling)
}

/// A fault's message: what stopped the call, and what the policy last said about it (its panic text).
fn fault(error: &wasmtime::Error, state: &State) -> Fault {
    let kind = limits::kind_of(error, &state.meter);
    let cause = error.root_cause().to_string();
    let message = match &state.last_error {
        Some(said) if kind == FaultKind::Trap => format!("{cause}: {said}"),
        _ => cause,
    };
    Fault { kind, message: shortened(&message) }
}

/// The most of a policy's text that an audit record or a log line holds.
pub(super) fn shortened(text: &str) -> String {
    let mut end = text.len().min(limits::LOG_LINE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What a policy's store holds for the host: its limits and its log.
pub(super) struct State {
    policy: String,
    meter: Meter,
    lines: u32,
    last_error: Option<String>,
}

impl log::Host for State {
    fn log(&mut self, severity: log::Severity, text: String) {
        self.lines += 1;
        let text = shortened(&text);
        if severity == log::Severity::Error {
            self.last_error = Some(text.clone());
        }
        if self.lines > limits::LOG_LINES {
            return;
        }
        let policy = self.policy.as_str();
        match severity {
            log::Severity::Error => tracing::error!(policy, text, "policy says"),
            log::Severity::Warn => tracing::warn!(policy, text, "policy says"),
            log::Severity::Info => tracing::info!(policy, text, "policy says"),
            log::Severity::Debug => tracing::debug!(policy, text, "policy says"),
        }
    }
}
