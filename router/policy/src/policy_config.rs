//! A policy's configuration file, `NN-name.toml`: mode, pinned digest, limits, configuration.

use std::time::Duration;

use serde::Deserialize;

use super::limits::Limits;
use super::settings::Settings;
use coroner_core::mode::PolicyMode;
use coroner_core::quantity::size;

/// The checked content of the file; without a file, the defaults.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PolicyConfig {
    /// Whether its rulings are enforced.
    pub(super) mode: PolicyMode,
    /// The digest its component must have, hex.
    pub(super) sha256: Option<String>,
    /// Its limits.
    pub(super) limits: Limits,
    /// `[config]` as JSON.
    pub(super) config: String,
}

impl PolicyConfig {
    /// The defaults for a policy without a file.
    pub(super) fn absent(settings: &Settings) -> Self {
        let mode = if settings.shadow_all { PolicyMode::Shadow } else { PolicyMode::Enforce };
        Self { mode, sha256: None, limits: settings.limits, config: "{}".to_owned() }
    }

    /// Parses a file. The error names the key and its mistake.
    pub(super) fn parse(bytes: &[u8], settings: &Settings) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let raw: Raw = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut file = Self::absent(settings);
        match raw.mode {
            // A dry run of the whole node enforces nothing, whatever a policy's file sets.
            Some(PolicyMode::Enforce) if settings.shadow_all => {}
            Some(mode) => file.mode = mode,
            None => {}
        }
        if let Some(pin) = &raw.sha256 {
            let hex = pin.strip_prefix("sha256:").unwrap_or(pin).to_ascii_lowercase();
            if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("sha256: `{pin}` is not 64 hexadecimal digits"));
            }
            file.sha256 = Some(hex);
        }
        raw.limits.apply(&mut file.limits)?;
        file.config = serde_json::to_string(&plain(toml::Value::Table(raw.config)))
            .map_err(|error| format!("config: {error}"))?;
        Ok(file)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    mode: Option<PolicyMode>,
    sha256: Option<String>,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    config: toml::Table,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    fuel: Option<u64>,
    memory: Option<String>,
    call: Option<String>,
    configure: Option<String>,
    table_elements: Option<usize>,
    log_rate: Option<u32>,
}

impl RawLimits {
    fn apply(self, limits: &mut Limits) -> Result<(), String> {
        let positive =
            |key: &str, is: bool| if is { Ok(()) } else { Err(format!("limits.{key}: is not above 0")) };
        if let Some(fuel) = self.fuel {
            positive("fuel", fuel > 0)?;
            limits.fuel = fuel;
        }
        if let Some(text) = self.memory {
            limits.memory = size(&text).map_err(|error| format!("limits.memory: {error}"))?;
        }
        if let Some(text) = self.call {
            limits.call = time("call", &text)?;
        }
        if let Some(text) = self.configure {
            limits.configure = time("configure", &text)?;
        }
        if let Some(elements) = self.table_elements {
            limits.table_elements = elements;
        }
        if let Some(rate) = self.log_rate {
            positive("log_rate", rate > 0)?;
            limits.log_rate = rate;
        }
        Ok(())
    }
}

fn time(key: &str, text: &str) -> Result<Duration, String> {
    coroner_core::quantity::time(text).map_err(|error| format!("limits.{key}: {error}"))
}

/// Converts TOML to JSON; dates become strings.
fn plain(value: toml::Value) -> serde_json::Value {
    match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) => number.into(),
        toml::Value::Boolean(truth) => truth.into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(values) => values.into_iter().map(plain).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(key, value)| (key, plain(value))).collect(),
    }
}

/// The mistakes that a policy finds in its configuration, each with its key, on one line.
pub(super) fn keys(mistakes: &[(String, String)]) -> String {
    let texts: Vec<String> =
        mistakes.iter().map(|(key, message)| format!("config.{key}: {message}")).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_parsed() {
        let settings = Settings::default();
        let text = format!(
            "mode = 'shadow'\nsha256 = 'sha256:{}'\n[limits]\nfuel = 5\nmemory = '1MiB'\ncall = '3ms'\n\
             configure = '2s'\ntable_elements = 7\nlog_rate = 1\n[config]\nx = 1\nat = 2026-11-24",
            "Ab".repeat(32)
        );
        let file = PolicyConfig::parse(text.as_bytes(), &settings).unwrap();
        let limits = Limits {
            fuel: 5,
            memory: 1 << 20,
            call: Duration::from_millis(3),
            configure: Duration::from_secs(2),
            table_elements: 7,
            log_rate: 1,
        };
        let expect = PolicyConfig {
            mode: PolicyMode::Shadow,
            sha256: Some("ab".repeat(32)),
            limits,
            config: r#"{"at":"2026-11-24","x":1}"#.to_owned(),
        };
        assert_eq!(file, expect);
        assert_eq!(PolicyConfig::parse(b"", &settings).unwrap(), PolicyConfig::absent(&settings));
    }

    #[test]
    fn mistake_names_its_key() {
        let check = |text: &str, expect: &str| {
            let error = PolicyConfig::parse(text.as_bytes(), &Settings::default()).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("mode = 'on'", "on");
        check("mod = 'off'", "unknown field `mod`");
        check("sha256 = 'x'", "64 hexadecimal digits");
        check("[limits]\nfuel = 0", "limits.fuel");
        check("[limits]\nmemory = '1'", "limits.memory");
        check("[limits]\ncall = 'soon'", "limits.call");
    }

    #[test]
    fn dry_run_enforces_no_policy() {
        let settings = Settings { shadow_all: true, ..Settings::default() };
        let mode = |text: &str| PolicyConfig::parse(text.as_bytes(), &settings).unwrap().mode;
        assert_eq!(mode(""), PolicyMode::Shadow);
        assert_eq!(mode("mode = 'enforce'"), PolicyMode::Shadow);
        assert_eq!(mode("mode = 'off'"), PolicyMode::Off);
    }
}
