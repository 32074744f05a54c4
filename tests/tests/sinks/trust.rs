//! A receiver that checks its client, and a router that checks its receiver.

use coroner_tests::scratch::Scratch;
use ring::hmac;
use serde_json::json;

use super::fixture::{Fixture, lines, subjects};
use super::pki::Pki;
use super::receiver::{Post, Receiver};

/// A webhook that shows a certificate, a token and a signature.
fn pager(port: u16, ca: &Pki, more: &str) -> String {
    format!(
        r#"
        [[sink]]
        name = "pager"
        type = "webhook"
        url = "https://127.0.0.1:{port}/events"
        ca_file = "{}"
        token_file = "@DIR@/token"
        hmac_secret_file = "@DIR@/hmac"
        {more}
        [[route]]
        topics = ["app-*"]
        sinks = ["pager"]
        "#,
        ca.path("ca.pem").display()
    )
}

fn shown(pki: &Pki) -> String {
    format!(
        "client_certificate_file = \"{}\"\nclient_key_file = \"{}\"",
        pki.path("client.pem").display(),
        pki.path("client.key").display()
    )
}

fn check_signed(post: &Post, secret: &[u8]) {
    let signature = post.header("coroner-signature");
    let (time, hex) = signature.strip_prefix("t=").and_then(|it| it.split_once(",v1=")).unwrap();
    let tag: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
    let signed = [time.as_bytes(), b".", &post.body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    hmac::verify(&key, &signed, &tag).expect("the signature is that of the body");
}

#[tokio::test]
async fn receiver_gets_cloud_events_and_the_client_certificate() {
    let scratch = Scratch::new().unwrap();
    let pki = Pki::new(scratch.directory(), "pki");
    std::fs::write(scratch.path("token"), "first\n").unwrap();
    std::fs::write(scratch.path("hmac"), "one secret\n").unwrap();
    let mut receiver = Receiver::secure(pki.server(), &[]).await;
    let sinks = pager(receiver.address.port(), &pki, &shown(&pki));
    let mut fixture = Fixture::reporting(scratch, &sinks).await;

    fixture.exit("c1");
    let post = receiver.post().await;
    assert_eq!(post.client.as_ref(), Some(&pki.certificate("client.pem")));
    assert_eq!(post.header("authorization"), "Bearer first");
    check_signed(&post, b"one secret");
    assert_eq!(post.header("content-type"), "application/cloudevents+json");
    let mut event = post.json();
    let (document, id) = (event["data"].take(), event["id"].take());
    assert!(id.as_str().unwrap().ends_with(":fake:c1:1/0"), "{id}");
    assert_eq!(
        event,
        json!({
            "specversion": "1.0", "id": null, "source": "/coroner/n", "type": "coroner.report",
            "subject": "c1", "time": "2023-11-14T22:13:20.001Z", "datacontenttype": "application/json",
            "topic": "app-crash", "data": null,
        })
    );
    for (key, value) in [
        ("v", json!(1)),
        ("id", id.clone()),
        ("topic", json!("app-crash")),
        ("reason", json!("Seen")),
        ("message", json!("it was seen")),
        ("fields", json!([["key", "value"]])),
        ("status", json!(null)),
    ] {
        assert_eq!(document.get(key), Some(&value), "{key}");
    }
    assert_eq!(document["signal"]["target"]["container-id"], "c1");

    // Both are read again when they change.
    std::fs::write(fixture.router.path("token"), "second").unwrap();
    std::fs::write(fixture.router.path("hmac"), "another secret").unwrap();
    fixture.kill("c2");
    let post = receiver.post().await;
    assert_eq!(post.header("authorization"), "Bearer second");
    check_signed(&post, b"another secret");

    let delivered = &fixture.delivered("pager", 2).await[0];
    assert_eq!(delivered["outcome"], "acked");
    assert_eq!(format!("{}/0", delivered["id"].as_str().unwrap()), id.as_str().unwrap());
    assert_eq!((&delivered["topic"], &delivered["attempts"]), (&json!("app-crash"), &json!(1)));
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn receiver_without_a_trusted_certificate_gets_nothing() {
    let scratch = Scratch::new().unwrap();
    let (ours, others) = (Pki::new(scratch.directory(), "ours"), Pki::new(scratch.directory(), "others"));
    std::fs::write(scratch.path("token"), "t").unwrap();
    std::fs::write(scratch.path("hmac"), "s").unwrap();
    let mut impostor = Receiver::secure(others.server(), &[]).await;
    let address = impostor.address;
    let mut fixture = Fixture::reporting(scratch, &pager(address.port(), &ours, &shown(&ours))).await;
    fixture.exit("c1");
    fixture.sink("pager", |it| it["failed"].as_u64() >= Some(2)).await;
    assert!(impostor.is_quiet(), "nothing is sent to a stranger");
    impostor.end().await;

    // The one that is trusted comes to the same place: what waited goes there.
    let mut receiver = Receiver::at(address, Some(ours.server()), &[]).await;
    assert_eq!(subjects(&receiver.documents(1).await), ["c1"]);
    let delivered = &fixture.delivered("pager", 1).await[0];
    assert!(
        delivered["attempts"].as_u64() >= Some(3) && delivered["error"].as_str().is_some(),
        "{delivered}"
    );
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn router_without_a_certificate_is_refused() {
    let scratch = Scratch::new().unwrap();
    let pki = Pki::new(scratch.directory(), "pki");
    std::fs::write(scratch.path("hmac"), "s").unwrap();
    let mut receiver = Receiver::secure(pki.server(), &[]).await;
    let given_up = "deadline = \"1s\"\ndead_letter = \"@DIR@/dead.jsonl\"";
    let sinks = pager(receiver.address.port(), &pki, given_up);
    // A token that is not there is no other case than a certificate that is not: tried again until
    // the deadline.
    let mut fixture = Fixture::reporting(scratch, &sinks).await;
    fixture.exit("c1");
    fixture.sink("pager", |it| it["dropped"]["deadline"] == 1).await;
    std::fs::write(fixture.router.path("token"), "t").unwrap();
    fixture.exit("c2");
    let sink = fixture.sink("pager", |it| it["dropped"]["deadline"] == 2).await;
    assert_eq!(sink["delivered"], 0);
    assert!(receiver.is_quiet());
    let errors: Vec<_> = lines(&fixture.router.path("dead.jsonl"))
        .iter()
        .map(|it| it["error"].as_str().unwrap().to_owned())
        .collect();
    assert!(errors[0].contains("token") && errors[1].contains("ertificate"), "{errors:?}");
    fixture.router.stop().await.unwrap();
}
