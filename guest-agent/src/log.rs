//! Log lines on standard error: a constant message, then fields. The agent has its own logger
//! because a tracing crate alone would be a third of its memory.

use std::fmt::Display;
use std::io::Write as _;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// An operator must act.
    Error = 1,
    /// Something was lost or replaced.
    Warn,
    /// Life cycle.
    Info,
    /// Each signal.
    Debug,
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" | "trace" => Ok(Self::Debug),
            other => Err(format!("unknown log level `{other}`: use error, warn, info, debug or trace")),
        }
    }
}

/// The default, warn, is for the embedded agent: it logs losses only.
static LEVEL: AtomicU8 = AtomicU8::new(Level::Warn as u8);

/// Sets the level: lines above it are dropped.
pub fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

pub(crate) fn write(level: Level, message: &'static str, fields: &[(&str, &dyn Display)]) {
    if level as u8 > LEVEL.load(Ordering::Relaxed) {
        return;
    }
    let name = match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
    };
    let mut line = format!("coroner-agent: {name}: {message}");
    for (key, value) in fields {
        line.push_str(&format!(" {key}={}", value.to_string().escape_debug()));
    }
    line.push('\n');
    // Ignored: standard error may be closed.
    drop(std::io::stderr().lock().write_all(line.as_bytes()));
}

/// Logs at a level: `log!(Warn, "message", key = value)`.
macro_rules! log {
    ($level:ident, $message:literal $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::log::write($crate::log::Level::$level, $message, &[$((stringify!($key), &$value)),*])
    };
}
pub(crate) use log;
