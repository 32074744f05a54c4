//! Imports point one way, as docs/architecture.md says, and the examples are what the code takes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails, in its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every source file of the router's library by its path below `router/src`, its comments left out.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|it| it == "rs") {
                found.push(path);
            }
        }
    }
    let source = root().join("router/src");
    let mut found = Vec::new();
    walk(&source, &mut found);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        (path.strip_prefix(&source).unwrap().display().to_string(), code.join("\n"))
    };
    let files: Vec<_> = found.into_iter().map(read).collect();
    assert!(files.len() > 20, "the walk found the router");
    files
}

/// From the core outwards: a module may import those of its own level's left, never its own level or beyond.
const LEVELS: [&[&str]; 10] = [
    &["signal"],
    &["ruling", "case", "config"],
    &["audit", "identity", "counts", "shares", "holds"],
    &["journal"],
    &["arrival", "tap"],
    &["claims", "sink", "policy"],
    &["intake", "source"],
    &["guests", "worker", "delivery", "metrics"],
    &["control"],
    &["run"],
];

fn level(module: &str) -> usize {
    LEVELS.iter().position(|level| level.contains(&module)).unwrap_or(LEVELS.len())
}

#[test]
fn imports_point_one_way() {
    // Within the core the words know each other: a case holds rulings, a mode says what can be known. Delivery takes what
    // workers give; configuration knows the default limits of policies.
    let known = [
        ("ruling", "case"),
        ("case", "ruling"),
        ("config", "case"),
        ("config", "policy"),
        ("delivery", "worker"),
    ];
    for (file, code) in sources() {
        let module = file.split(['/', '.']).next().unwrap();
        if [
            "main",
            "cli",
            "check",
            "doctor",
            "serve",
            "demo",
            "lib",
            "policy_check",
            "policy_wrap",
            "asking",
            "explain",
            "service",
            "telling",
        ]
        .contains(&module)
        {
            continue;
        }
        assert!(level(module) < LEVELS.len(), "{file} has no level");
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let import = rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
            let allowed =
                import == module || level(import) < level(module) || known.contains(&(module, import));
            assert!(allowed, "{file} imports crate::{import}");
        }
    }
}

#[test]
fn outside_worlds_stay_at_their_edge() {
    let edges: [(&str, &[&str]); 9] = [
        ("wasmtime::", &["policy/"]),
        ("ttrpc::", &["source/", "sink/containerd/", "control.rs", "asking/", "demo/", "doctor/hello.rs"]),
        ("containerd_shim_protos::", &["sink/containerd/", "source/shim/", "demo/stand_in.rs"]),
        ("tonic::", &["identity.rs"]),
        ("hyper::", &["metrics.rs", "sink/webhook/"]),
        ("rustls::", &["sink/webhook/tls.rs"]),
        ("tokio_rustls::", &["sink/webhook/tls.rs"]),
        ("rustls_native_certs::", &["sink/webhook/tls.rs"]),
        ("use ring::", &["sink/webhook/credentials.rs"]),
    ];
    for (file, code) in sources() {
        for (world, at) in edges {
            if code.contains(world) {
                assert!(at.iter().any(|edge| file.starts_with(edge)), "{file} names {world}");
            }
        }
    }
}

#[test]
fn the_example_configuration_is_good() {
    let text = fs::read_to_string(root().join("examples/coroner.toml")).unwrap();
    let config = coroner::config::Config::parse(&text).unwrap();
    assert_eq!((config.sources.len(), config.sinks.len()), (1, 2));
}

#[test]
fn the_example_with_sinks_is_good() {
    let text = fs::read_to_string(root().join("examples/sinks.toml")).unwrap();
    let config = coroner::config::Config::parse(&text).unwrap();
    assert_eq!((config.sinks.len(), config.routes.len()), (4, 3), "the audit's route is its own");
}

#[test]
fn the_example_for_crio_is_good() {
    let text = fs::read_to_string(root().join("examples/crio.toml")).unwrap();
    let config = coroner::config::Config::parse(&text).unwrap();
    assert_eq!((config.containerd.is_none(), config.sinks[0].kind.is_lifecycle()), (true, true));
}

#[test]
fn the_page_on_sinks_shows_good_sinks() {
    let page = fs::read_to_string(root().join("docs/sinks.md")).unwrap();
    let block = |it: &str| it.split("```").next().unwrap().to_owned();
    let shown: Vec<String> = page.split("```toml\n").skip(1).map(block).collect();
    let text = format!("[guests]\n{}", shown.concat());
    let config = coroner::config::Config::parse(&text).unwrap();
    assert_eq!((shown.len(), config.sinks.len()), (4, 4));
}

#[test]
fn the_configuration_page_shows_a_good_file() {
    let page = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let block = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    coroner::config::Config::parse(block).unwrap();
}

#[test]
fn systemd_takes_the_unit_for_guest_images() {
    let image = tempfile::tempdir().unwrap();
    let (units, programs) = (image.path().join("etc/systemd/system"), image.path().join("usr/sbin"));
    fs::create_dir_all(&units).unwrap();
    fs::create_dir_all(&programs).unwrap();
    let unit = "coroner-agent.service";
    fs::copy(root().join("examples/deploy/guest").join(unit), units.join(unit)).unwrap();
    fs::copy("/bin/true", programs.join("coroner-agent")).unwrap();
    let verify = std::process::Command::new("systemd-analyze")
        .args(["verify", "--root"])
        .arg(image.path())
        .arg(unit)
        .output()
        .expect("systemd-analyze, of the package systemd");
    // What it does not know it only warns of.
    assert!(verify.status.success() && verify.stderr.is_empty(), "{verify:?}");
}
