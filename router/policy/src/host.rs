//! The policy host: the wasm engine, one instance of a component, and its three calls under their
//! limits.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store, Trap, UpdateDeadline};
use wasmtime_wasi::{WasiCtxView, WasiView};

use super::bindings::{Contract, Description, Exports, PolicyPre, kill_evidence, v0_1, v0_2};
use super::call_clock::CallClock;
use super::call_evidence::CallEvidence;
use super::fault_kind::fault_kind;
use super::limits::{self, CallBudget, Limits, Meter};
use super::policy_log::{CallLog, LogLevel, PolicyLog, shortened};
use super::settings::Settings;
use super::ticker::Ticker;
use super::wasi::{self, Wasi};
use coroner_core::case::Case;
use coroner_core::legality::within_limits;
use coroner_core::ruling::{Action, Fault, FaultKind, Ruling};
use coroner_core::signal::{Moment, Signal};

/// Address space reserved for one memory. Policies are small: with the usual 4 GiB a few hundred
/// instances would not fit into a limit on address space. A memory that outgrows it is moved.
const RESERVED: u64 = 16 << 20;

/// Why the host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The wasm engine does not support this machine.
    #[error("cannot start the wasm engine: {0}")]
    Engine(wasmtime::Error),
    /// The thread for time limits cannot be started.
    #[error("cannot start the thread for timeouts of policies: {0}")]
    Ticker(std::io::Error),
}

/// Starts and calls policies. One per process; cheap to share.
pub struct Host {
    engine: Engine,
    linker: Linker<StoreData>,
    settings: Settings,
    ticker: Ticker,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// The engine settings of every ruling. Code runs only with the settings it was compiled with.
fn engine_config() -> Config {
    let mut config = Config::new();
    config.consume_fuel(true);
    config.epoch_interruption(true);
    config.relaxed_simd_deterministic(true);
    // Fault messages are audited and replayed, so they contain no addresses.
    config.wasm_backtrace_max_frames(None);
    config.memory_reservation(RESERVED);
    config.memory_reservation_for_growth(0);
    config
}

/// An engine that can compile. Only the compile process has it.
pub(super) fn compiler() -> wasmtime::Result<Engine> {
    let mut config = engine_config();
    // The same bytes burn the same fuel and give the same answer on every machine.
    config.cranelift_nan_canonicalization(true);
    Engine::new(&config)
}

impl Host {
    /// An engine that only runs compiled code, with the deterministic settings of every ruling.
    pub fn new(settings: Settings) -> Result<Self, HostError> {
        let mut config = engine_config();
        config.enable_compiler(false);
        config.max_wasm_stack(settings.stack);
        let engine = Engine::new(&config).map_err(HostError::Engine)?;
        let mut linker = Linker::new(&engine);
        v0_1::log::add_to_linker::<StoreData, HasSelf<StoreData>>(&mut linker, |state| state)
            .and_then(|()| v0_2::log::add_to_linker::<_, HasSelf<StoreData>>(&mut linker, |state| state))
            .and_then(|()| v0_2::evidence::add_to_linker::<_, HasSelf<StoreData>>(&mut linker, |state| state))
            .map_err(HostError::Engine)?;
        let ticker = Ticker::start(&engine).map_err(HostError::Ticker)?;
        Ok(Self { engine, linker, settings, ticker })
    }

    /// The operator's settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The names of a component's imports.
    pub(super) fn imports(&self, component: &Component) -> Vec<String> {
        let imports = component.component_type();
        imports.imports(&self.engine).map(|(name, _)| name.to_owned()).collect()
    }

    /// The newest version of the contract that a component exports. One that exports none was
    /// refused before it was compiled; here it does not fit the oldest.
    fn contract(&self, component: &Component) -> Contract {
        let exports = component.component_type();
        let has = |contract: &&Contract| exports.exports(&self.engine).any(|(it, _)| it == contract.rules());
        Contract::ALL.iter().rev().find(has).copied().unwrap_or(Contract::V0_1)
    }

    /// Prepares a component for instantiation. WASI is linked only for components that import it:
    /// most do not, and it takes half a megabyte.
    pub(super) fn link(&self, component: &Component, wasi: bool) -> wasmtime::Result<PolicyPre<StoreData>> {
        let pre = if wasi {
            let mut linker = self.linker.clone();
            wasi::link(&mut linker)?;
            linker.instantiate_pre(component)?
        } else {
            self.linker.instantiate_pre(component)?
        };
        PolicyPre::new(self.contract(component), pre)
    }

    /// A new instance, not yet configured.
    pub(super) fn start(
        &self,
        pre: &PolicyPre<StoreData>,
        policy_log: &Arc<PolicyLog>,
        limits: Limits,
        wasi: bool,
    ) -> Result<Instance, Fault> {
        let _running = self.ticker.running();
        let clock = CallClock::start(limits.configure);
        let lines = Arc::new(Mutex::new(CallLog::new(Arc::clone(policy_log))));
        let wasi = wasi.then(|| Wasi::new(Arc::clone(&lines)));
        let meter = Meter::new(limits, self.settings.instances);
        let state = StoreData { lines, meter, wasi, clock, evidence: CallEvidence::default() };
        let mut store = Store::new(&self.engine, state);
        store.limiter(|state| &mut state.meter);
        store.set_hostcall_fuel(limits::ANSWER);
        store.set_fuel(limits.start_fuel()).expect("fuel is enabled in Host::new");
        store.set_epoch_deadline(Ticker::ticks(limits.configure));
        // The epoch counts elapsed time. Where the thread did not run for all of it, it goes on.
        store.epoch_deadline_callback(|store| match store.data().clock.left() {
            Duration::ZERO => Err(Trap::Interrupt.into()),
            left => Ok(UpdateDeadline::Continue(Ticker::ticks(left))),
        });
        let exports = pre.instantiate(&mut store).map_err(|error| fault(&error, store.data()))?;
        Ok(Instance { store, exports, limits, start: clock })
    }
}

/// One running policy. After a fault it is dropped, so that broken state is never reused.
pub(super) struct Instance {
    store: Store<StoreData>,
    exports: Exports,
    limits: Limits,
    /// The time of the start, `describe` and `configure` together.
    start: CallClock,
}

impl Instance {
    pub(super) fn describe(&mut self, host: &Host) -> Result<Description, Fault> {
        let (fuel, time) = (self.limits.start_fuel(), self.start.left());
        self.call(host, fuel, time, None, |exports, store| exports.describe(store)).0
    }

    /// Passes the configuration. The inner error is the policy's: keys and messages.
    pub(super) fn configure(
        &mut self,
        host: &Host,
        json: &str,
    ) -> Result<Result<(), Vec<(String, String)>>, Fault> {
        let (fuel, time) = (self.limits.start_fuel(), self.start.left());
        self.call(host, fuel, time, None, |exports, store| exports.configure(store, json)).0
    }

    /// Rules once and returns the fuel burnt. The limits are those of `allowed` or the policy's
    /// own, whichever are lower.
    pub(super) fn rule(
        &mut self,
        host: &Host,
        allowed: CallBudget,
        signal: &Signal,
        case: &Case,
        draft: &[Action],
    ) -> (Result<Ruling, Fault>, u64) {
        let (fuel, time) = (allowed.fuel.min(self.limits.fuel), allowed.time.min(self.limits.call));
        let world = Some((signal.at, signal.id.as_str()));
        self.store.data_mut().evidence = CallEvidence::of(signal);
        let (answer, fuel) =
            self.call(host, fuel, time, world, |exports, store| exports.rule(store, signal, case, draft));
        (answer.and_then(checked), fuel)
    }

    fn call<R>(
        &mut self,
        host: &Host,
        fuel: u64,
        time: Duration,
        world: Option<(Moment, &str)>,
        call: impl FnOnce(&Exports, &mut Store<StoreData>) -> wasmtime::Result<R>,
    ) -> (Result<R, Fault>, u64) {
        let _running = host.ticker.running();
        self.store.set_fuel(fuel).expect("fuel is enabled in Host::new");
        self.store.set_epoch_deadline(Ticker::ticks(time));
        let state = self.store.data_mut();
        state.clock = CallClock::start(time);
        state.lines().begin();
        if let Some(wasi) = &mut state.wasi {
            wasi.begin(world);
        }
        let answer = call(&self.exports, &mut self.store);
        let left = self.store.get_fuel().expect("fuel is enabled in Host::new");
        let state = self.store.data();
        if let Some(wasi) = &state.wasi {
            wasi.end();
        }
        (answer.map_err(|error| fault(&error, state)), fuel - left)
    }
}

fn checked(answer: Result<Ruling, String>) -> Result<Ruling, Fault> {
    let ruling =
        answer.map_err(|message| Fault { kind: FaultKind::Refused, message: shortened(&message) })?;
    if let Ruling::Decide(decision) = &ruling {
        within_limits(decision).map_err(|message| Fault { kind: FaultKind::Answer, message })?;
    }
    Ok(ruling)
}

/// The message of a fault: what stopped the call, and the policy's last error line (its panic
/// text).
fn fault(error: &wasmtime::Error, state: &StoreData) -> Fault {
    let kind = fault_kind(error, &state.meter);
    let cause = error.root_cause().to_string();
    let message = match &state.lines().last_error {
        Some(text) if kind == FaultKind::Trap => format!("{cause}: {text}"),
        _ => cause,
    };
    Fault { kind, message: shortened(&message) }
}

/// The host's data in a policy's store: limits, log, time, and WASI where it is imported.
pub(super) struct StoreData {
    lines: Arc<Mutex<CallLog>>,
    meter: Meter,
    wasi: Option<Wasi>,
    clock: CallClock,
    evidence: CallEvidence,
}

impl StoreData {
    /// Shared with the WASI streams, which are used only during a call, as this is.
    fn lines(&self) -> MutexGuard<'_, CallLog> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WasiView for StoreData {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        self.wasi.as_mut().expect("only components that import WASI are linked to it").ctx()
    }
}

impl StoreData {
    fn log_line(&self, severity: LogLevel, text: &str) -> wasmtime::Result<()> {
        let mut lines = self.lines();
        lines.count(text.len())?;
        Ok(lines.write(severity, text)?)
    }
}

impl v0_1::log::Host for StoreData {
    fn log(&mut self, severity: v0_1::log::Severity, text: String) -> wasmtime::Result<()> {
        self.log_line(severity.into(), &text)
    }
}

impl v0_2::log::Host for StoreData {
    fn log(&mut self, severity: v0_2::log::Severity, text: String) -> wasmtime::Result<()> {
        self.log_line(severity.into(), &text)
    }
}

impl v0_2::evidence::Host for StoreData {
    fn get(&mut self) -> wasmtime::Result<Option<v0_2::evidence::KillEvidence>> {
        Ok(self.evidence.read()?.map(kill_evidence))
    }
}
