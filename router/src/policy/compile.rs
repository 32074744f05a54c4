//! Compiles components in a process of its own, under limits: the router hands it bytes and a file, and may kill it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use super::contract::{self, ContractError};
use super::host;
use super::settings::Compile;
use super::talk::shortened;

/// The hidden command of `coroner` that compiles: component on standard input, what it became on standard output, or one line
/// of JSON on standard error.
pub const COMMAND: &str = "compile-policy";
/// Exit code of the process when the component is to blame.
const REFUSED: u8 = 3;
/// Bytes of its standard error that are read: it is a stranger as soon as it has parsed a stranger's bytes.
const SAID: u64 = 16 << 10;
/// Threads of the compiler: the node's processors are for its pods, and each thread takes address space of its own.
const COMPILE_THREADS: &str = "2";
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// Why there is nothing compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// There is no compiler.
    #[error("nothing compiles here: policies.compile.program names no coroner binary")]
    NoProgram,
    /// It could not be run.
    #[error("cannot run the compiler {program}: {source}")]
    Run {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The component is no policy.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The compiler refuses it.
    #[error("does not compile: {0}")]
    Refused(String),
    /// It ran into its limits.
    #[error("does not compile within {0}")]
    Limit(String),
    /// It ended in a way nobody expects.
    #[error("the compiler ended with {status}: {said}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
}

/// What the process says when the component is to blame.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Said {
    Contract(ContractError),
    Compiler(String),
}

/// Has `component` compiled into `out`. Blocks for as long as that takes, at most its limit.
pub(super) fn compile(settings: &Compile, component: File, out: File) -> Result<(), CompileError> {
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
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(SAID).read_to_end(&mut said).map_err(failed)?;
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    match ended {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(explain(settings, status, &said)),
        None => Err(CompileError::Limit(time(settings))),
    }
}

fn time(settings: &Compile) -> String {
    humantime::format_duration(settings.time).to_string()
}

fn explain(settings: &Compile, status: ExitStatus, said: &str) -> CompileError {
    if status.code() == Some(i32::from(REFUSED)) {
        return match serde_json::from_str(said) {
            Ok(Said::Contract(error)) => error.into(),
            Ok(Said::Compiler(reason)) => CompileError::Refused(reason),
            Err(_) => CompileError::Refused(shortened(said)),
        };
    }
    let killed = status.signal();
    if killed == Some(Signal::XCPU.as_raw()) {
        return CompileError::Limit(time(settings));
    }
    // Rust's allocator aborts where address space is used up; the kernel's OOM killer takes this process first.
    if said.contains("memory allocation") || killed == Some(Signal::KILL.as_raw()) {
        return CompileError::Limit(format!("{} MiB of memory", settings.memory >> 20));
    }
    CompileError::Ended { status, said: shortened(said) }
}

/// How it ended; `None`: it did not in time, and was killed.
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
        std::thread::sleep(LOOK);
    }
}

/// What the process does. `memory` bytes of address space, `seconds` of processor time.
pub fn compile_child(memory: u64, seconds: u64) -> std::process::ExitCode {
    match limited(memory, seconds).map_err(|error| error.to_string()).and_then(|()| child()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(said) => {
            // Nobody is left to tell when this fails.
            writeln!(io::stderr(), "{said}").unwrap_or(());
            REFUSED.into()
        }
    }
}

fn limited(memory: u64, seconds: u64) -> io::Result<()> {
    let both = |limit| Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(Resource::As, both(memory))?;
    // The signal at the soft limit says what happened; the hard one is a second later.
    setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    setrlimit(Resource::Core, both(0))?;
    // It must not outlive a router that was killed.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The node's processors are for its pods, and so is its memory. Neither is refused to a process that asks for less.
    rustix::process::nice(10)?;
    std::fs::write("/proc/self/oom_score_adj", "1000")
}

fn child() -> Result<(), String> {
    let said = |said: &Said| serde_json::to_string(said).expect("texts are JSON");
    let failed = |error: io::Error| said(&Said::Compiler(error.to_string()));
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes).map_err(failed)?;
    contract::check(&bytes).map_err(|error| said(&Said::Contract(error)))?;
    let compiled = host::compiler().and_then(|engine| engine.precompile_component(&bytes));
    let compiled = compiled.map_err(|error| {
        let texts: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
        said(&Said::Compiler(shortened(&texts.join(": ").replace('\n', " "))))
    })?;
    let mut out = io::stdout().lock();
    out.write_all(&compiled).and_then(|()| out.flush()).map_err(failed)
}
