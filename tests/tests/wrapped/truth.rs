//! What CRI shows of wrapped pods is what it shows of stock ones, where stock is right.

use coroner_tests::events::{EXIT, Events};
use coroner_tests::report::{print, timed};
use rustix::process::{Signal, kill_process};

use super::fixture::{END, Fixture, Mode, alone};
use coroner_tests::containerd::WRAPPED;

/// Name, memory limit in MB, the program's arguments, whether the host kills it, what CRI shows,
/// with stock shims too (suite `containerd`).
const TABLE: [(&str, i64, &str, bool, &str); 6] = [
    ("pid-1-over-its-limit", 32, "self 64", false, "OOMKilled/137"),
    ("child-killed-pid-1-exits-1", 32, "child 64 1 0", false, "OOMKilled/1"),
    ("child-killed-pid-1-exits-0-later", 32, "child 64 0 10000", false, "OOMKilled/0"),
    ("exit-1", 32, "exit 1", false, "Error/1"),
    ("exit-137", 32, "exit 137", false, "Error/137"),
    ("killed-from-the-host", 32, "pause", true, "Error/137"),
];

async fn truth(mode: Mode) {
    let mut fixture = Fixture::start(mode).await.unwrap();
    let mut events = Events::subscribe(&fixture.containerd.socket()).await.unwrap();
    let pod = fixture.cri.run_pod_as(&fixture.containerd, "truth", WRAPPED).await.unwrap();
    for (name, limit, arguments, kill, expected) in TABLE {
        let container = fixture.cri.run(&pod, name, limit, arguments).await.unwrap();
        if kill {
            kill_process(fixture.cri.pid(&container).await.unwrap(), Signal::KILL).unwrap();
        }
        let (first, last) = fixture.cri.readings(&container, END).await.unwrap();
        print(format_args!("{}: {name}: first {first}, final {last}", mode.name()));
        assert_eq!(last.to_string(), expected, "{name}");
        if mode == Mode::Proxy {
            assert_eq!(first, last, "{name}: the first reading is ruled");
        }
        let ruled = fixture.ruled("exited", &container).await.unwrap();
        assert_eq!(ruled["mode"], mode.name(), "{ruled:#}");
        assert_eq!(ruled["signal"]["target"]["owner"]["pod"], "truth", "{ruled:#}");
        events.wait_for(EXIT, &container.id, 1, END).await.unwrap();
        let seen: Vec<String> = events.of(&container.id).into_iter().map(|it| it.topic.clone()).collect();
        let lifecycle: Vec<&String> = seen.iter().filter(|topic| topic.starts_with("/tasks/")).collect();
        print(format_args!("{name}: {lifecycle:?}"));
        let exit = seen.iter().position(|topic| topic == EXIT).unwrap();
        let oom = seen.iter().position(|topic| topic == "/tasks/oom");
        assert_eq!(oom.is_some(), expected.starts_with("OOMKilled"), "{name}: {seen:?}");
        assert!(oom.is_none_or(|oom| oom < exit), "{name}: {seen:?}");
        assert_eq!(events.count(EXIT, &container.id), 1, "{name}");
    }
}

#[tokio::test]
async fn wrapped_pods_show_what_stock_pods_show() {
    let _turn = alone().await;
    let _timed = timed("wrapped_pods_show_what_stock_pods_show");
    truth(Mode::Wrapped).await;
}

#[tokio::test]
async fn proxied_pods_show_it_at_the_first_reading() {
    let _turn = alone().await;
    let _timed = timed("proxied_pods_show_it_at_the_first_reading");
    truth(Mode::Proxy).await;
}
