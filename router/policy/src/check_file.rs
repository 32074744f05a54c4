//! `coroner policy check`: checks one component file without a router, and measures the cost of a
//! call.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::cache::Cache;
use super::counts::PolicyCounts;
use super::directory;
use super::host::Host;
use super::limits::CallBudget;
use super::load::prepare;
use super::load_error::LoadError;
use super::on_failure::OnFailure;
use super::policy::Policy;
use super::pure;
use super::quarantine::CircuitBreaker;

/// Rounds over the bundled recording: enough for a median within a moment.
const ROUNDS: usize = 50;

/// The result of `coroner policy check`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// Whether the router would load it.
    pub ok: bool,
    /// The policy's name in its description.
    pub policy: Option<String>,
    /// The policy's version in its description.
    pub version: Option<String>,
    /// `sha256:...`
    pub digest: Option<String>,
    /// Version of the contract.
    pub wit_version: Option<&'static str>,
    /// Imported interfaces.
    pub imports: Vec<String>,
    /// Kinds of signal it wants.
    pub wants: Vec<String>,
    /// Facts it needs.
    pub needs: Vec<String>,
    /// JSON Schema of its configuration.
    pub config_schema: Option<serde_json::Value>,
    /// What rules where it fails: the key of its file.
    pub on_failure: Option<OnFailure>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Compile time in milliseconds.
    pub compile_ms: Option<u64>,
    /// Cost of a call, on the bundled recording.
    pub call: Option<CallCost>,
    /// Why the router would not load it.
    pub mistakes: Vec<String>,
}

/// Medians of a call.
#[derive(Debug, Serialize)]
pub struct CallCost {
    /// Signals of the recording that it wants.
    pub signals: usize,
    /// wasm fuel burnt.
    pub fuel: u64,
    /// Duration in microseconds.
    pub us: u64,
}

/// Checks a component file with its configuration file, if there is one.
pub fn check(host: &Host, wasm: &Path, toml: Option<&Path>) -> Checked {
    let mut checked = Checked::default();
    match checked.run(host, wasm, toml) {
        Ok(()) => checked.ok = true,
        Err(error) => checked.mistakes.push(error.to_string()),
    }
    checked
}

impl Checked {
    fn run(&mut self, host: &Host, wasm: &Path, toml: Option<&Path>) -> Result<(), LoadError> {
        let name = wasm.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let found = directory::single(&name, wasm, toml, host.settings())?;
        self.digest = Some(format!("sha256:{}", found.bytes.digest));
        self.size = Some(found.bytes.size);
        let begun = Instant::now();
        let compiled = Cache::open(None).compile(host, &found.bytes);
        let component = compiled.map_err(|reason| LoadError::Compile { policy: name.clone(), reason })?;
        self.compile_ms = Some(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.imports = host.imports(&component);
        let breaker = Arc::new(CircuitBreaker::new(name, host.settings().quarantine));
        let policy = prepare(host, &found, &component, breaker, Arc::new(PolicyCounts::default()))?;
        self.wit_version = Some(policy.pre.contract().version());
        self.policy = Some(policy.description.name.clone());
        self.version = Some(policy.version().to_owned());
        self.wants = policy.description.wants.names();
        self.needs = policy.needs().iter().map(|it| it.name().to_owned()).collect();
        self.config_schema = policy.schema();
        self.on_failure = Some(policy.own.on_failure);
        self.call = cost(host, &policy);
        Ok(())
    }
}

/// `None`: it wants none of the recording's signals.
fn cost(host: &Host, policy: &Policy) -> Option<CallCost> {
    let vectors = pure::bundled();
    let wants = policy.description.wants;
    let wanted: Vec<_> = vectors.iter().filter(|it| wants.include(&it.signal.event)).collect();
    let mut instance = policy.start(host).ok()?;
    let (mut fuels, mut times) = (Vec::new(), Vec::new());
    for vector in wanted.iter().cycle().take(ROUNDS * wanted.len()) {
        let begun = Instant::now();
        let (answer, fuel) =
            instance.rule(host, CallBudget::OWN, &vector.signal, &vector.case, &vector.draft);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_lists_the_keys_that_are_printed() {
        let page = include_str!("../../../docs/reference/cli.md");
        let table = page.split_once("`policy check --json` needs no router. It prints:");
        let table = table.expect("the page lists the keys").1.trim_start();
        // The first cell of each row has the keys; the head and the rule below it have none.
        let rows = table.lines().take_while(|line| line.starts_with('|'));
        let cells = rows.filter_map(|row| row.split('|').nth(1));
        let mut listed: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
        listed.sort_unstable();
        let printed = serde_json::to_value(Checked::default()).unwrap();
        let mut printed: Vec<&str> = printed.as_object().unwrap().keys().map(String::as_str).collect();
        printed.sort_unstable();
        assert_eq!(listed, printed);
    }
}
