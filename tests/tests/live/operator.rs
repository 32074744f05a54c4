//! An operator's day, as docs/policies.md tells it: every command and every answer on that page is produced here.

use coroner_tests::guests::component;
use coroner_tests::page::Page;
use coroner_tests::report::say;

use super::{ASSUME, Stand, sigkill_is_oom};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn docs_policies_md_is_what_happens() {
    let mut page = Page::open("policies.md").unwrap();
    // Long enough for a slow machine to show it.
    let mut stand = Stand::start("beside", "quarantine.shortest = \"20s\"").await;
    let ran = |stand: &Stand, page: &mut Page, command: &str, code: i32| {
        let arguments: Vec<&str> = command.split(' ').skip(1).collect();
        let output = stand.router.command(&arguments).unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
        page.produce(command, &output);
    };
    let listed = |name: &'static str| move |it: &serde_json::Value| it["chain"].to_string().contains(name);

    // A shadow first.
    stand
        .router
        .drop_in("50-sigkill-is-oom.toml", format!("mode = \"shadow\"\n\n{ASSUME}").as_bytes())
        .unwrap();
    stand.router.drop_in("50-sigkill-is-oom.wasm", &sigkill_is_oom()).unwrap();
    stand.router.wait_listed("the shadow", listed("50-sigkill-is-oom")).await.unwrap();
    stand.kill("web", 1);
    stand.killed("web");
    stand.killed("job");
    stand.dealt_with().await;
    ran(&stand, &mut page, "coroner policy list", 0);
    ran(&stand, &mut page, "coroner policy promote 50-sigkill-is-oom", 0);
    let toml = std::fs::read_to_string(stand.router.policies().join("50-sigkill-is-oom.toml")).unwrap();
    assert_eq!(toml, format!("mode = \"enforce\"\n\n{ASSUME}"));
    let enforced = |it: &serde_json::Value| it["chain"][1]["mode"] == "enforce";
    stand.router.wait_listed("its promotion", enforced).await.unwrap();
    ran(&stand, &mut page, "coroner policy promote 50-sigkill-is-oom", 2);

    // A bad one.
    stand.router.drop_in("60-broken.wasm", &sigkill_is_oom()[..20_000]).unwrap();
    ran(&stand, &mut page, "coroner policy reload", 2);
    std::fs::remove_file(stand.router.policies().join("60-broken.wasm")).unwrap();

    // One that fails at each call.
    stand.router.drop_in("70-trap.wasm", &component("trap").unwrap()).unwrap();
    stand.router.wait_listed("the trap", listed("70-trap")).await.unwrap();
    for at in 0..6 {
        stand.kill(&format!("c{at}"), 1);
        stand.dealt_with().await;
    }
    ran(&stand, &mut page, "coroner policy list", 0);
    ran(&stand, &mut page, "coroner policy inspect 70-trap", 0);
    ran(&stand, &mut page, "coroner policy release 70-trap", 0);
    ran(&stand, &mut page, "coroner policy release 70", 2);
    ran(&stand, &mut page, "coroner status", 0);
    page.finish().unwrap();

    let metrics = scraped(&stand).await;
    say(format_args!("{} lines of metrics", metrics.lines().count()));
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
    stand.router.stop().await.unwrap();
}

/// `GET /metrics` over the unix socket.
async fn scraped(stand: &Stand) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ask = async |request: &str| {
        let mut stream = tokio::net::UnixStream::connect(stand.router.path("metrics.sock")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let elsewhere = ask("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    let answer = ask("GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.trim_end().ends_with("# EOF"), "{answer}");
    answer
}

#[tokio::test]
async fn a_shadow_with_faults_is_promoted_by_force_alone() {
    let mut stand = Stand::start("beside", "").await;
    stand.router.drop_in("50-trap.toml", b"mode = \"shadow\"").unwrap();
    stand.router.drop_in("50-trap.wasm", &component("trap").unwrap()).unwrap();
    let mode = |mode: &'static str| move |it: &serde_json::Value| it["chain"][1]["mode"] == mode;
    stand.router.wait_listed("the shadow", mode("shadow")).await.unwrap();
    stand.kill("c", 1);
    stand.dealt_with().await;
    let refused = stand.router.command(&["policy", "promote", "50-trap"]).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stdout).contains("not promoted: it had 1 faults"), "{refused:?}");
    let forced = stand.router.ask(&["policy", "promote", "50-trap", "--force"]).unwrap();
    assert_eq!((&forced["promoted"], &forced["difference"]["faults"]), (&true.into(), &1.into()));
    stand.router.wait_listed("its promotion", mode("enforce")).await.unwrap();
    stand.router.stop().await.unwrap();
}

#[tokio::test]
async fn nobody_to_ask_is_said_so_and_two_routers_do_not_share_a_socket() {
    let mut stand = Stand::start("beside", "").await;
    let second =
        stand.router.command(&["run", "--config", stand.router.path("coroner.toml").to_str().unwrap()]);
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("(journal.directory)") && said.contains("another router has"), "{said}");
    // With a journal of its own, it is the socket.
    let toml = std::fs::read_to_string(stand.router.path("coroner.toml")).unwrap();
    let other = stand.router.path("other.toml");
    std::fs::write(&other, toml.replace("/journal\"", "/journal-2\"")).unwrap();
    let third = stand.router.command(&["run", "--config", other.to_str().unwrap()]).unwrap();
    let said = text(&third.stderr);
    assert!(said.contains("(control.socket)") && said.contains("another process answers on it"), "{said}");
    stand.router.stop().await.unwrap();
    let output = stand.router.command(&["status"]).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("coroner: no router answers at "), "{output:?}");
    // The socket it left behind is no obstacle.
    stand.router.start_again().await.unwrap();
    assert_eq!(stand.router.ask(&["status"]).unwrap()["node"], "n");
    stand.router.stop().await.unwrap();
}
