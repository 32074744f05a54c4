//! Walls between packages, read from `cargo metadata`: which package may depend on which, and which
//! one may name an outside dependency.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// The packages of the router and of the agent, from the core outwards. A package may depend on
/// packages of the layers before its own, never on one of its own layer.
const LAYERS: &[&[&str]] = &[
    &["coroner-cgroup", "coroner-core", "coroner-proto", "coroner-shim-config"],
    &["coroner-transport"],
    &["containerd-shim-coroner-v2", "coroner-agent", "coroner-containerd", "coroner-journal"],
    &["coroner-policy", "coroner-sinks", "coroner-sources"],
    &["coroner"],
    &["coroner-cli"],
];

/// Outside dependencies, and the packages that may name them.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("arc-swap", &["coroner-policy", "coroner-sources"]),
    ("clap", &["coroner-cli"]),
    ("notify", &["coroner-policy"]),
    ("prost", &["coroner-containerd"]),
    ("ring", &["coroner-sinks"]),
    ("rustls", &["coroner-sinks"]),
    ("rustls-native-certs", &["coroner-sinks"]),
    ("tokio-rustls", &["coroner-sinks"]),
    ("tonic", &["coroner-containerd"]),
    ("tonic-prost", &["coroner-containerd"]),
    ("wasmparser", &["coroner-policy"]),
    ("wasmtime", &["coroner-policy"]),
    ("wasmtime-wasi", &["coroner-policy"]),
    ("wit-component", &["coroner-cli"]),
];

/// The core is pure: without a runtime, I/O or a clock. Everything that it may depend on. `toml` is
/// there for the values of a table that was read elsewhere.
const CORE: &[&str] = &["humantime", "serde", "serde_json", "thiserror", "toml"];

/// What a shim that embeds the router depends on: `coroner`, and a runtime.
const EMBED: &[&str] = &["coroner", "tokio"];

/// Packages of the command line, which the library must not link. wasmtime's macros run a
/// `wit-component` at build time.
const OF_COMMAND_LINE: &[&str] = &["clap", "listenfd", "sd-notify", "tracing-subscriber", "wit-component"];

/// Every package below `router/` and `guest-agent/`, with its dependencies outside of tests.
fn packages() -> BTreeMap<String, Vec<String>> {
    packages_of(&metadata(&["--no-deps"]))
}

fn metadata(arguments: &[&str]) -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline"])
        .args(arguments)
        .current_dir(super::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages_of(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let root = metadata["workspace_root"].as_str().unwrap();
    let mut found = BTreeMap::new();
    for package in metadata["packages"].as_array().unwrap() {
        let manifest = text(&package["manifest_path"]);
        let folder = manifest.strip_prefix(root).unwrap();
        if ["/router/", "/guest-agent/"].iter().any(|it| folder.starts_with(it)) {
            found.insert(text(&package["name"]), dependencies(package));
        }
    }
    found
}

/// What a package depends on outside of tests and build scripts.
fn dependencies(package: &Value) -> Vec<String> {
    let all = package["dependencies"].as_array().unwrap().iter();
    all.filter(|it| it["kind"].is_null()).map(|it| text(&it["name"])).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// Names of the packages that a program links, itself included: no macros, no build scripts.
fn linked(metadata: &Value, program: &str) -> BTreeSet<String> {
    let packages: BTreeMap<&str, &Value> =
        metadata["packages"].as_array().unwrap().iter().map(|it| (it["id"].as_str().unwrap(), it)).collect();
    let nodes = metadata["resolve"]["nodes"].as_array().unwrap().iter();
    let nodes: BTreeMap<&str, &Value> = nodes.map(|it| (it["id"].as_str().unwrap(), &it["deps"])).collect();
    let is_macro = |id: &str| {
        let targets = packages[id]["targets"].as_array().unwrap();
        targets.iter().any(|it| it["kind"].as_array().unwrap().iter().any(|kind| kind == "proc-macro"))
    };
    let mut left: Vec<&str> =
        packages.iter().filter(|(_, it)| it["name"] == program).map(|(id, _)| *id).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = left.pop() {
        if is_macro(id) || !found.insert(id) {
            continue;
        }
        for dependency in nodes[id].as_array().unwrap() {
            if dependency["dep_kinds"].as_array().unwrap().iter().any(|it| it["kind"].is_null()) {
                left.push(dependency["pkg"].as_str().unwrap());
            }
        }
    }
    found.into_iter().map(|id| text(&packages[id]["name"])).collect()
}

/// Every dependency that crosses a wall, as a sentence.
fn violations(packages: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    let mut found = Vec::new();
    for (package, dependencies) in packages {
        let Some(own) = layer(package) else {
            found.push(format!("{package} has no layer"));
            continue;
        };
        for dependency in dependencies {
            if packages.contains_key(dependency) && layer(dependency).is_none_or(|it| it >= own) {
                found.push(format!("{package} depends on {dependency}, which is not below it"));
            }
            let outside = OUTSIDE.iter().find(|(name, _)| name == dependency);
            if outside.is_some_and(|(_, allowed)| !allowed.contains(&package.as_str())) {
                found.push(format!("{package} names {dependency}"));
            }
            if package == "coroner-core" && !CORE.contains(&dependency.as_str()) {
                found.push(format!("the core depends on {dependency}"));
            }
        }
    }
    found
}

#[test]
fn dependency_points_to_a_lower_layer() {
    let packages = packages();
    assert!(packages.len() > 10, "{packages:?}");
    assert_eq!(violations(&packages), [""; 0]);
}

#[test]
fn wall_crossed_is_found() {
    let crossed = |package: &str, dependency: &str| {
        let mut packages = packages();
        packages.entry(package.to_owned()).or_default().push(dependency.to_owned());
        violations(&packages)
    };
    for (package, dependency) in [
        ("coroner-core", "tokio"),
        ("coroner-core", "coroner-proto"),
        ("coroner-journal", "coroner-sinks"),
        ("coroner-sinks", "coroner-sources"),
        ("coroner-policy", "coroner"),
        ("coroner-sources", "wasmtime"),
        ("coroner", "tonic"),
        ("coroner", "clap"),
        ("coroner-new", "serde"),
    ] {
        assert!(!crossed(package, dependency).is_empty(), "{package} -> {dependency}");
    }
}

#[test]
fn embedding_shim_depends_on_the_library_alone() {
    let metadata = metadata(&["--no-deps"]);
    let packages = metadata["packages"].as_array().unwrap();
    let embed = packages.iter().find(|it| it["name"] == "embed").unwrap();
    assert_eq!(dependencies(embed), EMBED);
}

#[test]
fn library_links_no_package_of_the_command_line() {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let metadata = metadata(&["--filter-platform", &platform]);
    let (embed, command) = (linked(&metadata, "embed"), linked(&metadata, "coroner-cli"));
    println!("linked packages: embed {}, coroner {}", embed.len(), command.len());
    assert!(embed.contains("coroner-policy") && embed.contains("wasmtime"), "{embed:?}");
    for package in OF_COMMAND_LINE {
        assert!(command.contains(*package), "coroner does not link {package}: take it off the list");
        assert!(!embed.contains(*package), "the library links {package}");
    }
}
