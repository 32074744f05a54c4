//! Deaths while a part of the node fails, judged by the kernel log.

use coroner_tests::node::Node;
use coroner_tests::report::timed;
use serde_json::{Value, json};

use crate::deaths::{HANDLERS, check, configure, deaths, deathtest, print_card, sum};
use crate::installed;

/// How long a reading must stay the same to be final: longer than a fault's round.
const STABLE: u32 = 8000;

/// A fault that is repeated while containers die.
struct Fault {
    name: &'static str,
    /// A line of the node's shell.
    line: &'static str,
    /// Handlers and verdicts that no part but a failing one could prevent.
    allowed: &'static [(&'static str, &'static str)],
}

const fn fault(name: &'static str, line: &'static str) -> Fault {
    Fault { name, line, allowed: &[] }
}

/// While the agent is absent, a stock shim is the only witness of its containers' kills.
const fn fault_of_agent(name: &'static str, line: &'static str) -> Fault {
    Fault { name, line, allowed: &[("runc", "lost")] }
}

/// containerd shows the status 255 of a container if it missed the end.
const fn fault_of_containerd(name: &'static str, line: &'static str) -> Fault {
    Fault { name, line, allowed: &[("runc", "wrong"), ("wrapped", "wrong"), ("proxied", "wrong")] }
}

const FAULTS: [Fault; 7] = [
    // The next one comes when it has worked for a while: under emulation it starts in seconds.
    fault(
        "router killed",
        "systemctl kill --signal=KILL --kill-whom=main coroner; sleep 1; \
         until coroner status > /dev/null 2>&1; do sleep 0.5; done; sleep 4",
    ),
    fault(
        "router stopped for 4 s",
        "systemctl kill --signal=STOP coroner; sleep 4; systemctl kill --signal=CONT coroner; sleep 3",
    ),
    fault_of_containerd(
        "containerd stopped for 5 s",
        "sleep 12; systemctl stop containerd; sleep 5; systemctl start containerd",
    ),
    fault("router restarted", "systemctl restart coroner; sleep 4"),
    fault_of_agent("agent restarted", "systemctl restart coroner-agent; sleep 4"),
    fault_of_agent("agent killed", "systemctl kill --signal=KILL coroner-agent; sleep 4"),
    fault_of_agent("package upgraded", "apt-get install -y --reinstall /tmp/coroner.deb; sleep 4"),
];

/// A fault again and again in the node.
struct Repeated<'a>(&'a Node);

impl<'a> Repeated<'a> {
    fn start(node: &'a Node, fault: &Fault) -> Self {
        let run = "touch /run/fault; : > /run/rounds; \
                   systemd-run --quiet --unit=fault --collect --property=KillMode=process sh -ec";
        let round = format!("while [ -e /run/fault ]; do {}; echo >> /run/rounds; done", fault.line);
        node.run(&format!("{run} '{round}'")).unwrap();
        Self(node)
    }

    /// Ends it after the round under way, so that nothing stays stopped, and answers the rounds
    /// that were whole before.
    fn end(&self) -> u32 {
        let ended = "rm -f /run/fault; while systemctl --quiet is-active fault; do sleep 0.2; done";
        self.0.run(&format!("wc -l < /run/rounds; {ended}")).unwrap().trim().parse().unwrap()
    }
}

/// Pods that start while the node boots: nothing is lost, and no pod starts without the router.
fn boot(node: &Node) {
    const RUN: &str = "/usr/local/bin/deathtest run --image localhost/busybox:1 --format json";
    let handlers = HANDLERS.map(|handler| format!(" --handler {handler}")).concat();
    // It ends with 1 where a stock shim loses a kill.
    let unit = format!(
        "[Unit]\nAfter=containerd.service\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
         SuccessExitStatus=1\nStandardOutput=file:/root/boot.json\nExecStart={RUN}{handlers}\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    node.run(&format!("printf '{unit}' > /etc/systemd/system/at-boot.service")).unwrap();
    node.run("systemctl enable at-boot coroner-agent coroner").unwrap();
    node.reboot().unwrap();
    let ended = "while [ \"$(systemctl is-active at-boot)\" = activating ]; do sleep 1; done";
    node.run(&format!("{ended}; systemctl is-active at-boot")).unwrap();
    let document: Value = serde_json::from_str(&node.run("cat /root/boot.json").unwrap()).unwrap();
    print_card("pods that start while the node boots", &document);
    check(&document);
    let status: Value = serde_json::from_str(&node.run("coroner status --json").unwrap()).unwrap();
    assert_eq!(status["unmanaged"], json!([]), "{status:#}");
}

#[test]
fn no_kill_is_lost_while_a_part_fails() {
    let _timed = timed("no_kill_is_lost_while_a_part_fails");
    let node = installed("faults");
    configure(&node);
    // The gate has the first three; more deaths are the long form, which has all, and a reboot.
    let count = if deaths() == 1 { 3 } else { FAULTS.len() };
    for fault in &FAULTS[..count] {
        let repeated = Repeated::start(&node, fault);
        let arguments = format!("--case oom-child-exit-1 --count {} --stable-ms {STABLE}", deaths());
        let document = deathtest(&node, &HANDLERS, &arguments);
        let rounds = repeated.end();
        print_card(&format!("{}, {rounds} times", fault.name), &document);
        assert!(rounds > 0, "{}", fault.name);
        for handler in HANDLERS {
            for verdict in ["lost", "false", "wrong", "not-started"] {
                let count = sum(&document, handler, verdict);
                let allowed = fault.allowed.contains(&(handler, verdict));
                assert!(count == 0 || allowed, "{}: {count} {verdict}\n{document:#}", fault.name);
            }
        }
    }
    if deaths() > 1 {
        boot(&node);
    }
}
