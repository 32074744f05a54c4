//! docs/start/policy-authors.md, followed to the letter: from an empty folder to a policy that
//! rules.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use coroner_tests::page::Page;
use coroner_tests::router::Router;

/// A router that waits for an agent: the page needs only its policies.
const ROUTER: &str = r#"
node = "n"
[policies]
directory = "@DIR@/policies"
cache = "@DIR@/cache"
[control]
socket = "@DIR@/control.sock"
[[source]]
name = "node"
type = "agent"
address = "unix://@DIR@/agent.sock"
mode = "beside"
[[sink]]
name = "audit"
type = "jsonl"
path = "@DIR@/audit.jsonl"
"#;

#[tokio::test]
async fn docs_policy_authors_md_is_what_happens() {
    let mut page = Page::open("start/policy-authors.md").unwrap();
    let mut router = Router::start(ROUTER).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap();
    let files = page.files();
    assert_eq!(files.len(), 2);
    for (name, content) in files {
        let path = folder.path().join(&name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if name.ends_with(".rs") {
            let policy = content.split("#[test]").next().unwrap();
            assert!(policy.trim_end().lines().count() < 40, "the whole policy");
        }
        let content = content.replace("/usr/src/coroner", root.to_str().unwrap());
        fs::write(path, content).unwrap();
    }
    // The same versions as here, from the same registry: what was published this morning does not
    // matter to this test.
    fs::copy(root.join("Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
    for command in page.commands() {
        if command == "coroner policy list" {
            let there = |it: &serde_json::Value| it["chain"].to_string().contains("50-exit-code-42");
            router.wait_listed("the policy", there).await.unwrap();
        }
        let output = run(&command, folder.path(), &router);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        page.produce(&command, &output);
    }
    page.finish().unwrap();
    router.stop().await.unwrap();
}

/// Runs it as in a shell on Debian: what the page lists under "On Debian" is the environment.
fn run(command: &str, folder: &Path, router: &Router) -> Output {
    let policies = router.policies();
    let command = command.replace("/etc/coroner/policies.d", policies.to_str().unwrap());
    let binaries = router.binary().parent().unwrap().to_str().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).current_dir(folder).env("CORONER_SOCKET", router.path("control.sock"));
    for (key, _) in std::env::vars_os() {
        // Set by the cargo that runs this test, for itself.
        if key.to_string_lossy().starts_with("CARGO_") && key != "CARGO_HOME" {
            shell.env_remove(key);
        }
    }
    shell
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTFLAGS")
        .env("PATH", format!("{binaries}:/usr/bin:{}", std::env::var("PATH").unwrap()))
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTDOC", "/usr/bin/rustdoc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_UNSTABLE_BUILD_STD", "std,panic_abort")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", "wasm-ld")
        .output()
        .unwrap()
}
