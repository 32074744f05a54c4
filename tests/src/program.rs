//! Builds the program that test containers run: static, because their image holds nothing else.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::scratch::Scratch;

const OOMTEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/oomtest.c");
const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/guest.c");

type Compiled = OnceLock<Result<Vec<u8>>>;

/// The bytes of the program that covers all kinds of death, compiled once per test process.
pub fn oomtest() -> Result<&'static [u8]> {
    static PROGRAM: Compiled = OnceLock::new();
    once(&PROGRAM, OOMTEST)
}

/// The bytes of the program that drives a guest, compiled once per test process.
pub fn guest() -> Result<&'static [u8]> {
    static PROGRAM: Compiled = OnceLock::new();
    once(&PROGRAM, GUEST)
}

fn once(program: &'static Compiled, source: &str) -> Result<&'static [u8]> {
    let program = program.get_or_init(|| compile(source));
    program.as_deref().map_err(|error| anyhow!("compiling {source}: {error:#}"))
}

fn compile(source: &str) -> Result<Vec<u8>> {
    let scratch = Scratch::new()?;
    let output = scratch.path("program");
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-static", "-s", source, "-o"])
        .arg(&output)
        .status()
        .context("starting gcc: is it installed?")?;
    ensure!(status.success(), "gcc failed: {status}");
    Ok(fs::read(output)?)
}
