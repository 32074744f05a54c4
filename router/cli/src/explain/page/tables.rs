//! The processes and the cgroups of a kill, as tables with bars.

use coroner_core::signal::{
    CgroupMemory, KernelReport, KillEvidence, MemoryLimit, ProcessMemory, VictimMemory,
};
use coroner_core::verdict::MemoryShares;

use super::html::{Html, Px};
use super::{section, unknown};
use crate::explain::kill_lines::{own_share, process};
use crate::explain::reading::ReadRecords;
use crate::render::size;

/// Processes that are shown, besides the victims.
const PROCESSES: usize = 20;
/// Shown where a value is not known.
const NONE: &str = "\u{2013}";

pub(super) fn write(html: &mut Html, reading: &ReadRecords) {
    let evidence = reading.verdict.evidence.as_deref();
    section(html, "Processes at the kill", |html| match evidence.map(|it| (it, it.report.as_ref())) {
        _ if reading.verdict.kill.is_none() && evidence.is_none() => {
            unknown(html, "no OOM kill is recorded.")
        }
        None => unknown(html, "no record has the evidence of the kill."),
        Some((_, None)) => unknown(html, "the kernel's log had no report of the kill that was readable."),
        Some((_, Some(report))) if report.processes.is_empty() && report.victims.is_empty() => {
            unknown(
                html,
                "the kernel's report has no processes: it suppressed them, or vm.oom_dump_tasks is 0.",
            );
        }
        Some((evidence, Some(report))) => processes(html, evidence, report),
    });
    section(html, "Cgroups after the kill", |html| match evidence {
        _ if reading.verdict.kill.is_none() && evidence.is_none() => {
            unknown(html, "no OOM kill is recorded.")
        }
        None => unknown(html, "no record has the evidence of the kill."),
        Some(evidence) if evidence.cgroups.is_empty() => unknown(html, "no cgroup could be read."),
        Some(evidence) => cgroups(html, reading, evidence),
    });
}

fn processes(html: &mut Html, evidence: &KillEvidence, report: &KernelReport) {
    let mut processes: Vec<&ProcessMemory> = report.processes.iter().collect();
    processes.sort_by_key(|it| std::cmp::Reverse(it.rss_bytes));
    let is_victim = |pid: u32| report.victims.iter().any(|it| it.pid == pid);
    let all = processes.len();
    let mut at = 0;
    processes.retain(|it| {
        at += 1;
        at <= PROCESSES || is_victim(it.pid)
    });
    let missing: Vec<&VictimMemory> = report
        .victims
        .iter()
        .filter(|it| !report.processes.iter().any(|other| other.pid == it.pid))
        .collect();
    let largest =
        processes.iter().map(|it| it.rss_bytes).chain(missing.iter().map(|it| it.rss_bytes())).max();
    let largest = largest.unwrap_or(0);
    html.element("table", &[], |html| {
        head(html, &["Process", "Resident", "", "Anonymous", "Files", "Shared", "Swap", "oom_score_adj"]);
        html.element("tbody", &[], |html| {
            for victim in &missing {
                victim_row(html, victim, largest);
            }
            for process in &processes {
                process_row(html, process, largest, is_victim(process.pid));
            }
        });
    });
    let mut notes = Vec::new();
    if let Some(trigger) = report.trigger_pid {
        let trigger = process(report.trigger_comm.as_deref(), trigger);
        notes.push(format!("The allocation of {trigger} found no memory."));
    }
    match all - processes.len() {
        0 => {}
        more => notes.push(format!("{more} smaller processes are not shown.")),
    }
    if processes.iter().any(|it| it.anon_bytes.is_none()) {
        notes.push(format!("{NONE}: not known; kernels before 6.8 report the sum alone."));
    }
    if evidence.detail == "counts" {
        notes.push("The agent's configuration leaves names of processes out.".to_owned());
    }
    note(html, &notes);
}

/// A process that was killed, of which the report has no line in its table.
fn victim_row(html: &mut Html, victim: &VictimMemory, largest: u64) {
    html.element("tr", &[("class", &"victim")], |html| {
        name(html, victim.comm.as_deref(), victim.pid, true);
        number(html, Some(victim.rss_bytes()));
        bar(html, victim.rss_bytes(), largest, "bar victim");
        for bytes in [victim.anon_bytes, victim.file_bytes, victim.shmem_bytes] {
            number(html, Some(bytes));
        }
        number(html, None);
        html.with("td", &[("class", &"number")], NONE);
    });
}

fn process_row(html: &mut Html, process: &ProcessMemory, largest: u64, is_victim: bool) {
    let (class, bar_class) = if is_victim { ("victim", "bar victim") } else { ("", "bar") };
    html.element("tr", &[("class", &class)], |html| {
        name(html, process.comm.as_deref(), process.pid, is_victim);
        number(html, Some(process.rss_bytes));
        bar(html, process.rss_bytes, largest, bar_class);
        for bytes in [process.anon_bytes, process.file_bytes, process.shmem_bytes, Some(process.swap_bytes)] {
            number(html, bytes);
        }
        html.with("td", &[("class", &"number")], process.score_adj);
    });
}

fn name(html: &mut Html, comm: Option<&str>, pid: u32, is_victim: bool) {
    html.element("td", &[("class", &"process")], |html| {
        html.text(process(comm, pid));
        if is_victim {
            html.text(" ");
            html.with("span", &[("class", &"badge")], "killed");
        }
    });
}

fn cgroups(html: &mut Html, reading: &ReadRecords, evidence: &KillEvidence) {
    let kill = reading.verdict.kill.as_ref();
    let limited = kill.and_then(|it| it.limit.cgroup.as_deref());
    html.element("table", &[], |html| {
        head(html, &["Cgroup", "In use", "of its limit", "Limit", "Peak", "OOM kills"]);
        html.element("tbody", &[], |html| {
            for (at, cgroup) in evidence.cgroups.iter().enumerate() {
                let is_limited = limited == Some(cgroup.path.as_str());
                cgroup_row(html, cgroup, at == 0, is_limited);
            }
        });
    });
    let text = "As they were read some milliseconds after the kill; the victim may have freed its memory by \
                then. OOM kills are counted since each cgroup was made.";
    html.with("p", &[("class", &"note")], text);
    if let Some(shares) = kill.and_then(|it| it.shares.as_ref()) {
        share_table(html, shares);
    }
}

fn cgroup_row(html: &mut Html, cgroup: &CgroupMemory, is_own: bool, is_limited: bool) {
    html.element("tr", &[("class", &if is_limited { "victim" } else { "" })], |html| {
        html.element("td", &[("class", &"path")], |html| {
            html.text(&cgroup.path);
            for (is, class, text) in
                [(is_own, "badge own", "this container"), (is_limited, "badge", "hit its limit")]
            {
                if is {
                    html.text(" ");
                    html.with("span", &[("class", &class)], text);
                }
            }
        });
        number(html, cgroup.usage_bytes);
        match (cgroup.usage_bytes, cgroup.limit) {
            (Some(usage), MemoryLimit::Bytes(limit)) => bar(html, usage, limit, "bar"),
            _ => html.with("td", &[], ""),
        }
        html.with("td", &[("class", &"number")], limit_of(cgroup).unwrap_or_else(|| NONE.to_owned()));
        number(html, cgroup.peak_bytes);
        let kills = cgroup.kills.map_or_else(|| NONE.to_owned(), |it| it.to_string());
        html.with("td", &[("class", &"number")], kills);
    });
}

/// A memory limit.
fn limit_of(memory: &CgroupMemory) -> Option<String> {
    match memory.limit {
        MemoryLimit::Bytes(bytes) => Some(size(bytes)),
        MemoryLimit::Unlimited => Some("no limit".to_owned()),
        MemoryLimit::Unknown => None,
    }
}

/// What used the memory below the limit.
fn share_table(html: &mut Html, shares: &MemoryShares) {
    html.with("h3", &[], format!("Memory below {} after the kill", shares.cgroup));
    let of = shares.limit_bytes.map(|it| format!(" of {}", size(it))).unwrap_or_default();
    let text = match &shares.taken_by {
        Some(taker) => format!(
            "{} used {}{of}. For comparison: {}.",
            taker.cgroup,
            size(taker.usage_bytes),
            own_share(shares)
        ),
        None => format!("No other cgroup is known to have used most of it{of}: {}.", own_share(shares)),
    };
    html.with("p", &[], text);
    let own = shares.own.usage_bytes.map(|it| (shares.own.cgroup.as_str(), it, true));
    let others = shares.others.iter().map(|it| (it.cgroup.as_str(), it.usage_bytes, false));
    let mut rows: Vec<(&str, u64, bool)> = own.into_iter().chain(others).collect();
    rows.sort_by_key(|it| std::cmp::Reverse(it.1));
    let largest = rows.first().map_or(0, |it| it.1);
    html.element("table", &[], |html| {
        head(html, &["Cgroup", "In use", "of the limit"]);
        html.element("tbody", &[], |html| {
            for (cgroup, usage, is_own) in rows {
                html.element("tr", &[], |html| {
                    html.element("td", &[("class", &"path")], |html| {
                        html.text(cgroup);
                        if is_own {
                            html.text(" ");
                            html.with("span", &[("class", &"badge own")], own_name(shares));
                        }
                    });
                    number(html, Some(usage));
                    bar(
                        html,
                        usage,
                        shares.limit_bytes.unwrap_or(largest),
                        if is_own { "bar own" } else { "bar" },
                    );
                });
            }
        });
    });
}

fn own_name(shares: &MemoryShares) -> &'static str {
    if shares.own.is_container { "this container" } else { "with this container" }
}

/// Headings. All but the first are of numbers.
fn head(html: &mut Html, names: &[&'static str]) {
    html.element("thead", &[], |html| {
        html.element("tr", &[], |html| {
            for (at, name) in names.iter().enumerate() {
                let class = if at == 0 || name.is_empty() || name.starts_with("of ") { "" } else { "number" };
                html.with("th", &[("class", &class)], name);
            }
        });
    });
}

fn number(html: &mut Html, bytes: Option<u64>) {
    let text = match bytes {
        None => NONE.to_owned(),
        Some(0) => "0".to_owned(),
        Some(bytes) => size(bytes),
    };
    html.with("td", &[("class", &"number")], text);
}

/// A bar of this part of a whole.
fn bar(html: &mut Html, part: u64, whole: u64, class: &'static str) {
    let percent = if whole == 0 { 0.0 } else { (part as f64 / whole as f64 * 100.0).min(100.0) };
    html.element("td", &[("class", &"track")], |html| {
        html.element(
            "svg",
            &[("class", &"track"), ("viewBox", &"0 0 100 10"), ("preserveAspectRatio", &"none")],
            |html| {
                let rect = |html: &mut Html, class: &'static str, width: f64| {
                    let width = Px(width);
                    html.element("rect", &[("class", &class), ("width", &width), ("height", &"10")], |_| {});
                };
                rect(html, "whole", 100.0);
                rect(html, class, percent);
            },
        );
    });
}

fn note(html: &mut Html, notes: &[String]) {
    if !notes.is_empty() {
        html.with("p", &[("class", &"note")], notes.join(" "));
    }
}
