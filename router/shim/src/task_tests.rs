//! The Task service's messages, encoded by the generated code's library and read as bytes.

use protobuf::Message as _;
use protobuf::well_known_types::empty::Empty;

use super::*;

/// A message of these fields.
pub(crate) fn message(numbers: &[(u32, u64)], bytes: &[(u32, &[u8])]) -> Vec<u8> {
    let mut message = Empty::new();
    let fields = message.mut_unknown_fields();
    for (number, value) in numbers {
        fields.add_varint(*number, *value);
    }
    for (number, value) in bytes {
        fields.add_length_delimited(*number, value.to_vec());
    }
    message.write_to_bytes().unwrap()
}

fn parse(service: &str, method: &str, payload: &[u8]) -> Option<Request> {
    request(&message(&[(4, 5_000)], &[(1, service.as_bytes()), (2, method.as_bytes()), (3, payload)]))
}

fn of(container: &str, exec: &str) -> ProcessId {
    ProcessId { container: container.into(), exec: exec.into() }
}

#[test]
fn requests_of_both_versions_parsed() {
    let payload = message(&[], &[(1, b"c1"), (2, b"e1")]);
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        for (name, method, exec) in [
            ("Create", Method::Create, ""),
            ("Exec", Method::Exec, "e1"),
            ("Start", Method::Start, "e1"),
            ("Wait", Method::Wait, "e1"),
            ("State", Method::State, "e1"),
            ("Delete", Method::Delete, "e1"),
        ] {
            assert_eq!(parse(service, name, &payload), Some(Request::Call(method, of("c1", exec))), "{name}");
        }
        let kill = message(&[(3, 15), (4, 1)], &[(1, b"c1")]);
        let expect = Request::Kill { process: of("c1", ""), signal: 15, all: true };
        assert_eq!(parse(service, "Kill", &kill), Some(expect));
        assert_eq!(parse(service, "Stats", &payload), Some(Request::Call(Method::Stats, of("c1", ""))));
        assert_eq!(parse(service, "Update", &payload), None);
    }
}

#[test]
fn request_of_other_service_only_forwarded() {
    let payload = message(&[], &[(1, b"c1")]);
    assert_eq!(parse("containerd.runtime.sandbox.v1.Sandbox", "Wait", &payload), None);
    assert_eq!(parse("containerd.task.v3.Task", "Wait", b"\x0a"), None, "malformed");
    assert_eq!(parse("containerd.task.v3.Task", "Wait", b""), None, "no id");
    let long = message(&[], &[(1, &[b'a'; 257])]);
    assert_eq!(parse("containerd.task.v3.Task", "Wait", &long), None);
    assert_eq!(parse("containerd.task.v3.Task", "Wait", &message(&[], &[(1, b"\xff")])), None);
    assert_eq!(request(b"\xff"), None);
}

/// 2020-09-13, and Go's zero time.
fn exited() -> Vec<u8> {
    message(&[(1, 1_600_000_000), (2, 123_456_789)], &[])
}

fn never() -> Vec<u8> {
    message(&[(1, (-62_135_596_800_i64).cast_unsigned())], &[])
}

#[test]
fn end_read_from_each_reply() {
    let at = Some(1_600_000_000_123_456_789);
    let end_of = |pid| Some(End { status: 137, exited_at_ns: at, pid });
    let (exited, never) = (exited(), never());
    for (method, payload, expect) in [
        (Method::Wait, message(&[(1, 137)], &[(2, &exited)]), end_of(None)),
        (Method::Wait, message(&[], &[]), Some(End { status: 0, exited_at_ns: None, pid: None })),
        (Method::Delete, message(&[(1, 42), (2, 137)], &[(3, &exited)]), end_of(Some(42))),
        (Method::Delete, message(&[(1, 42), (2, 137)], &[(3, &never)]), None),
        (Method::Delete, message(&[(1, 42)], &[]), None),
        (Method::Delete, message(&[(2, 137)], &[(3, &exited)]), None),
        (Method::State, message(&[(3, 42), (4, 3), (9, 137)], &[(10, &exited)]), end_of(Some(42))),
        (Method::State, message(&[(3, 42), (4, 2)], &[]), None),
        (Method::Create, message(&[(1, 42)], &[]), None),
    ] {
        assert_eq!(end(method, &payload), expect, "{method:?} {payload:?}");
    }
    assert_eq!(pid(&message(&[(1, 42)], &[])), Some(42));
    assert_eq!(pid(b""), None);
}

#[test]
fn status_replaced_and_other_fields_unchanged() {
    let at = exited();
    for (method, status, before) in [
        (Method::Wait, 1, message(&[(1, 0x7f), (77, 5)], &[(2, &at), (99, b"more")])),
        (Method::Delete, 2, message(&[(1, 42), (2, 143), (77, 5)], &[(3, &at), (99, b"more")])),
        (
            Method::State,
            9,
            message(&[(3, 42), (4, 3), (9, 1), (77, 5)], &[(1, b"c1"), (10, &at), (99, b"more")]),
        ),
    ] {
        let body = message(&[(88, 6)], &[(1, &message(&[], &[(2, b"fine")])), (2, &before), (98, b"also")]);
        let after = with_status(method, &body, 137).unwrap();
        let parsed = Empty::parse_from_bytes(&after).unwrap();
        assert_eq!(parsed.unknown_fields().get(88), Some(protobuf::UnknownValueRef::Varint(6)));
        assert_eq!(
            parsed.unknown_fields().get(98),
            Some(protobuf::UnknownValueRef::LengthDelimited(b"also"))
        );
        let fields = |bytes: &[u8]| {
            let mut message = Empty::parse_from_bytes(bytes).unwrap();
            message.mut_unknown_fields().remove(status);
            message
        };
        let inside = payload(&after).unwrap();
        assert_eq!(fields(inside), fields(&before), "{method:?}");
        assert_eq!(numbers_of(inside, [status]), Ok([137]));
        assert_eq!(end(method, inside).unwrap().exited_at_ns, Some(1_600_000_000_123_456_789));
        let zero = with_status(method, &body, 0).unwrap();
        assert_eq!(end(method, payload(&zero).unwrap()).unwrap().status, 0);
    }
}

#[test]
fn reply_to_stats_has_the_ruled_count_and_all_other_metrics() {
    let inside = |body: &[u8], path: &[u32]| {
        path.iter().fold(body.to_vec(), |message, number| bytes_of(&message, [*number]).unwrap()[0].to_vec())
    };
    for (kind, events, oom_kill) in [(METRICS_V1, 9, 3), (METRICS_V2, 8, 5)] {
        let body = |kind: &[u8], kills: u64| {
            let counts = message(&[(1, 6), (oom_kill, kills)], &[]);
            let metrics = message(&[], &[(2, b"cpu"), (events, &counts)]);
            let any = message(&[], &[(1, kind), (2, &metrics)]);
            message(&[], &[(2, &message(&[], &[(1, &any)]))])
        };
        for (kills, oom) in [(0, true), (2, false)] {
            let after = with_ruled_oom(&body(kind, kills), oom).unwrap();
            assert_eq!(inside(&after, &[2, 1, 1]), kind);
            assert_eq!(inside(&after, &[2, 1, 2, 2]), b"cpu");
            assert_eq!(
                numbers_of(&inside(&after, &[2, 1, 2, events]), [1, oom_kill]),
                Ok([6, u64::from(oom)])
            );
            assert_eq!(with_ruled_oom(&body(kind, kills), !oom), None, "it agrees");
            assert_eq!(with_ruled_oom(&body(b"other.Metrics", kills), oom), None);
        }
    }
    // The call failed: the cgroup is gone.
    let error = message(&[], &[(1, &message(&[(1, 5)], &[(2, b"not found")]))]);
    assert_eq!(with_ruled_oom(&error, false), None);
    let after = with_ruled_oom(&error, true).unwrap();
    assert_eq!(inside(&after, &[1]), b"");
    assert_eq!(inside(&after, &[2, 1, 1]), METRICS_V2);
    assert_eq!(numbers_of(&inside(&after, &[2, 1, 2, 8]), [5]), Ok([1]));
}

#[test]
fn error_has_no_payload() {
    let error = message(&[(1, 5)], &[(2, b"not found")]);
    assert_eq!(payload(&message(&[], &[(1, &error), (2, b"\x08\x01")])), None);
    assert_eq!(payload(&message(&[], &[(2, b"\x08\x01")])), Some(&b"\x08\x01"[..]));
    assert_eq!(payload(b""), Some(&b""[..]), "a reply of nothing but defaults");
    assert_eq!(payload(b"\xff"), None);
}
