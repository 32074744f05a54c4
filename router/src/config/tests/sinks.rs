//! Sinks and routes as they are written, and every mistake in them.

use super::*;

const SINKS: &str = r#"
    [[sink]]
    name = "pager"
    type = "webhook"
    url = "https://example.com/x"
    [[sink]]
    name = "mine"
    type = "unix"
    path = "/run/mine.sock"
    deadline = "1s"
    [[sink]]
    name = "audit"
    type = "jsonl"
    path = "/a"
    [[sink]]
    name = "reports"
    type = "jsonl"
    path = "/b"
    rotate_size = "64KiB"
    [[route]]
    topics = ["/tasks/oom", "oom-*"]
    sinks = ["pager", "mine", "reports"]
"#;

#[test]
fn sinks_have_defaults_and_a_file_that_no_route_names_gets_the_audit() {
    let config = Config::parse(&format!("{GOOD}{SINKS}")).unwrap();
    let routes: Vec<_> = config.routes.iter().map(|it| (it.sinks.join(" "), it.is_for(AUDIT))).collect();
    assert_eq!(routes, [("pager mine reports".to_owned(), false), ("audit".to_owned(), true)]);
    let [_, pager, mine, _, reports] = &config.sinks[..] else { panic!("{:?}", config.sinks) };
    let queue = &pager.queue;
    assert_eq!((queue.documents, queue.batch, queue.overflow), (8192, 256, Overflow::DropNewest));
    assert_eq!((queue.deadline, &queue.dead_letter), (Duration::from_secs(300), &None));
    assert_eq!(mine.queue.deadline, Duration::from_secs(1));
    let SinkKind::Webhook(webhook) = &pager.kind else { panic!("{pager:?}") };
    assert_eq!((webhook.batched, webhook.timeout), (false, Duration::from_secs(5)));
    let SinkKind::Jsonl(file) = &reports.kind else { panic!("{reports:?}") };
    assert_eq!((file.rotate_size, file.rotate_keep, file.fsync), (Some(65536), 5, false));
}

#[test]
fn every_mistake_in_a_sink_is_reported_with_its_key() {
    let sinks = r#"
        [[sink]]
        name = "containerd"
        type = "containerd"
        queue = 7
        path = "/x"
        [[sink]]
        name = "a"
        type = "jsonl"
        path = "-"
        url = "http://x"
        rotate_size = "1MiB"
        fsync = "batch"
        overflow = "block"
        queue = 0
        batch = 2000000
        deadline = "soon"
        dead_letter = "x"
        [[sink]]
        name = "b"
        type = "webhook"
        url = "http://x"
        format = "binary"
        ca_file = "/ca"
        client_key_file = "/key"
        hmac_secret_file = "secret"
        [[sink]]
        name = "c"
        type = "unix"
        rotate_keep = 3
        paht = "/x"
        [[sink]]
        name = "d"
        type = "jsonl"
        path = "/x"
        rotate_keep = 3
        fsync = true
        [[sink]]
        name = "e"
        type = "pigeon"
        queue = "many"
    "#;
    let text = GOOD.replace("[[sink]]\n    name = \"containerd\"\n    type = \"containerd\"", sinks);
    check(
        &text,
        &[
            ("sink[0].path", "not a key of type \"containerd\""),
            ("sink[0].queue", "not a key of type \"containerd\""),
            ("sink[1].queue", "above 0"),
            ("sink[1].overflow", "\"drop-newest\", \"drop-oldest\""),
            ("sink[1].batch", "is over"),
            ("sink[1].deadline", "\"20ms\""),
            ("sink[1].dead_letter", "absolute"),
            ("sink[1].rotate_size", "standard output"),
            ("sink[1].fsync", "standard output"),
            ("sink[1].url", "not a key of type \"jsonl\""),
            ("sink[2].ca_file", "is for https"),
            ("sink[2].client_key_file", "is for https"),
            ("sink[2].format", "\"structured\", \"batch\""),
            ("sink[2].client_certificate_file", "is missing"),
            ("sink[2].hmac_secret_file", "absolute"),
            ("sink[3].path", "is missing"),
            ("sink[3].paht", "is not a key"),
            ("sink[3].rotate_keep", "not a key of type \"unix\""),
            ("sink[4].fsync", "not a string"),
            ("sink[4].rotate_keep", "without rotate_size"),
            ("sink[5].type", "\"webhook\""),
            ("sink[5].queue", "above 0"),
        ],
    );
}

#[test]
fn every_mistake_in_a_route_is_reported_with_its_key() {
    let routes = r#"
        [[route]]
        topics = "audit"
        kinds = ["oom-kill", "exit"]
        namespaces = ["a*b"]
        sinks = []
        topic = ["x"]
        [[route]]
    "#;
    check(
        &format!("{GOOD}{SINKS}{routes}"),
        &[
            ("route[1].topics", "not a list"),
            ("route[1].kinds", "`exit` is not one of oom-kill, exited"),
            ("route[1].namespaces", "`a*b`"),
            ("route[1].sinks", "empty"),
            ("route[1].topic", "is not a key"),
            ("route[2].topics", "is missing"),
            ("route[2].sinks", "is missing"),
        ],
    );
    let wrong = SINKS.replace("[\"pager\", \"mine\",", "[\"containerd\", \"pagr\",");
    check(
        &format!("{GOOD}{wrong}"),
        &[("route[0].sinks", "no route leads there"), ("route[0].sinks", "no sink is named `pagr`")],
    );
    let unnamed = SINKS.replace("\"pager\", \"mine\", ", "");
    check(
        &format!("{GOOD}{unnamed}"),
        &[("sink[1]", "no [[route]] names `pager`"), ("sink[2]", "no [[route]] names `mine`")],
    );
}
