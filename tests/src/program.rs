//! Builds the program that test containers run: static, because their image holds nothing else.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use crate::scratch::Scratch;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/oomtest.c");

/// The program's bytes, compiled once per test process.
pub fn oomtest() -> Result<&'static [u8]> {
    static PROGRAM: OnceLock<Result<Vec<u8>>> = OnceLock::new();
    let program = PROGRAM.get_or_init(compile);
    program.as_deref().map_err(|error| anyhow!("compiling {SOURCE}: {error:#}"))
}

fn compile() -> Result<Vec<u8>> {
    let scratch = Scratch::new()?;
    let output = scratch.path("oomtest");
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-static", "-s", SOURCE, "-o"])
        .arg(&output)
        .status()
        .context("starting gcc: is it installed?")?;
    ensure!(status.success(), "gcc failed: {status}");
    Ok(fs::read(output)?)
}
