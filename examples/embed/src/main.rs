//! A shim that embeds the router: it reports an OOM kill and the exit of a container, and receives
//! the status for its reply to Wait.
//!
//! Run it with `cargo run --release --bin embed`. Its files are in the folder that the first
//! argument names, or else in a new one in the system's folder for temporary files.

use std::error::Error;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use coroner::{Exit, OomKill, Router};

/// A policy that comes with Coroner: another exit status than the real one, by a table.
const POLICY: &[u8] = include_bytes!("../../../plugins/dist/exit-code-map.wasm");
/// Its table. An exit after an OOM kill gets a status of its own.
const TABLE: &str = "[[config.map]]\nfrom = 137\nto = 247\nwhen = \"oom\"\n";
/// The container of this example.
const CONTAINER: &str = "web-1";
/// 128 + SIGKILL.
const KILLED: u32 = 137;
/// How long a reply to Wait may be held, and how long the shutdown may take.
const DEADLINE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    // The router starts this program again to compile policies, each in a process of its own.
    if let Some(code) = coroner::compile_process() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the output of a program that is read beside its source")]
async fn run() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map_or_else(new_folder, PathBuf::from);
    let policies = folder.join("policies.d");
    // A policy is refused if other users could write it.
    DirBuilder::new().recursive(true).mode(0o700).create(&policies)?;
    fs::write(policies.join("90-exit-code-map.wasm"), POLICY)?;
    fs::write(policies.join("90-exit-code-map.toml"), TABLE)?;
    let audit = folder.join("audit.jsonl");

    // The first start compiles the policies, which takes seconds; later ones use the cache.
    let router = Router::builder()
        .config(config(&policies, &audit))
        .directory(folder.join("router"))
        .name("my-shim")
        .start()?;
    let status = router.status().await?;
    let chain: Vec<&str> = status.listing.chain.iter().map(|it| it.policy.as_str()).collect();
    println!("policies       {}", chain.join(", "));

    // In the shim's Create, with the OCI bundle that it was given, and the pid of init.
    router.created(CONTAINER, "/run/my-shim/web-1", None).await?;
    // When the guest's or the runtime's counter of OOM kills rises.
    router.oom_kill(OomKill::new(CONTAINER).total(1)).await?;
    // When init has ended: hold the reply to Wait until the ruling. Without one in time, reply with
    // the real status (fail open).
    let exit = router.exit(Exit::new(CONTAINER, KILLED).pid(4711));
    let ruled = match tokio::time::timeout(DEADLINE, exit).await {
        Ok(Ok(status)) => status,
        Ok(Err(_)) | Err(_) => KILLED,
    };
    println!("real status    {KILLED}");
    println!("ruled status   {ruled}");
    // In the shim's Delete.
    router.deleted(CONTAINER).await?;

    router.shutdown(DEADLINE).await?;
    println!("audit records  {}", audit.display());
    Ok(())
}

/// The text of a `coroner.toml`: a directory of policies, and one sink, the audit log.
fn config(policies: &Path, audit: &Path) -> String {
    format!(
        r#"
        [policies]
        directory = "{}"
        [[sink]]
        name = "audit"
        type = "jsonl"
        path = "{}"
        "#,
        policies.display(),
        audit.display()
    )
}

fn new_folder() -> PathBuf {
    std::env::temp_dir().join(format!("coroner-embed-{}", std::process::id()))
}
