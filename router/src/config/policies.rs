//! The `[policies]` table: where policies are, and what each may use.

use std::path::Path;

use coroner_core::table::Table;
use coroner_policy::{CompileSettings, Limits, QuarantineSettings, Settings};

/// A worker's thread has 2 MiB of stack, and needs some itself.
const MOST_STACK: usize = 1 << 20;

/// Reads the table.
pub(super) fn read(mut table: Table<'_>, cache: &Path) -> Settings {
    let default = Settings::default();
    let mut compile = table.table("compile");
    let settings = Settings {
        directory: table.path("directory"),
        poll: table.time("poll"),
        cache: Some(table.path("cache").unwrap_or_else(|| cache.to_owned())),
        limits: limits(&mut table, default.limits),
        signal_fuel: table.number("signal_fuel").unwrap_or(default.signal_fuel),
        signal: table.time("signal").unwrap_or(default.signal),
        file: table.size("file").unwrap_or(default.file),
        instances: table.number("instances").unwrap_or(default.instances),
        stack: table.parsed("stack", stack).unwrap_or(default.stack),
        compile: CompileSettings {
            memory: compile.size("memory").unwrap_or(default.compile.memory),
            time: compile.time("time").unwrap_or(default.compile.time),
            program: compile.path("program"),
        },
        quarantine: quarantine(table.table("quarantine"), default.quarantine),
        shadow_all: false,
    };
    compile.end();
    table.end();
    settings
}

/// What one policy may use.
fn limits(table: &mut Table<'_>, default: Limits) -> Limits {
    Limits {
        fuel: table.number("fuel").unwrap_or(default.fuel),
        memory: table.size("memory").unwrap_or(default.memory),
        call: table.time("call").unwrap_or(default.call),
        configure: table.time("configure").unwrap_or(default.configure),
        table_elements: table.number("table_elements").unwrap_or(default.table_elements),
        log_rate: table.number("log_rate").unwrap_or(default.log_rate),
    }
}

fn stack(text: &str) -> Result<usize, String> {
    let bytes = usize::try_from(super::size(text)?).ok();
    bytes.filter(|bytes| *bytes <= MOST_STACK).ok_or_else(|| "is over 1MiB".to_owned())
}

fn quarantine(mut table: Table<'_>, default: QuarantineSettings) -> QuarantineSettings {
    let quarantine = QuarantineSettings {
        faults: table.number("faults").unwrap_or(default.faults),
        window: table.time("window").unwrap_or(default.window),
        burnt: table.time("burnt").unwrap_or(default.burnt),
        shortest: table.time("shortest").unwrap_or(default.shortest),
        longest: table.time("longest").unwrap_or(default.longest),
    };
    if quarantine.longest < quarantine.shortest {
        table.wrong("longest", "is shorter than policies.quarantine.shortest");
    }
    table.end();
    quarantine
}
