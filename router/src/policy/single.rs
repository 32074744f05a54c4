//! One component file, looked at without a router: would it be loaded, and what does a call of it cost?

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::bindings;
use super::cache::Cache;
use super::counts::Counts;
use super::directory;
use super::health::Health;
use super::host::Host;
use super::load::{LoadError, Policy, prepare};
use super::pure;

/// Rounds over the bundled recording: enough for a median, and over in a moment.
const ROUNDS: usize = 50;

/// What `coroner policy check` tells.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// Whether it would be loaded.
    pub ok: bool,
    /// As it describes itself.
    pub policy: Option<String>,
    /// As it describes itself.
    pub version: Option<String>,
    /// `sha256:...`
    pub digest: Option<String>,
    /// Of the contract.
    pub wit_version: Option<&'static str>,
    /// Interfaces.
    pub imports: Vec<String>,
    /// Kinds of signal.
    pub wants: Vec<String>,
    /// What it cannot work without.
    pub needs: Vec<String>,
    /// JSON Schema.
    pub config_schema: Option<serde_json::Value>,
    /// Bytes.
    pub size: Option<u64>,
    /// Milliseconds.
    pub compile_ms: Option<u64>,
    /// On the bundled recording.
    pub call: Option<CallCost>,
    /// Why it would not.
    pub mistakes: Vec<String>,
}

/// Medians of a call.
#[derive(Debug, Serialize)]
pub struct CallCost {
    /// Of the recording, that it wants.
    pub signals: usize,
    /// wasm fuel.
    pub fuel: u64,
    /// Microseconds.
    pub us: u64,
}

/// Looks at a component file and, if given, its own file.
pub fn check(host: &Host, wasm: &Path, toml: Option<&Path>) -> Checked {
    let mut checked = Checked::default();
    match checked.look(host, wasm, toml) {
        Ok(()) => checked.ok = true,
        Err(error) => checked.mistakes.push(error.to_string()),
    }
    checked
}

impl Checked {
    fn look(&mut self, host: &Host, wasm: &Path, toml: Option<&Path>) -> Result<(), LoadError> {
        let name = wasm.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let found = directory::single(&name, wasm, toml, host.settings())?;
        self.digest = Some(format!("sha256:{}", found.bytes.digest));
        self.size = Some(found.bytes.size);
        let begun = Instant::now();
        let compiled = Cache::open(None).compile(host, &found.bytes);
        let component = compiled.map_err(|reason| LoadError::Compile { policy: name.clone(), reason })?;
        self.compile_ms = Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.wit_version = Some(bindings::VERSION);
        self.imports = host.imports(&component);
        let health = Arc::new(Health::new(name, host.settings().quarantine));
        let policy = prepare(host, &found, &component, health, Arc::new(Counts::default()))?;
        self.policy = Some(policy.description.name.clone());
        self.version = Some(policy.version().to_owned());
        self.wants = bindings::kinds(policy.description.wants);
        self.needs = policy.needs().iter().map(|it| it.name().to_owned()).collect();
        self.config_schema = policy.schema();
        self.call = cost(host, &policy);
        Ok(())
    }
}

/// `None`: it wants none of the recording's signals.
fn cost(host: &Host, policy: &Policy) -> Option<CallCost> {
    let vectors = pure::bundled();
    let wants = policy.description.wants;
    let wanted: Vec<_> = vectors.iter().filter(|it| bindings::wanted(wants, &it.signal.event)).collect();
    let mut instance = policy.start(host).ok()?;
    let (mut fuels, mut times) = (Vec::new(), Vec::new());
    for vector in wanted.iter().cycle().take(ROUNDS * wanted.len()) {
        let begun = Instant::now();
        let (answer, fuel) =
            instance.rule(host, host.settings().signal, &vector.signal, &vector.case, &vector.draft);
        times.push(begun.elapsed());
        fuels.push(fuel);
        if answer.is_err() {
            instance = policy.start(host).ok()?;
        }
    }
    fuels.sort_unstable();
    times.sort_unstable();
    Some(CallCost {
        signals: wanted.len(),
        fuel: *fuels.get(fuels.len() / 2)?,
        us: u64::try_from(times.get(times.len() / 2)?.as_micros()).unwrap_or(u64::MAX),
    })
}
