//! Records of the kernel's log, as an agent reads them: a container chooses the names of its
//! processes and of its cgroups.

use protobuf::Message as _;

#[path = "../../guest-agent/src/oom_report/mod.rs"]
mod oom_report;

use oom_report::{KernelLine, OomReports, lines};

/// More than the parser's limits on one report allow.
const REPORT: u64 = 24 << 10;

/// Records by line. Whatever they are, a report is bounded.
pub fn kernel_log(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut reports = OomReports::new(4096);
    for line in text.lines().filter_map(KernelLine::parse) {
        if line.text.starts_with("oom-kill:") {
            reports.chosen(&line, 7, "/a");
        } else if let Some(victim) = lines::killed(line.text) {
            reports.killed(&victim);
        } else {
            reports.line(&line);
        }
        let report = reports.finished(line.seq).map(|(report, _)| report.compute_size());
        assert!(report.is_none_or(|bytes| bytes < REPORT));
    }
}
