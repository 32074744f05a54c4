//! The policies of a run: one that changes statuses, and one that fails at every call.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coroner_policy::{
    ChainSnapshot, Host, Limits, Policy, QuarantineSettings, Settings, compiled_in_process,
};

/// Rules on exits only.
const COMPONENT: &[u8] = include_bytes!("../../../plugins/dist/exit-code-map.wasm");
/// Every status becomes another one.
const DECIDES: &str = "[[config.map]]\nfrom = 3\nto = 4\n[[config.map]]\nfrom = 137\nto = 247\n";
/// Enough to start, and too little for a ruling.
const FAILS: &str = "[limits]\nfuel = 1000\n";
/// No call of a run ends by time, and no policy is quarantined: both depend on the machine's load.
const LONG: Duration = Duration::from_secs(3600);

/// Compiled once per process.
#[derive(Debug)]
struct Compiled {
    host: Arc<Host>,
    decides: Arc<Policy>,
    fails: Arc<Policy>,
}

fn compiled() -> &'static Compiled {
    static COMPILED: OnceLock<Compiled> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let settings = Settings {
            signal: LONG,
            limits: Limits { call: LONG, configure: LONG, ..Limits::default() },
            quarantine: QuarantineSettings { faults: u32::MAX, burnt: LONG, ..QuarantineSettings::default() },
            ..Settings::default()
        };
        let host = Arc::new(Host::new(settings).expect("the engine supports this machine"));
        let load = |name: &str, file: &str| {
            compiled_in_process(&host, name, COMPONENT, file).expect("it is a bundled policy")
        };
        let (decides, fails) = (load("10-decides", DECIDES), load("20-fails", FAILS));
        Compiled { host, decides, fails }
    })
}

/// The host of all policies.
pub(super) fn host() -> Arc<Host> {
    Arc::clone(&compiled().host)
}

/// The policies of a generation, in a run with policies.
pub(super) fn snapshot(generation: u64) -> ChainSnapshot {
    let Compiled { decides, fails, .. } = compiled();
    let policies = match generation % 3 {
        0 => vec![decides],
        1 => vec![decides, fails],
        _ => vec![fails],
    };
    ChainSnapshot { generation, policies: policies.into_iter().map(Arc::clone).collect() }
}

/// The names of a generation's policies, in order.
pub(super) fn names(generation: u64) -> Vec<String> {
    snapshot(generation).policies.iter().map(|policy| policy.name.clone()).collect()
}
