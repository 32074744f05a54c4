//! Finds the binaries under test beside the test executable, where one cargo build puts both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The built binary `name` of `package`, in the profile this test was built in.
pub fn find(name: &str, package: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where this test runs from")?;
    let profile =
        test.parent().and_then(Path::parent).context("a test executable lies in target/PROFILE/deps")?;
    let binary = profile.join(name);
    if !binary.is_file() {
        let release = if profile.ends_with("release") { "--release " } else { "" };
        bail!("{} is missing: run `cargo build {release}-p {package} --bin {name}` first", binary.display());
    }
    Ok(binary)
}

/// The folder `target-PURPOSE` beside the target folder, which xtask fills.
pub fn target(purpose: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where this test runs from")?;
    let target = test.ancestors().nth(3).context("a test executable lies in target/PROFILE/deps")?;
    let mut name = target.as_os_str().to_owned();
    name.push("-");
    name.push(purpose);
    Ok(name.into())
}

/// A bundled policy as built, `plugins/dist/NAME.wasm`.
pub fn bundled_policy(name: &str) -> Result<PathBuf> {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/dist").join(name).with_extension("wasm");
    if !file.is_file() {
        bail!("{} is missing: run `cargo xtask plugins` first", file.display());
    }
    Ok(file)
}

/// `sha256:...` of a file's bytes, as audit records write it.
pub fn digest(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(digest_of(&bytes))
}

/// `sha256:...` of bytes.
pub fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
