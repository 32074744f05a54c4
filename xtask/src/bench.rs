//! Runs benchmarks; they print ratios, not verdicts, and do not belong to the gate.

use anyhow::bail;

use crate::{process, workspace};

/// Runs the named one, or all.
pub(crate) fn run(name: Option<&str>) -> anyhow::Result<()> {
    let known = workspace::targets(&workspace::root().join("tests/benches"))?;
    let names: Vec<&str> = match name {
        Some(name) if known.contains(name) => vec![name],
        Some(name) => bail!("no benchmark {name}; there are: {}", list(&known)),
        None => known.iter().map(String::as_str).collect(),
    };
    if names.is_empty() {
        bail!("there is no benchmark in tests/benches");
    }
    for name in names {
        // The whole workspace, as the gate does: the same features, and so no second build of the
        // engine.
        process::run(workspace::cargo().args(["bench", "--workspace", "--locked", "--bench", name]))?;
    }
    Ok(())
}

fn list(names: &std::collections::BTreeSet<String>) -> String {
    names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}
