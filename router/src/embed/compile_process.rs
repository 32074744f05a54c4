//! The embedding program as the compiler of policies, so that it needs no second program.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use coroner_policy::{COMMAND, compile_child};

/// The program that runs, even if its file was replaced meanwhile: an upgrade must not have another
/// version compile.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Whether this process called [`compile_process`]. Without this condition a program that does not
/// call it would start itself as its own compiler, again and again.
static IS_COMPILER: AtomicBool = AtomicBool::new(false);

/// Compiles a policy, if a router started this process to do so. Call it first in `main`, before
/// threads are started, and return the exit code if there is one.
///
/// The compiler parses untrusted bytes, so a router runs it in a process of its own, under limits
/// of memory and time. Unless the configuration names another program in
/// `policies.compile.program`, that process is the embedding program itself. Without this call
/// nothing is compiled: policies that are not in the cache are refused, and the native default
/// rules in their place.
pub fn compile_process() -> Option<ExitCode> {
    IS_COMPILER.store(true, Ordering::Relaxed);
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == COMMAND).then_some(())?;
    let (memory, seconds) = (arguments.next()?.parse().ok()?, arguments.next()?.parse().ok()?);
    Some(compile_child(memory, seconds))
}

/// This program, if it can compile.
pub(super) fn program() -> Option<PathBuf> {
    IS_COMPILER.load(Ordering::Relaxed).then(|| PathBuf::from(THIS_PROGRAM))
}
