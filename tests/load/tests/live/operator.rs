//! An operator's day, as in docs/operating/policies.md: every command and every answer on that page
//! is produced here.

use coroner_tests::guests::component;
use coroner_tests::page::Page;
use coroner_tests::report::print;

use super::{ASSUME, Fixture, sigkill_is_oom};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn docs_policies_md_is_what_happens() {
    let mut page = Page::open("operating/policies.md").unwrap();
    // Long enough for a slow machine to show it.
    let mut fixture = Fixture::start("beside", "quarantine.shortest = \"20s\"").await;
    let ran = |fixture: &Fixture, page: &mut Page, command: &str, code: i32| {
        let arguments: Vec<&str> = command.split(' ').skip(1).collect();
        let output = fixture.router.command(&arguments).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
        page.produce(command, &output);
    };
    let listed = |name: &'static str| move |it: &serde_json::Value| it["chain"].to_string().contains(name);

    // A shadow first.
    fixture
        .router
        .drop_in("50-sigkill-is-oom.toml", format!("mode = \"shadow\"\n\n{ASSUME}").as_bytes())
        .unwrap();
    fixture.router.drop_in("50-sigkill-is-oom.wasm", &sigkill_is_oom()).unwrap();
    fixture.router.wait_listed("the shadow", listed("50-sigkill-is-oom")).await.unwrap();
    fixture.kill("web", 1);
    fixture.killed("web");
    fixture.killed("job");
    fixture.dealt_with().await;
    ran(&fixture, &mut page, "coroner policy list", 0);
    ran(&fixture, &mut page, "coroner policy promote 50-sigkill-is-oom", 0);
    let toml = std::fs::read_to_string(fixture.router.policies().join("50-sigkill-is-oom.toml")).unwrap();
    assert_eq!(toml, format!("mode = \"enforce\"\n\n{ASSUME}"));
    let enforced = |it: &serde_json::Value| it["chain"][1]["mode"] == "enforce";
    fixture.router.wait_listed("its promotion", enforced).await.unwrap();
    ran(&fixture, &mut page, "coroner policy promote 50-sigkill-is-oom", 2);

    // A bad one.
    fixture.router.drop_in("60-broken.wasm", &sigkill_is_oom()[..20_000]).unwrap();
    ran(&fixture, &mut page, "coroner policy reload", 2);
    std::fs::remove_file(fixture.router.policies().join("60-broken.wasm")).unwrap();

    // One that fails at each call.
    fixture.router.drop_in("70-trap.wasm", &component("trap").unwrap()).unwrap();
    fixture.router.wait_listed("the trap", listed("70-trap")).await.unwrap();
    for at in 0..6 {
        fixture.kill(&format!("c{at}"), 1);
        fixture.dealt_with().await;
    }
    ran(&fixture, &mut page, "coroner policy list", 0);
    ran(&fixture, &mut page, "coroner policy inspect 70-trap", 0);
    ran(&fixture, &mut page, "coroner policy release 70-trap", 0);
    ran(&fixture, &mut page, "coroner policy release 70", 2);
    ran(&fixture, &mut page, "coroner status", 0);
    page.finish().unwrap();

    let metrics = scraped(&fixture).await;
    print(format_args!("{} lines of metrics", metrics.lines().count()));
    for wanted in [
        "coroner_policy_calls_total{policy=\"70-trap\"} 5",
        "coroner_policy_faults_total{policy=\"70-trap\",kind=\"trap\"} 5",
        "coroner_policy_faults_total{policy=\"70-trap\",kind=\"quarantined\"} 1",
        "coroner_policy_quarantined{policy=\"70-trap\"} 0",
        "coroner_policy_rulings_total{policy=\"00-kubernetes\"} 9",
        "coroner_policy_call_seconds_count{policy=\"00-kubernetes\"} 9",
        "coroner_source_signals_total{source=\"node\"} 9",
        "coroner_source_connected{source=\"node\"} 1",
        "coroner_sink_delivered_total{sink=\"containerd\"} 7",
        "coroner_late_kills_total 0",
    ] {
        assert!(metrics.lines().any(|line| line == wanted), "{wanted}\n{metrics}");
    }
    fixture.router.stop().await.unwrap();
}

/// `GET /metrics` over the unix socket.
async fn scraped(fixture: &Fixture) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let get = async |request: &str| {
        let mut stream = tokio::net::UnixStream::connect(fixture.router.path("metrics.sock")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let elsewhere = get("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    let answer = get("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with("# EOF"), "{answer}");
    answer
}

#[tokio::test]
async fn shadow_with_faults_is_promoted_only_by_force() {
    let mut fixture = Fixture::start("beside", "").await;
    fixture.router.drop_in("50-trap.toml", b"mode = \"shadow\"").unwrap();
    fixture.router.drop_in("50-trap.wasm", &component("trap").unwrap()).unwrap();
    let mode = |mode: &'static str| move |it: &serde_json::Value| it["chain"][1]["mode"] == mode;
    fixture.router.wait_listed("the shadow", mode("shadow")).await.unwrap();
    fixture.kill("c", 1);
    fixture.dealt_with().await;
    let refused = fixture.router.command(&["policy", "promote", "50-trap"]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stdout).contains("not promoted: it had 1 faults"), "{refused:?}");
    let forced = fixture.router.request(&["policy", "promote", "50-trap", "--force"]).unwrap();
    assert_eq!((&forced["promoted"], &forced["difference"]["faults"]), (&true.into(), &1.into()));
    fixture.router.wait_listed("its promotion", mode("enforce")).await.unwrap();
    fixture.router.stop().await.unwrap();
}

#[tokio::test]
async fn second_router_is_refused_and_missing_router_reported() {
    let mut fixture = Fixture::start("beside", "").await;
    let second =
        fixture.router.command(&["run", "--config", fixture.router.path("coroner.toml").to_str().unwrap()]);
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let stderr = text(&second.stderr);
    assert!(stderr.contains("(journal.directory)") && stderr.contains("another router uses"), "{stderr}");
    // With a journal of its own, it is the socket.
    let toml = std::fs::read_to_string(fixture.router.path("coroner.toml")).unwrap();
    let other = fixture.router.path("other.toml");
    std::fs::write(&other, toml.replace("/journal\"", "/journal-2\"")).unwrap();
    let third = fixture.router.command(&["run", "--config", other.to_str().unwrap()]).unwrap();
    let stderr = text(&third.stderr);
    assert!(
        stderr.contains("(control.socket)") && stderr.contains("another process listens on it"),
        "{stderr}"
    );
    fixture.router.stop().await.unwrap();
    let output = fixture.router.command(&["status"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("coroner: no router answers at "), "{output:?}");
    // The socket it left behind does not prevent a start.
    fixture.router.start_again().await.unwrap();
    assert_eq!(fixture.router.request(&["status"]).unwrap()["node"], "n");
    fixture.router.stop().await.unwrap();
}
