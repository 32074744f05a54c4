//! A policy's configuration file, `NN-name.toml`: mode, pinned digest, limits, configuration.

use super::limits::Limits;
use super::on_failure::OnFailure;
use super::settings::Settings;
use coroner_core::mode::PolicyMode;
use coroner_core::table::{Mistakes, Table};

const MODES: [(&str, PolicyMode); 3] =
    [("enforce", PolicyMode::Enforce), ("shadow", PolicyMode::Shadow), ("off", PolicyMode::Off)];

/// The checked content of the file; without a file, the defaults.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PolicyConfig {
    /// Whether its rulings are enforced.
    pub(super) mode: PolicyMode,
    /// The digest its component must have, hex.
    pub(super) sha256: Option<String>,
    /// Its limits.
    pub(super) limits: Limits,
    /// What rules where it fails.
    pub(super) on_failure: OnFailure,
    /// `[config]` as JSON.
    pub(super) config: String,
}

impl PolicyConfig {
    /// The defaults for a policy without a file.
    pub(super) fn absent(settings: &Settings) -> Self {
        let mode = if settings.shadow_all { PolicyMode::Shadow } else { PolicyMode::Enforce };
        let on_failure = OnFailure::default();
        Self { mode, sha256: None, limits: settings.limits, on_failure, config: "{}".to_owned() }
    }

    /// Parses a file. The error names every mistake with its key.
    pub(super) fn parse(bytes: &[u8], settings: &Settings) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let values: toml::Table =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mistakes = Mistakes::default();
        let file = Self::read(values, settings, &mistakes);
        mistakes.none(Some(file)).map_err(|mistakes| {
            let texts: Vec<String> =
                mistakes.iter().map(|it| format!("{}: {}", it.key, it.message)).collect();
            texts.join("; ")
        })
    }

    fn read(mut values: toml::Table, settings: &Settings, mistakes: &Mistakes) -> Self {
        let mut file = Self::absent(settings);
        file.on_failure = OnFailure::read(values.remove("on_failure"), mistakes);
        match values.remove("config").unwrap_or_else(|| toml::Table::new().into()) {
            config @ toml::Value::Table(_) => file.config = plain(config).to_string(),
            other => mistakes.add("config", format_args!("is a {}, not a table", other.type_str())),
        }
        let mut table = Table::new("", values, mistakes);
        match table.choice("mode", &MODES) {
            // A dry run of the whole node enforces nothing, whatever a policy's file sets.
            Some(PolicyMode::Enforce) if settings.shadow_all => {}
            Some(mode) => file.mode = mode,
            None => {}
        }
        file.sha256 = table.parsed("sha256", pin);
        file.limits = limits(table.table("limits"), file.limits);
        table.end();
        file
    }
}

fn pin(text: &str) -> Result<String, String> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    match hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => Ok(hex),
        false => Err(format!("`{text}` is not 64 hexadecimal digits")),
    }
}

fn limits(mut table: Table<'_>, default: Limits) -> Limits {
    let limits = Limits {
        fuel: table.number("fuel").unwrap_or(default.fuel),
        memory: table.size("memory").unwrap_or(default.memory),
        call: table.time("call").unwrap_or(default.call),
        configure: table.time("configure").unwrap_or(default.configure),
        table_elements: table.number("table_elements").unwrap_or(default.table_elements),
        log_rate: table.number("log_rate").unwrap_or(default.log_rate),
    };
    table.end();
    limits
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
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_key_is_parsed() {
        let settings = Settings::default();
        let text = format!(
            "mode = 'shadow'\non_failure = 'hold'\nsha256 = 'sha256:{}'\n[limits]\nfuel = 5\nmemory = '1MiB'\ncall = '3ms'\n\
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
            on_failure: OnFailure::Hold,
            config: r#"{"at":"2026-11-24","x":1}"#.to_owned(),
        };
        assert_eq!(file, expect);
        assert_eq!(PolicyConfig::parse(b"", &settings).unwrap(), PolicyConfig::absent(&settings));
    }

    #[test]
    fn every_mistake_is_reported_with_its_key() {
        let check = |text: &str, expect: &str| {
            let error = PolicyConfig::parse(text.as_bytes(), &Settings::default()).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("mode = 'on'", "on");
        check("mod = 'off'", "mod: is not a key");
        check("sha256 = 'x'", "64 hexadecimal digits");
        check("[limits]\nfuel = 0", "limits.fuel");
        check("[limits]\nmemory = '1'", "limits.memory");
        check("[limits]\ncall = 'soon'", "limits.call");
        check("config = 3", "config: is a integer, not a table");
        let all = "mod = 1\nsha256 = 'x'\non_failure = 'x'\n[limits]\nfuel = 0\nfool = 1\ncall = 'soon'";
        for key in ["mod:", "sha256:", "on_failure:", "limits.fuel:", "limits.fool:", "limits.call:"] {
            check(all, key);
        }
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
