//! The `[policies]` table: where policies are, and what each may use.

use std::path::PathBuf;

use super::check::Check;
use super::raw;
use crate::policy::{Compile, Limits, Quarantine, Settings};

/// Where compiled policies are kept unless the configuration says otherwise.
const CACHE: &str = "/var/cache/coroner";

impl Check {
    pub(super) fn policies(&mut self, raw: raw::Policies) -> Settings {
        self.unknown("policies.", &raw.unknown);
        let standard = Settings::default();
        let key = |name: &str| format!("policies.{name}");
        let limits = Limits {
            fuel: self.positive(&key("fuel"), raw.fuel).unwrap_or(standard.limits.fuel),
            memory: self.size(&key("memory"), raw.memory).unwrap_or(standard.limits.memory),
            call: self.time(&key("call"), raw.call).unwrap_or(standard.limits.call),
            configure: self.time(&key("configure"), raw.configure).unwrap_or(standard.limits.configure),
            table_elements: self.number(
                &key("table_elements"),
                raw.table_elements,
                standard.limits.table_elements,
            ),
            log_rate: self.number(&key("log_rate"), raw.log_rate, standard.limits.log_rate),
        };
        Settings {
            directory: self.absolute(&key("directory"), raw.directory),
            poll: self.time(&key("poll"), raw.poll),
            cache: Some(self.absolute(&key("cache"), raw.cache).unwrap_or_else(|| PathBuf::from(CACHE))),
            limits,
            signal: self.time(&key("signal"), raw.signal).unwrap_or(standard.signal),
            file: self.size(&key("file"), raw.file).unwrap_or(standard.file),
            instances: self.number(&key("instances"), raw.instances, standard.instances),
            stack: self
                .size(&key("stack"), raw.stack)
                .map_or(standard.stack, |bytes| self.stack(&key("stack"), bytes)),
            compile: self.compile(raw.compile),
            quarantine: self.quarantine(raw.quarantine),
            shadow_all: false,
        }
    }

    /// A worker's thread has 2 MiB of stack, and needs some itself.
    fn stack(&mut self, key: &str, bytes: u64) -> usize {
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= 1 << 20 => bytes,
            _ => {
                self.mistake(key, "is over 1MiB");
                0
            }
        }
    }

    fn compile(&mut self, raw: raw::Compile) -> Compile {
        self.unknown("policies.compile.", &raw.unknown);
        let standard = Compile::default();
        Compile {
            memory: self.size("policies.compile.memory", raw.memory).unwrap_or(standard.memory),
            time: self.time("policies.compile.time", raw.time).unwrap_or(standard.time),
            program: self.absolute("policies.compile.program", raw.program),
        }
    }

    fn quarantine(&mut self, raw: raw::Quarantine) -> Quarantine {
        self.unknown("policies.quarantine.", &raw.unknown);
        let standard = Quarantine::default();
        let key = |name: &str| format!("policies.quarantine.{name}");
        let quarantine = Quarantine {
            faults: self.number(&key("faults"), raw.faults, standard.faults),
            window: self.time(&key("window"), raw.window).unwrap_or(standard.window),
            burnt: self.time(&key("burnt"), raw.burnt).unwrap_or(standard.burnt),
            shortest: self.time(&key("shortest"), raw.shortest).unwrap_or(standard.shortest),
            longest: self.time(&key("longest"), raw.longest).unwrap_or(standard.longest),
        };
        if quarantine.longest < quarantine.shortest {
            self.mistake(&key("longest"), "is shorter than policies.quarantine.shortest");
        }
        quarantine
    }

    fn number<T: TryFrom<u64>>(&mut self, key: &str, value: Option<toml::Value>, standard: T) -> T {
        let Some(number) = self.positive(key, value) else { return standard };
        T::try_from(number).unwrap_or_else(|_| {
            self.mistake(key, "is too large");
            standard
        })
    }
}
