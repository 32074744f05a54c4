//! `cargo xtask node status`: a table, or JSON.

use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::record::{self, Record};
use super::ssh;

/// One node; in JSON the fields have these names.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    pid: i32,
    port: u16,
    containerd: String,
    state: State,
    /// What is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    uptime_seconds: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Ready,
    NotReady,
    /// QEMU is not there any more.
    Ended,
}

impl State {
    fn shown(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::NotReady => "not Ready",
            Self::Ended => "ended",
        }
    }
}

pub(super) fn print(json: bool) -> anyhow::Result<()> {
    let rows: Vec<Row> = record::all()?.iter().map(row).collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&rows).context("rows are JSON")?);
    } else {
        print!("{}", table(&rows));
    }
    Ok(())
}

fn row(node: &Record) -> Row {
    let (state, reason) = match node.is_running() {
        false => (State::Ended, None),
        true => match ssh::is_ready(node) {
            Ok(()) => (State::Ready, None),
            Err(error) => (State::NotReady, Some(format!("{error:#}"))),
        },
    };
    Row {
        name: node.name.clone(),
        pid: node.pid,
        port: node.port,
        containerd: node.containerd.clone(),
        state,
        reason,
        uptime_seconds: node.uptime().as_secs(),
    }
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no node is up; to start one: cargo xtask node up\n".to_owned();
    }
    let mut table = line(["NAME", "PID", "PORT", "CONTAINERD", "STATE", "UPTIME"]);
    for row in rows {
        let (pid, port) = (row.pid.to_string(), row.port.to_string());
        let uptime = match row.state {
            State::Ended => "-".to_owned(),
            State::Ready | State::NotReady => uptime(Duration::from_secs(row.uptime_seconds)),
        };
        table += &line([&row.name, &pid, &port, &row.containerd, row.state.shown(), &uptime]);
        if let Some(reason) = &row.reason {
            table += &format!("  {reason}\n");
        }
    }
    table
}

fn line(cells: [&str; 6]) -> String {
    let [name, pid, port, containerd, state, uptime] = cells;
    format!("{name:<12} {pid:>8} {port:>6}  {containerd:<11} {state:<10} {uptime}\n")
}

/// `45 s`, `12 min` or `3 h 5 min`.
fn uptime(uptime: Duration) -> String {
    match uptime.as_secs() {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, state: State, reason: Option<&str>, uptime_seconds: u64) -> Row {
        let (name, containerd) = (name.to_owned(), "2.4.2".to_owned());
        let reason = reason.map(str::to_owned);
        Row { name, pid: 4711, port: 40123, containerd, state, reason, uptime_seconds }
    }

    #[test]
    fn table_has_a_line_for_each_node_and_the_reason() {
        let rows = [
            row("node", State::Ready, None, 45),
            row("old", State::NotReady, Some("kubelet is not healthy"), 11_100),
            row("gone", State::Ended, None, 7),
        ];
        let expected = "\
NAME              PID   PORT  CONTAINERD  STATE      UPTIME
node             4711  40123  2.4.2       Ready      45 s
old              4711  40123  2.4.2       not Ready  3 h 5 min
  kubelet is not healthy
gone             4711  40123  2.4.2       ended      -
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn table_without_nodes_names_the_command() {
        assert_eq!(table(&[]), "no node is up; to start one: cargo xtask node up\n");
    }

    #[test]
    fn json_has_states_as_words() {
        let json = serde_json::to_value(row("node", State::NotReady, None, 45)).unwrap();
        assert_eq!(json["state"], "not-ready");
        assert_eq!(json["uptime_seconds"], 45);
        assert!(json.get("reason").is_none());
    }
}
