//! Answers that no agent gives.

use std::io;
use std::time::Duration;

use coroner_proto::agent::{
    Evidence, EvidenceResponse, MemorySample, NextSignalsResponse, OomKill, Victim, signal::Event,
};
use protobuf::{Message as _, MessageField};
use tokio::io::AsyncWriteExt as _;
use ttrpc::Code;
use ttrpc::proto::Response;

use super::fixture::Fixture;
use super::link::{Link, frame, hello};
use super::{STREAM, agent_signal, answer, kill};

/// Each vice, and the problem that is reported of it. All are held apart for a second at least.
const VICES: [(&str, &str); 8] = [
    ("no-message", "NextSignals: undecodable"),
    ("no-response", "NextSignals: undecodable"),
    ("no-answer", "NextSignals: undecodable"),
    ("backwards", "the agent's answer is out of order: seq"),
    ("twice", "the agent's answer is out of order: seq 5 after 5"),
    ("crowd", "NextSignals: malformed: signals of an answer hold"),
    ("another-stream", "the stream changed within a link"),
    ("odd-stream", "Hello: malformed: stream `a:b` is not"),
];

async fn sin(vice: &str, mut link: Link) -> io::Result<()> {
    if vice == "odd-stream" {
        let call = link.call().await?;
        link.answer(&call, &hello("a:b")).await?;
        return link.silent().await;
    }
    let call = link.up(STREAM).await?;
    match vice {
        "no-message" => link.payload(&call, vec![0xff; 100]).await?,
        "no-response" => link.0.write_all(&frame(call.stream, 2, &[0xff; 100])).await?,
        "no-answer" => link.0.write_all(&frame(call.stream, 1, &[])).await?,
        "backwards" => link.answer(&call, &answer(vec![kill(5, "own"), kill(4, "own")])).await?,
        "twice" => {
            link.answer(&call, &answer(vec![kill(5, "own")])).await?;
            let call = link.next().await?;
            link.answer(&call, &answer(vec![kill(5, "own")])).await?;
        }
        // Two bytes each, and hundreds once decoded.
        "crowd" => link.payload(&call, [0x12, 0].repeat(32_000)).await?,
        _ => {
            let stream_id = "another".to_owned();
            link.answer(&call, &NextSignalsResponse { stream_id, ..Default::default() }).await?;
        }
    }
    link.silent().await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answer_ends_its_link_with_a_penalty() {
    let mut fixture = Fixture::start("malformed answers", "").await;
    let guests: Vec<_> =
        VICES.map(|(vice, _)| fixture.bad(vice, move |link| sin(vice, link))).into_iter().collect();
    fixture.beside(Duration::from_secs(4)).await;
    for ((vice, expected), guest) in VICES.iter().zip(guests) {
        let seen = fixture.guest(vice);
        // During one more try the last problem stays, unless the link came up for a moment.
        let problem =
            |it: &serde_json::Value| it["problem"].as_str().is_some_and(|it| it.starts_with(expected));
        let seen = if problem(&seen) { seen } else { fixture.wait_guest(vice, expected, problem).await };
        assert!(seen["problem"].as_str().unwrap().len() < 200, "{seen:#}");
        assert!((2..=7).contains(&guest.links()), "{vice}: {} links", guest.links());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_texts_are_cut_or_refused() {
    let mut fixture = Fixture::start("huge texts", "").await;
    let _wordy = fixture.bad("wordy", |mut link| async move {
        let call = link.call().await?;
        let agent_version = "v\n".repeat(15_000);
        let capabilities = vec!["x".repeat(1000); 25];
        link.answer(
            &call,
            &coroner_proto::agent::HelloResponse { agent_version, capabilities, ..hello(STREAM) },
        )
        .await?;
        let call = link.up(STREAM).await?;
        let victim = Victim { comm: "x".repeat(60_000), ..Victim::default() };
        let kill = OomKill { total: 1, added: 1, victim: MessageField::some(victim), ..OomKill::default() };
        link.answer(&call, &answer(vec![agent_signal(1, "own", Event::OomKill(kill))])).await?;
        link.idle().await
    });
    let _refusing = fixture.bad("refusing", |mut link| async move {
        loop {
            let call = link.call().await?;
            let status = ttrpc::get_status(Code::INTERNAL, "no\n".repeat(20_000));
            let body = Response { status: MessageField::some(status), ..Response::default() };
            link.0.write_all(&frame(call.stream, 2, &body.write_to_bytes()?)).await?;
        }
    });
    fixture.wait_guest("wordy", "the long name to be refused", |it| it["refused"] == 1).await;
    fixture.beside(Duration::from_secs(1)).await;
    let seen = fixture.guest("refusing");
    assert!(seen["problem"].as_str().unwrap().starts_with("Hello: refused, INTERNAL: no?no?"), "{seen:#}");
    assert_eq!(fixture.guest("wordy")["state"], "up");
    let log = std::fs::read_to_string(fixture.router.path("router.log")).unwrap();
    let longest = log.lines().map(str::len).max().unwrap();
    assert!(longest < 600, "a line of {longest} bytes");
}

/// Answers to a request for evidence: not the message, one with too many entries, one too large.
fn evidence_answers() -> [Vec<u8>; 3] {
    let with = |evidence: Evidence| {
        let answer = EvidenceResponse { evidence: MessageField::some(evidence), ..Default::default() };
        answer.write_to_bytes().unwrap()
    };
    let samples = vec![MemorySample::default(); 2_000];
    let crowd = with(Evidence { seq: 9, samples, ..Default::default() });
    let large = with(Evidence { seq: 9, detail: "x".repeat(50_000), ..Default::default() });
    [vec![0xff; 100], crowd, large]
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_evidence_costs_a_kill_nothing_but_its_evidence() {
    let mut fixture = Fixture::start("malformed evidence", "").await;
    let guest = fixture.bad("unproven", |mut link| async move {
        let mut waiting = link.up(STREAM).await?;
        for (seq, wrong) in (1..).zip(evidence_answers()) {
            link.answer(&waiting, &answer(vec![kill(seq, &format!("own-{seq}"))])).await?;
            let mut next = None;
            let mut is_answered = false;
            while next.is_none() || !is_answered {
                let call = link.call().await?;
                match call.method.as_str() {
                    "GetEvidence" => {
                        link.payload(&call, wrong.clone()).await?;
                        is_answered = true;
                    }
                    _ if call.is_ack() => link.answer(&call, &NextSignalsResponse::default()).await?,
                    _ => next = Some(call),
                }
            }
            waiting = next.expect("it was set");
        }
        link.answer(&waiting, &answer(vec![kill(4, "own-4")])).await?;
        link.idle().await
    });
    let last = |record: &serde_json::Value| record["signal"]["target"]["container-id"] == "own-4";
    fixture.router.wait_record("the last kill", Duration::from_secs(30), last).await.unwrap();
    fixture.beside(Duration::from_secs(1)).await;
    let audit = std::fs::read_to_string(fixture.router.path("audit.jsonl")).unwrap();
    assert!(!audit.contains("\"evidence\":{\"kill\""), "evidence over its limits was ruled on");
    assert_eq!((fixture.guest("unproven")["state"].as_str(), guest.links()), (Some("up"), 1));
}
