//! One report, as its lines come in.

use coroner_proto::agent::{KernelReport, MemoryStat, ProcessMemory, VictimMemory};

use super::KernelLine;
use super::lines::{self, Columns};

/// Processes kept, the largest. The kernel prints all that could have been the victim: of a machine
/// without memory thousands.
const MAX_PROCESSES: usize = 48;
/// Pids of the table that are kept, to know a group's victims by. The kernel's default limit on
/// processes is far above.
const MAX_PIDS: usize = 1024;
/// Victims kept. A group may be as large as a cgroup.
const MAX_VICTIMS: usize = 32;
/// Bytes of a path: the kernel's PATH_MAX.
const MAX_PATH: usize = 4096;

/// A report that is not complete yet, or may get more victims.
#[derive(Debug, Default)]
pub(super) struct Draft {
    report: KernelReport,
    /// The processor or task that printed the first line, where the kernel notes that.
    caller: Option<String>,
    part: Part,
    /// Of the table of processes.
    pids: Vec<u32>,
    /// Processes and victims above the limits.
    left_out: u32,
    /// The pid of the `oom-kill:` line.
    victim: Option<u32>,
}

/// The list that the next lines may belong to.
#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Head,
    Stats,
    Table,
    Rows(Columns),
}

impl Draft {
    /// The report that this line begins.
    pub(super) fn begin(line: &KernelLine<'_>) -> Option<Self> {
        let (comm, score_adj) = lines::invoked(line.text)?;
        let report = KernelReport {
            trigger_comm: comm.to_owned(),
            trigger_score_adj: Some(score_adj),
            ..KernelReport::default()
        };
        Some(Self { report, caller: line.caller.map(str::to_owned), ..Self::default() })
    }

    /// A report without its first lines: they were not read.
    pub(super) fn without_beginning(line: &KernelLine<'_>) -> Self {
        let report = KernelReport { incomplete: true, ..KernelReport::default() };
        Self { report, caller: line.caller.map(str::to_owned), ..Self::default() }
    }

    /// Whether one task printed both. Where the kernel does not note that, it is unknown, and the
    /// lock over all reports (`oom_lock`) keeps them apart.
    pub(super) fn is_by(&self, line: &KernelLine<'_>) -> bool {
        self.caller.as_deref() == line.caller
    }

    /// Records that a line may be missing.
    pub(super) fn lost_lines(&mut self) {
        self.report.incomplete = true;
    }

    /// A line between the first one and `oom-kill:`. `page`: bytes of a page.
    pub(super) fn add(&mut self, line: &str, page: u64) {
        let report = &mut self.report;
        if report.trigger_pid.is_none()
            && let Some(pid) = lines::stack_pid(line, &report.trigger_comm)
        {
            report.trigger_pid = Some(pid);
        } else if let Some(usage) = lines::usage(line) {
            if report.usage.iter().all(|known| known.name != usage.name) {
                report.usage.push(usage);
            }
        } else if let Some((path, rest)) = lines::stats_of(line) {
            // Before Linux 5.2 the cgroups below follow, each with a line.
            if report.limit_cgroup.is_empty() && path.len() <= MAX_PATH {
                report.limit_cgroup = path.to_owned();
                self.part = Part::Stats;
                self.add_stats(rest);
            }
        } else if line.starts_with("Tasks state (memory values in pages)") {
            self.part = Part::Table;
        } else if let Some(columns) = lines::columns(line) {
            match columns {
                Ok(columns) if self.part == Part::Table => self.part = Part::Rows(columns),
                // An unknown kernel: what the columns mean is not guessed.
                Ok(_) | Err(()) => self.lost_lines(),
            }
        } else if let Part::Rows(columns) = self.part {
            if line.starts_with('[') {
                match lines::process(line, columns, page) {
                    Some(process) => self.add_process(process),
                    None => self.lost_lines(),
                }
            }
        } else if self.part == Part::Stats {
            self.add_stats(line);
        }
    }

    fn add_stats(&mut self, line: &str) {
        for stat in lines::stats(line) {
            let same = |known: &MemoryStat| known.name == stat.name;
            if !self.report.stats.iter().any(same) {
                self.report.stats.push(stat);
            }
        }
    }

    fn add_process(&mut self, process: ProcessMemory) {
        if self.pids.len() < MAX_PIDS {
            self.pids.push(process.pid);
        }
        let kept = &mut self.report.processes;
        if kept.len() < MAX_PROCESSES {
            kept.push(process);
            return;
        }
        self.left_out = self.left_out.saturating_add(1);
        if let Some(smallest) = kept.iter_mut().min_by_key(|kept| kept.rss_bytes)
            && smallest.rss_bytes < process.rss_bytes
        {
            *smallest = process;
        }
    }

    /// The `oom-kill:` line ends the tables.
    pub(super) fn choose(&mut self, pid: u32, limit_cgroup: &str) {
        let report = &mut self.report;
        if !report.limit_cgroup.is_empty() && report.limit_cgroup != limit_cgroup {
            // The statistics are another cgroup's.
            report.stats.clear();
            report.usage.clear();
            report.incomplete = true;
        }
        if limit_cgroup.len() <= MAX_PATH {
            report.limit_cgroup = limit_cgroup.to_owned();
        }
        report.processes.shrink_to_fit();
        report.stats.shrink_to_fit();
        self.victim = Some(pid);
    }

    pub(super) fn victim(&self) -> Option<u32> {
        self.victim
    }

    /// `Tasks in PATH are going to be killed`.
    pub(super) fn kill_group(&mut self) {
        self.report.group = Some(true);
    }

    /// Adds a victim if it is one of this report. The kernel prints a group's first victim twice.
    pub(super) fn add_victim(&mut self, victim: &VictimMemory) -> bool {
        let is_chosen = self.victim == Some(victim.pid);
        // The table may be switched off (vm.oom_dump_tasks), or be longer than what is kept of it.
        let is_partial = self.pids.is_empty() || self.pids.len() == MAX_PIDS;
        let is_listed = is_partial || self.pids.contains(&victim.pid);
        let is_of_group = self.report.group == Some(true) && is_listed;
        if !is_chosen && !is_of_group {
            return false;
        }
        if self.report.victims.iter().any(|known| known.pid == victim.pid) {
            return true;
        }
        if self.report.victims.len() < MAX_VICTIMS {
            self.report.victims.push(victim.clone());
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
        true
    }

    /// Whether its victim is there, and no group's victims may follow.
    pub(super) fn is_over(&self) -> bool {
        self.has_victim() && self.report.group != Some(true)
    }

    fn has_victim(&self) -> bool {
        self.report.victims.iter().any(|victim| self.victim == Some(victim.pid))
    }

    /// The limit on memory that the report prints.
    pub(super) fn memory_limit(&self) -> Option<u64> {
        self.report.usage.iter().find(|usage| usage.name == "memory")?.limit_bytes
    }

    /// The report as far as it was read, largest process first, and how many entries it had above
    /// the limits.
    pub(super) fn finished(&self) -> (KernelReport, u32) {
        let mut report = self.report.clone();
        report.processes.sort_by_key(|process| std::cmp::Reverse(process.rss_bytes));
        report.incomplete |= !self.has_victim();
        (report, self.left_out)
    }
}
