//! Shell completions and man pages, generated from the commands in [`crate::args`].

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Args, FAILED};
use crate::render::fail;

/// Prints the completions of `shell`.
pub(crate) fn completions(shell: clap_complete::Shell) -> ExitCode {
    // Into memory first: the generator panics where its output cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "coroner", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("the completions cannot be written: {error}")),
    }
}

/// Writes a page for each command: `coroner.8`, `coroner-run.8` and so on.
pub(crate) fn pages(directory: &Path) -> ExitCode {
    let mut command = Args::command();
    command.build();
    match write(&command, "coroner", directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, format!("cannot write to {}: {error}", directory.display())),
    }
}

fn write(command: &clap::Command, name: &str, directory: &Path) -> io::Result<()> {
    let named = command.clone().display_name(name).bin_name(name.replace('-', " "));
    let page = clap_mangen::Man::new(named).title(name).section("8").manual("Coroner");
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(directory.join(format!("{name}.8")), text)?;
    for below in command.get_subcommands().filter(|it| !it.is_hide_set() && it.get_name() != "help") {
        write(below, &format!("{name}-{}", below.get_name()), directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_man_page_with_its_options() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Args::command();
        command.build();
        write(&command, "coroner", folder.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("coroner.8").contains("coroner\\-explain(8)"), "{}", read("coroner.8"));
        let tap = read("coroner-tap.8");
        assert!(tap.contains("\\fBcoroner tap\\fR") && tap.contains("\\-\\-namespace"), "{tap}");
        assert!(read("coroner-policy-promote.8").contains("\\-\\-force"));
        assert!(!folder.path().join("coroner-demo-victim.8").exists());
    }

    #[test]
    fn completions_of_bash_have_every_command() {
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Bash, &mut Args::command(), "coroner", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in ["explain", "policy", "promote", "--namespace"] {
            assert!(script.contains(command), "{command}");
        }
    }
}
