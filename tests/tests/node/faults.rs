//! Deaths while a part of the node fails, judged by the kernel log.

use coroner_tests::node::Node;
use coroner_tests::report::timed;

use crate::deaths::{HANDLERS, configure, deaths, deathtest, print_card, sum};
use crate::installed;

/// How long a reading must stay the same to be final: longer than a fault's round.
const STABLE: u32 = 8000;

/// A fault that is repeated while containers die.
struct Fault {
    name: &'static str,
    /// A line of the node's shell.
    line: &'static str,
    /// While the agent is absent, a stock shim is the only witness of its containers' kills.
    takes_agent: bool,
}

const fn fault(name: &'static str, line: &'static str) -> Fault {
    Fault { name, line, takes_agent: false }
}

const fn fault_of_agent(name: &'static str, line: &'static str) -> Fault {
    Fault { name, line, takes_agent: true }
}

const FAULTS: [Fault; 6] = [
    fault("router restarted", "systemctl restart coroner; sleep 4"),
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

    /// Ends it after the round under way, so that nothing stays stopped, and answers the rounds.
    fn end(&self) -> u32 {
        let ended = "rm -f /run/fault; while systemctl --quiet is-active fault; do sleep 0.2; done";
        self.0.run(&format!("{ended}; wc -l < /run/rounds")).unwrap().trim().parse().unwrap()
    }
}

#[test]
fn no_kill_is_lost_while_a_part_fails() {
    let _timed = timed("no_kill_is_lost_while_a_part_fails");
    let node = installed("faults");
    configure(&node);
    // The gate has the router's faults; more deaths are the long form, which has all.
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
                let may_be = verdict == "lost" && fault.takes_agent && handler == HANDLERS[0];
                let count = sum(&document, handler, verdict);
                assert!(count == 0 || may_be, "{}: {handler}: {count} {verdict}", fault.name);
            }
        }
    }
}
