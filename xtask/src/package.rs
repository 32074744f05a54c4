//! The Debian package: router, wrapper, static agent, units, man pages and completions, packed by
//! cargo-deb. Its contents are listed in router/cli/Cargo.toml.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::cache::cached;
use crate::{guest, packages, process, workspace};

const CARGO_DEB: &str = "3.8.0";
/// Finds the libraries that the programs need.
const PACKAGES: &[&str] = &["dpkg-dev"];
/// The completion file of each shell, as its users' packages name it.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "coroner"), ("zsh", "_coroner"), ("fish", "coroner.fish")];

/// Builds the package into `target-package` and returns its path.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    if std::env::var_os("CARGO_TARGET_DIR").is_some() {
        bail!("the package's contents are listed below target and target-package: unset CARGO_TARGET_DIR");
    }
    packages::ensure(PACKAGES)?;
    // As the gate builds, with the tests: with other features the engine is built again.
    process::run(workspace::cargo().args(workspace::BUILD))?;
    let folder = workspace::target_dir("package");
    prepare(&folder)?;
    let package = folder.join("coroner.deb");
    let mut command = Command::new(cargo_deb()?);
    command.current_dir(workspace::root()).args([
        "deb",
        "--package",
        "coroner-cli",
        "--no-build",
        "--locked",
    ]);
    process::run(command.arg("--output").arg(&package))?;
    let size = fs::metadata(&package).with_context(|| format!("cannot read {}", package.display()))?.len();
    println!("{}: {} KiB", package.display(), size / 1024);
    Ok(package)
}

/// What is generated, and the static agent.
fn prepare(folder: &Path) -> anyhow::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    if man.exists() {
        // Pages of commands that are gone.
        fs::remove_dir_all(&man).with_context(|| format!("cannot remove {}", man.display()))?;
    }
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let coroner = workspace::root().join("target/release/coroner");
    process::run(Command::new(&coroner).arg("man").arg(&man))?;
    for (shell, file) in COMPLETIONS {
        let script = process::output(Command::new(&coroner).args(["completions", shell]))?;
        fs::write(completions.join(file), script + "\n")?;
    }
    let agent = guest::agent()?;
    let help = process::output(Command::new(&agent).arg("--help"))?;
    fs::write(man.join("coroner-agent.8"), page("coroner-agent", &help))?;
    fs::copy(&agent, folder.join("coroner-agent")).context("cannot copy the agent")?;
    Ok(())
}

/// A man page from a program's help. The first line of the help is the summary.
fn page(name: &str, help: &str) -> String {
    let (summary, rest) = help.split_once('\n').unwrap_or((help, ""));
    let literal = |text: &str| {
        let escaped = text.replace('\\', "\\e").replace('-', "\\-");
        // A line that begins with one of these would be a request to the formatter.
        let lines = escaped.lines().map(|line| match line.starts_with(['.', '\'']) {
            true => format!("\\&{line}\n"),
            false => format!("{line}\n"),
        });
        lines.collect::<String>()
    };
    format!(
        ".TH {name} 8 \"\" \"\" Coroner\n.SH NAME\n{} \\- {}.SH DESCRIPTION\n.nf\n{}.fi\n",
        literal(name).trim_end(),
        literal(summary),
        literal(rest.trim_start_matches('\n'))
    )
}

fn cargo_deb() -> anyhow::Result<PathBuf> {
    let folder = cached(&format!("cargo-deb-{CARGO_DEB}"), |folder| {
        let target = folder.join("target");
        let mut install = workspace::cargo();
        // Built without optimization: its build is what takes the time.
        install.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "0");
        install.args(["install", "cargo-deb", "--version", CARGO_DEB, "--locked", "--debug", "--root"]);
        process::run(install.arg(folder))?;
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))
    })?;
    Ok(folder.join("bin/cargo-deb"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_becomes_a_man_page_with_nothing_formatted() {
        let page = page("a-b", "Does it.\n\nUsage:\n  a-b --x 'C:\\'\n.dot\n");
        let text = ".TH a-b 8 \"\" \"\" Coroner\n.SH NAME\na\\-b \\- Does it.\n.SH DESCRIPTION\n.nf\n\
                    Usage:\n  a\\-b \\-\\-x 'C:\\e'\n\\&.dot\n.fi\n";
        assert_eq!(page, text);
    }
}
