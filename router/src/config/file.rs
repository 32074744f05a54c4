//! The file as a whole: its sections, and what can only be seen across them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::defaults::Defaults;
use super::{Config, Containerd, Mode, SinkKind, Source, policies, route_keys, sink_keys, source_keys};
use coroner_core::table::{Mistakes, Table, socket};
use coroner_journal::JournalSettings;

const JOURNAL_SIZE: u64 = 64 << 20;
const LEAST_JOURNAL: u64 = 16 << 20;
/// Bytes of a node's name.
const LONGEST_NODE: usize = 253;
/// containerd's own limit for namespaces: containerd refuses others, and a refused one would block
/// the lifecycle queue for good.
pub(super) const LONGEST_NAMESPACE: usize = 76;

/// Reads the file. With mistakes, the result is not the whole of it.
pub(super) fn read(values: toml::Table, defaults: &Defaults, mistakes: &Mistakes) -> Config {
    let mut file = Table::new("", values, mistakes);
    let node = file.text("node").unwrap_or_else(host_name);
    if !is_word(&node, LONGEST_NODE) {
        file.wrong("node", "is not 1 to 253 characters of a-z A-Z 0-9 . _ -; set it to the node's name");
    }
    let policies = policies::read(file.table("policies"), &defaults.cache);
    let mut table = file.table("control");
    let control = table.socket("socket").unwrap_or_else(|| defaults.control.clone());
    table.end();
    let mut table = file.table("metrics");
    let metrics = table.parsed("address", str::parse);
    table.end();
    let containerd = if file.has("containerd") { containerd(file.table("containerd")) } else { None };
    let sources: Vec<_> = file.tables("source").into_iter().map(source_keys::trusted).collect();
    let guests: Vec<_> = file.tables("guest").into_iter().map(source_keys::guest).collect();
    addresses(&[("source", &sources), ("guest", &guests)], mistakes);
    // The section states that guests are added while the router runs: the file may do without
    // sources. An embedding shim is a source itself.
    let guests_are_added = file.has("guests") || defaults.is_embedded;
    let mut table = file.table("guests");
    let guests_directory = table.path("directory").unwrap_or_else(|| defaults.guests.clone());
    table.end();
    let journal = journal(file.table("journal"), &defaults.journal);
    let sinks: Vec<_> = file.tables("sink").into_iter().map(sink_keys::read).collect();
    let routes: Vec<_> = file.tables("route").into_iter().map(route_keys::read).collect();
    file.end();
    let config = Config {
        node,
        policies,
        control: Some(control),
        metrics,
        containerd,
        sources: sources.into_iter().flatten().collect(),
        guests: guests.into_iter().flatten().collect(),
        guests_directory,
        journal: Some(journal),
        sinks: sinks.iter().flatten().cloned().collect(),
        routes: routes.iter().flatten().cloned().collect(),
    };
    // Mistakes in a section with refused entries are reported already; its routes are not known.
    let all_sinks = sinks.iter().all(Option::is_some);
    whole(&config, all_sinks, guests_are_added, mistakes);
    if mistakes.count() == 0 {
        topics(&config, guests_are_added, mistakes);
    }
    if all_sinks && routes.iter().all(Option::is_some) {
        let routes = route_keys::link(config.routes, &config.sinks, mistakes);
        return Config { routes, ..config };
    }
    config
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Whether a text is such a name.
pub(super) fn is_word(text: &str, longest: usize) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=longest).contains(&text.len()) && text.bytes().all(fits)
}

fn journal(mut table: Table<'_>, default: &Path) -> JournalSettings {
    let directory = table.path("directory").unwrap_or_else(|| default.to_owned());
    let size = table.size("size").unwrap_or(JOURNAL_SIZE);
    if size < LEAST_JOURNAL {
        table.wrong("size", "is below 16MiB: two files of it must fit");
    }
    table.end();
    JournalSettings { directory, size }
}

fn containerd(mut table: Table<'_>) -> Option<Containerd> {
    let address = table.socket("address");
    let ttrpc = table.socket("ttrpc_address").or_else(|| {
        let path = format!("{}.ttrpc", address.as_ref()?.display());
        // Named by default: a mistake in it is one of the address.
        table.checked("address", socket(PathBuf::from(path)))
    });
    let namespace = table.text("namespace").unwrap_or_else(|| "k8s.io".to_owned());
    if !is_word(&namespace, LONGEST_NAMESPACE) {
        table.wrong("namespace", "is not a containerd namespace: 1 to 76 characters of a-z A-Z 0-9 . _ -");
    }
    let address = table.required(
        "address",
        address,
        "containerd's socket, such as \"/run/containerd/containerd.sock\"",
    );
    table.end();
    Some(Containerd { address: Some(address?), ttrpc_address: ttrpc?, namespace })
}

/// Two sources at one address: the agent would acknowledge each signal to one of them only.
fn addresses(lists: &[(&str, &[Option<Source>])], mistakes: &Mistakes) {
    let mut seen: Vec<&Source> = Vec::new();
    for (key, sources) in lists {
        for (at, source) in sources.iter().enumerate() {
            let Some(source) = source else { continue };
            match seen.iter().find(|it| it.address == source.address) {
                Some(other) => mistakes.add(
                    &format!("{key}[{at}].address"),
                    format_args!("{} is the address of `{}` too", source.address, other.name),
                ),
                None => seen.push(source),
            }
        }
    }
}

/// What can only be seen across sections.
fn whole(config: &Config, all_sinks: bool, guests_are_added: bool, mistakes: &Mistakes) {
    if all_sinks {
        publisher(config, mistakes);
    }
    if mistakes.count() == 0 {
        if config.sources.is_empty() && config.guests.is_empty() && !guests_are_added {
            mistakes.missing("source", "at least one [[source]] or [[guest]]: where signals come from");
        }
        if config.sinks.is_empty() {
            mistakes.missing("sink", "at least one [[sink]]: where rulings go");
        }
    }
    unique("source", config.sources.iter().chain(&config.guests).map(|it| &it.name), mistakes);
    unique("sink", config.sinks.iter().map(|it| &it.name), mistakes);
    if config.sinks.iter().filter(|it| it.kind.is_lifecycle()).count() > 1 {
        let message = "more than one of type \"containerd\" or \"oom-file\": one of them is this node's";
        mistakes.add("sink", message);
    }
    let publishes = config.sinks.iter().any(|it| matches!(it.kind, SinkKind::Containerd));
    if publishes && config.containerd.is_none() {
        let what = "a sink of type \"containerd\" needs to know where containerd is";
        mistakes.missing("containerd.address", what);
    }
}

/// Topics of the router that no source of this file publishes.
fn topics(config: &Config, guests_are_added: bool, mistakes: &Mistakes) {
    let mut sources = config.sources.iter().chain(&config.guests);
    let exits = guests_are_added || sources.any(|it| it.mode != Mode::Beside);
    for (at, route) in config.routes.iter().enumerate() {
        for topic in route.topics.iter().filter(|it| it.is_of_router() && !it.matches("/tasks/oom")) {
            let message = match topic.matches("/tasks/exit") {
                true if exits => continue,
                true => {
                    format!("nothing publishes `{topic}`: in mode \"beside\" the shim alone publishes exits")
                }
                false => {
                    format!("nothing publishes `{topic}`: the router's topics are /tasks/oom and /tasks/exit")
                }
            };
            mistakes.add(&format!("route[{at}].topics"), message);
        }
    }
}

fn unique<'a>(key: &str, names: impl Iterator<Item = &'a String>, mistakes: &Mistakes) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            mistakes.add(key, format_args!("two are named `{name}`"));
        }
    }
}

/// The events of wrapped shims reach the router instead of containerd. Without a lifecycle sink the
/// router drops them: containerd never learns that a pod's container was created, ended or deleted.
fn publisher(config: &Config, mistakes: &Mistakes) {
    if config.sinks.iter().any(|it| it.kind.is_lifecycle()) {
        return;
    }
    for source in &config.sources {
        let mode = match source.mode {
            Mode::Wrapped => "wrapped",
            Mode::Proxy => "proxy",
            // The shim publishes its own events; or the router serves a runtime that has no
            // containerd.
            Mode::Beside | Mode::Sole => continue,
        };
        let message = format!(
            "source `{}` of mode \"{mode}\" needs a sink of type \"containerd\", or of type \"oom-file\" on CRI-O: without it \
             create, exit and delete of its containers are lost. Add [[sink]] with name = \"containerd\" and \
             type = \"containerd\"",
            source.name
        );
        mistakes.add("sink", message);
    }
}
