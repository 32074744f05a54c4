//! The compile process: compiles a component under limits of memory and time, and can be killed.
//! The field's name: process isolation.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use super::contract::{self, ContractError};
use super::host;
use super::policy_log::shortened;
use super::settings::CompileSettings;

/// The hidden command of `coroner` that compiles: the component on standard input, the compiled
/// code on standard output, or one line of JSON on standard error.
pub const COMMAND: &str = "compile-policy";
/// Exit code of the process when the component is refused.
const REFUSED: u8 = 3;
/// Bytes of its standard error that are read: after parsing untrusted bytes, the process itself is
/// untrusted.
const STDERR: u64 = 16 << 10;
/// Threads of the compiler: the node's processors are for its pods, and each thread takes address
/// space of its own.
const COMPILE_THREADS: &str = "2";
/// Poll interval for the end of the process.
const POLL: Duration = Duration::from_millis(2);

/// Why the compilation failed.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// There is no compiler program.
    #[error("no compiler: policies.compile.program is not a coroner binary")]
    NoProgram,
    /// The compiler could not be run.
    #[error("cannot run the compiler {program}: {source}")]
    Run {
        /// Path of the program.
        program: String,
        /// The system's error.
        source: io::Error,
    },
    /// The component does not keep the contract.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The compiler refuses the component.
    #[error("does not compile: {0}")]
    Refused(String),
    /// The compiler reached its limits.
    #[error("does not compile within {0}")]
    Limit(String),
    /// The compiler ended unexpectedly.
    #[error("the compiler ended with {status}: {output}")]
    Ended {
        /// Exit status.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
}

/// What the process prints when the component is refused.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CompileOutput {
    Contract(ContractError),
    Compiler(String),
}

/// Compiles `component` into `out`. Blocks until the process ends, at most for its timeout.
pub(super) fn compile(settings: &CompileSettings, component: File, out: File) -> Result<(), CompileError> {
    let program = settings.program.as_ref().ok_or(CompileError::NoProgram)?;
    let failed = |source| CompileError::Run { program: program.display().to_string(), source };
    let begun = Instant::now();
    let mut child = Command::new(program)
        .arg(COMMAND)
        .arg(settings.memory.to_string())
        .arg(settings.time.as_secs().max(1).to_string())
        .env_clear()
        .env("RAYON_NUM_THREADS", COMPILE_THREADS)
        .current_dir("/")
        .stdin(component)
        .stdout(out)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let ended = wait(&mut child, begun + settings.time).map_err(failed)?;
    let mut output = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(STDERR).read_to_end(&mut output).map_err(failed)?;
    }
    let output = String::from_utf8_lossy(&output).trim().to_owned();
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(explain(settings, status, &output)),
        None => Err(CompileError::Limit(time(settings))),
    }
}

fn time(settings: &CompileSettings) -> String {
    humantime::format_duration(settings.time).to_string()
}

fn explain(settings: &CompileSettings, status: ExitStatus, output: &str) -> CompileError {
    if status.code() == Some(i32::from(REFUSED)) {
        return match serde_json::from_str(output) {
            Ok(CompileOutput::Contract(error)) => error.into(),
            Ok(CompileOutput::Compiler(reason)) => CompileError::Refused(reason),
            Err(_) => CompileError::Refused(shortened(output)),
        };
    }
    let killed = status.signal();
    if killed == Some(Signal::XCPU.as_raw()) {
        return CompileError::Limit(time(settings));
    }
    // Rust's allocator aborts when the address space is exhausted; the kernel's OOM killer selects
    // this process first.
    if output.contains("memory allocation") || killed == Some(Signal::KILL.as_raw()) {
        return CompileError::Limit(format!("{} MiB of memory", settings.memory >> 20));
    }
    CompileError::Ended { status, output: shortened(output) }
}

/// The exit status; `None`: the timeout passed and the process was killed.
fn wait(child: &mut Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// The main function of the process. Limits: `memory` bytes of address space, `seconds` of
/// processor time.
pub fn compile_child(memory: u64, seconds: u64) -> std::process::ExitCode {
    match limited(memory, seconds).map_err(|error| error.to_string()).and_then(|()| child()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(output) => {
            // Without a standard error the exit code is all that is left.
            writeln!(io::stderr(), "{output}").unwrap_or(());
            REFUSED.into()
        }
    }
}

fn limited(memory: u64, seconds: u64) -> io::Result<()> {
    let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::As, both(memory))?;
    // The soft limit's signal names the cause; the hard limit follows a second later.
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    setrlimit(Resource::Core, both(0))?;
    // The process must not outlive a killed router.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The node's processors and memory are for its pods. The kernel never refuses these two
    // requests.
    rustix::process::nice(10)?;
    std::fs::write("/proc/self/oom_score_adj", "1000")
}

fn child() -> Result<(), String> {
    let json = |output: &CompileOutput| serde_json::to_string(output).expect("texts are JSON");
    let failed = |error: io::Error| json(&CompileOutput::Compiler(error.to_string()));
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(failed)?;
    contract::check(&bytes).map_err(|error| json(&CompileOutput::Contract(error)))?;
    let compiled = host::compiler().and_then(|engine| engine.precompile_component(&bytes));
    let compiled = compiled.map_err(|error| {
        let texts: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
        json(&CompileOutput::Compiler(shortened(&texts.join(": ").replace('\n', " "))))
    })?;
    let mut out = io::stdout().lock();
    out.write_all(&compiled).and_then(|()| out.flush()).map_err(failed)
}
