//! The file as a whole, its sources and guests, and every mistake in them.

use std::time::Duration;

use super::*;

mod sinks;

const GOOD: &str = r#"
    [containerd]
    address = "/run/containerd/containerd.sock"
    [[source]]
    name = "node"
    type = "agent"
    address = "unix:///run/coroner/agent.sock"
    mode = "beside"
    [[sink]]
    name = "containerd"
    type = "containerd"
"#;

fn check(text: &str, expect: &[(&str, &str)]) {
    let mistakes = Config::parse(text).err().unwrap_or_default();
    let found: Vec<_> = mistakes.iter().map(|it| (it.key.as_str(), it.message.as_str())).collect();
    assert_eq!(found.len(), expect.len(), "{found:?}");
    for ((key, message), (expect_key, expect_message)) in found.iter().zip(expect) {
        assert_eq!(key, expect_key, "{found:?}");
        assert!(message.contains(expect_message), "{message} lacks {expect_message}");
    }
}

#[test]
fn a_good_file_has_defaults() {
    let config = Config::parse(GOOD).unwrap();
    let containerd = config.containerd.unwrap();
    assert_eq!(containerd.ttrpc_address, Path::new("/run/containerd/containerd.sock.ttrpc"));
    assert_eq!(containerd.namespace, "k8s.io");
    assert_eq!((config.policies.limits.fuel, config.policies.limits.memory), (10_000_000, 16 << 20));
    assert!(!config.node.is_empty());
}

#[test]
fn every_mistake_is_reported_with_its_key() {
    check(
        r#"
        node = "a b"
        nod = 1
        [policies]
        directory = "policies.d"
        fuel = 0
        memory = "16"
        wasm = true
        call = "soon"
        [policies.compile]
        tim = "1s"
        [policies.quarantine]
        shortest = "2s"
        longest = "1s"
        [control]
        sock = "/x"
        [metrics]
        address = "http://10.0.0.1:80"
        [containerd]
        address = 7
        [[source]]
        name = "Node"
        type = "kato"
        mode = "besides"
        address = "tcp://1.2.3.4:5"
        adress = "x"
        [[guest]]
        name = "vm"
        type = "agent"
        mode = "sole"
        address = "hvsock:///run/vm.sock"
        containers = ["a b", 7]
        monitor_pid = 0
        lost_after = "soon"
        cid = 3
        [[sink]]
        name = "audit"
        type = "jsonl"
        "#,
        &[
            ("node", "1 to 253"),
            ("policies.directory", "absolute"),
            ("policies.fuel", "above 0"),
            ("policies.memory", "\"16MiB\""),
            ("policies.call", "\"20ms\""),
            ("policies.quarantine.longest", "shorter"),
            ("policies.compile.tim", "is not a key"),
            ("policies.wasm", "is not a key"),
            ("control.sock", "is not a key"),
            ("metrics.address", "this machine alone"),
            ("containerd.address", "not a string"),
            ("source[0].name", "a-z"),
            ("source[0].type", "\"agent\""),
            ("source[0].mode", "\"beside\", \"sole\""),
            ("source[0].address", "tcp"),
            ("source[0].adress", "is not a key"),
            ("guest[0].address", "hvsock:///path:PORT"),
            ("guest[0].containers", "not a string"),
            ("guest[0].containers", "`a b`"),
            ("guest[0].monitor_pid", "above 0"),
            ("guest[0].lost_after", "\"20ms\""),
            ("guest[0].cid", "is not a key"),
            ("sink[0].path", "is missing"),
            ("nod", "is not a key"),
        ],
    );
}

#[test]
fn what_is_missing_is_named() {
    check("", &[("source", "is missing"), ("sink", "is missing")]);
    check(
        "[[source]]\n[[sink]]",
        &[
            ("source[0].name", "is missing"),
            ("source[0].type", "is missing"),
            ("source[0].mode", "is missing"),
            ("source[0].address", "is missing"),
            ("sink[0].name", "is missing"),
            ("sink[0].type", "is missing"),
        ],
    );
    check(
        &GOOD.replace("[containerd]\n", "").replace("address = \"/run/containerd/containerd.sock\"\n", ""),
        &[("containerd.address", "needs to know")],
    );
}

#[test]
fn names_are_unique_and_one_sink_publishes() {
    check(
        &format!("{GOOD}\n[[sink]]\nname = \"containerd\"\ntype = \"containerd\""),
        &[("sink", "two are named"), ("sink", "one of them is this node's")],
    );
    check(
        &format!("{GOOD}\n[[sink]]\nname = \"crio\"\ntype = \"oom-file\"\nqueue = 1"),
        &[("sink[1].queue", "is not a key of type \"oom-file\""), ("sink", "one of them is this node's")],
    );
    let crio = GOOD.replace("type = \"containerd\"", "type = \"oom-file\"");
    check(
        &format!("{crio}\n[[route]]\ntopics = [\"x\"]\nsinks = [\"containerd\"]"),
        &[("route[0].sinks", "is of type \"oom-file\": no route leads there")],
    );
}

#[test]
fn wrapped_source_without_lifecycle_sink_is_refused() {
    let file = |kind: &str, mode: &str, sink: &str| {
        let source = GOOD.replace("type = \"agent\"", &format!("type = \"{kind}\""));
        let source = source.replace("\"beside\"", &format!("\"{mode}\""));
        source.replace("type = \"containerd\"", &format!("type = {sink}"))
    };
    let (audit, unread) = ("\"jsonl\"\npath = \"/a\"", "\"containerdd\"");
    for (kind, mode, sink, expect) in [
        ("shim", "wrapped", audit, &[("sink", "`node` of mode \"wrapped\" needs a sink of type")] as &[_]),
        ("shim", "proxy", audit, &[("sink", "`node` of mode \"proxy\" needs a sink of type")]),
        ("shim", "proxy", "\"containerd\"", &[]),
        ("shim", "wrapped", "\"oom-file\"", &[]),
        ("agent", "beside", audit, &[]),
        ("agent", "sole", audit, &[]),
        // The sink that cannot be read may be the one.
        ("shim", "proxy", unread, &[("sink[0].type", "is not one of")]),
    ] {
        check(&file(kind, mode, sink), expect);
    }
    let two = format!(
        "{}\n{}",
        file("shim", "wrapped", audit),
        "[[source]]\nname = \"two\"\ntype = \"shim\"\nmode = \"proxy\"\naddress = \"unix:///two\""
    );
    check(&two, &[("sink", "`node`"), ("sink", "`two`")]);
}

#[test]
fn a_guest_that_is_added_is_checked_as_one_of_the_file() {
    let json = r#"{"name": "vm", "type": "agent", "mode": "sole", "address": "vsock://3:1030", "containers": ["c1"], "monitor_pid": 7}"#;
    let guest = Config::guest(json).unwrap();
    let machine = guest.machine.unwrap();
    assert_eq!((guest.guest.as_deref(), machine.monitor_pid), (Some("vm"), Some(7)));
    assert_eq!(machine.lost_after, Duration::from_secs(10));
    assert_eq!(machine.containers.unwrap().len(), 1);
    for (bad, key) in
        [("{", ""), ("[]", ""), ("{}", "guest.name"), (&json.replace("mode", "mood"), "guest.mood")]
    {
        let mistakes = Config::guest(bad).unwrap_err();
        assert!(mistakes.iter().any(|it| it.key == key), "{bad}: {mistakes:?}");
    }
}

#[test]
fn malformed_toml_is_refused_with_its_line() {
    check("node = ", &[("", "line 1")]);
}

#[test]
fn section_of_another_shape_is_named() {
    check(
        "control = 3\nsource = \"x\"\nroute = [1]",
        &[("control", "is a integer, not a table"), ("source", "[[source]]"), ("route", "[[route]]")],
    );
}

#[test]
fn socket_paths_and_addresses_that_cannot_work_are_refused() {
    let long = format!("/{}", "a".repeat(107));
    let text = format!(
        r#"
        [control]
        socket = "{long}"
        [metrics]
        address = "unix://{long}"
        [containerd]
        address = "{}"
        ttrpc_address = "{long}"
        [[source]]
        name = "a"
        type = "agent"
        mode = "sole"
        address = "unix:///a.sock"
        [[source]]
        name = "b"
        type = "agent"
        mode = "sole"
        address = "vsock://-1:1030"
        [[source]]
        name = "c"
        type = "shim"
        mode = "proxy"
        address = "unix:///a.sock"
        [[guest]]
        name = "d"
        type = "agent"
        mode = "sole"
        address = "unix:///a.sock"
        [[sink]]
        name = "mine"
        type = "unix"
        path = "{long}"
        "#,
        &long[1..]
    );
    check(
        &text.replace(&format!("address = \"{}\"", &long[1..]), &format!("address = \"{}\"", &long[..100])),
        &[
            ("control.socket", "longer than the 107 bytes"),
            ("metrics.address", "longer than the 107 bytes"),
            ("containerd.ttrpc_address", "longer than the 107 bytes"),
            ("source[1].address", "is an address to listen on"),
            ("source[2].address", "unix:///a.sock is the address of `a` too"),
            ("guest[0].address", "unix:///a.sock is the address of `a` too"),
            ("sink[0].path", "longer than the 107 bytes"),
        ],
    );
    // The default of `ttrpc_address` is longer than the address.
    let address = GOOD.replace("/run/containerd/containerd.sock", &long[..104]);
    check(&address, &[("containerd.address", "longer than the 107 bytes")]);
}

#[test]
fn route_to_a_topic_without_publisher_is_refused() {
    let topics = |mode: &str, more: &str, topics: &str, expect: &[(&str, &str)]| {
        let good = GOOD.replace("\"beside\"", &format!("\"{mode}\""));
        let sink = "[[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"-\"";
        let route = format!("[[route]]\nsinks = [\"audit\"]\ntopics = [{topics}]");
        check(&format!("{good}\n{sink}\n{route}\n{more}"), expect);
    };
    let exit = ("route[0].topics", "nothing publishes `/tasks/exit`: in mode \"beside\"");
    topics("beside", "", "\"/tasks/exit\", \"/tasks/oom\"", &[exit]);
    topics("sole", "", "\"/tasks/exit\", \"/tasks/e*\"", &[]);
    topics("beside", "[guests]", "\"/tasks/exit\"", &[]);
    topics("beside", "", "\"/tasks/*\", \"*\", \"audit\", \"app-crash\"", &[]);
    topics("sole", "", "\"/tasks/oops\"", &[("route[0].topics", "nothing publishes `/tasks/oops`")]);
}

/// The keys that a router embedded by a shim of this name has mistakes in.
fn embedded(name: &str, text: &str) -> Result<Config, Vec<String>> {
    let shim = crate::source_factory::SourceFactory::embedded_source(name);
    let config = Config::embedded(text, Path::new("/run/my-shim"), &shim);
    config.map_err(|mistakes| mistakes.into_iter().map(|it| it.key).collect())
}

const JSONL: &str = "[[sink]]\nname = \"audit\"\ntype = \"jsonl\"\npath = \"-\"\n";

#[test]
fn embedded_router_needs_no_source_and_has_its_own_paths() {
    let config = embedded("my-shim", JSONL).unwrap();
    assert_eq!(config.sources.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["my-shim"]);
    let journal = config.journal.as_ref().map(|it| it.directory.as_path());
    let paths = [journal, config.control.as_deref(), config.policies.cache.as_deref()];
    let paths = paths.into_iter().flatten().chain([config.guests_directory.as_path()]);
    for path in paths {
        assert!(path.starts_with("/run/my-shim"), "{}", path.display());
    }
    assert_eq!(config.embedded_namespace(None).unwrap(), "k8s.io");
    let named = JSONL.to_owned() + "[journal]\ndirectory = \"/var/j\"\n";
    assert_eq!(embedded("my-shim", &named).unwrap().journal.unwrap().directory, Path::new("/var/j"));
}

#[test]
fn embedded_router_refuses_bad_names_and_sections() {
    let source = "[[source]]\nname = \"a\"\ntype = \"agent\"\nmode = \"sole\"\naddress = \"unix:///a\"\n";
    assert_eq!(embedded("My Shim", JSONL).unwrap_err(), ["builder.name"]);
    assert_eq!(embedded("a", &(JSONL.to_owned() + source)).unwrap_err(), ["builder.name"]);
    assert_eq!(embedded("shim", "[journals]\n").unwrap_err(), ["journals"]);
    let config = embedded("shim", JSONL).unwrap();
    let refused = config.embedded_namespace(Some("a/b".to_owned())).unwrap_err();
    assert_eq!(refused[0].key, "builder.namespace");
}
