//! The OOM killer's reports in the kernel's log: `dump_header` and what follows it in
//! mm/oom_kill.c. Pure: it is given one record at a time.
//!
//! The kernel prints a report under `oom_lock`, so two of them do not mix. Records of anything else
//! may be between its lines. A report begins with `invoked oom-killer`, the record `oom-kill:`
//! names its victim, and each `Killed process` after it is found by its pid.

mod draft;
pub(crate) mod lines;

use std::collections::VecDeque;

use coroner_proto::agent::{KernelReport, VictimMemory};

use self::draft::Draft;

/// Reports kept until their kill is recorded. Each takes some 10 KiB at most. The kernel prints ten
/// in five seconds, and a kill is recorded within milliseconds.
const MAX_REPORTS: usize = 8;

/// A record of the kernel's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KernelLine<'a> {
    /// Its sequence number: rises by one with each record.
    pub(crate) seq: u64,
    /// The task or the processor that printed it; not noted by every kernel.
    pub(crate) caller: Option<&'a str>,
    pub(crate) text: &'a str,
}

impl<'a> KernelLine<'a> {
    /// Parses a record of /dev/kmsg: Documentation/ABI/testing/dev-kmsg. None: a process wrote it.
    pub(crate) fn parse(record: &'a str) -> Option<Self> {
        let (prefix, rest) = record.split_once(';')?;
        let mut fields = prefix.split(',');
        // Facility 0 is the kernel.
        let priority: u32 = fields.next()?.parse().ok()?;
        if priority >> 3 != 0 {
            return None;
        }
        let seq = fields.next()?.parse().ok()?;
        let caller = fields.find_map(|field| field.strip_prefix("caller="));
        Some(Self { seq, caller, text: rest.lines().next()? })
    }
}

/// The reports of kills that are not recorded yet.
#[derive(Debug)]
pub(crate) struct OomReports {
    /// Bytes of a page.
    page: u64,
    open: Option<Box<Draft>>,
    /// By the sequence number of their `oom-kill:` record, the latest last.
    chosen: VecDeque<(u64, Box<Draft>)>,
}

impl OomReports {
    /// `page`: bytes of a page.
    pub(crate) fn new(page: u64) -> Self {
        Self { page, open: None, chosen: VecDeque::new() }
    }

    /// Adds a line that is neither an `oom-kill:` record nor a `Killed process`.
    pub(crate) fn line(&mut self, line: &KernelLine<'_>) {
        if let Some(draft) = Draft::begin(line) {
            self.open = Some(Box::new(draft));
        } else if let Some(open) = self.open.as_mut().filter(|open| open.is_by(line)) {
            open.add(line.text, self.page);
        } else if lines::killed_group(line.text).is_some()
            && let Some((_, latest)) = self.chosen.back_mut().filter(|(_, it)| it.is_by(line))
        {
            latest.kill_group();
        }
    }

    /// Adds an `oom-kill:` record. `limit_cgroup`: "/" when the machine ran out of memory.
    pub(crate) fn chosen(&mut self, line: &KernelLine<'_>, pid: u32, limit_cgroup: &str) {
        let open = self.open.take().filter(|open| open.is_by(line));
        let mut draft = open.unwrap_or_else(|| Box::new(Draft::without_beginning(line)));
        draft.choose(pid, limit_cgroup);
        if self.chosen.len() == MAX_REPORTS {
            self.chosen.pop_front();
        }
        self.chosen.push_back((line.seq, draft));
    }

    /// Adds a `Killed process`. Of several reports it is the latest one's: a pid may be reused.
    pub(crate) fn killed(&mut self, victim: &VictimMemory) {
        for (_, draft) in self.chosen.iter_mut().rev() {
            if draft.add_victim(victim) {
                return;
            }
        }
    }

    /// Drops the report of a victim that was not killed.
    pub(crate) fn spared(&mut self, pid: u32) {
        self.chosen.retain(|(_, draft)| draft.victim() != Some(pid));
    }

    /// Records that lines were overwritten before they were read.
    pub(crate) fn lost_lines(&mut self) {
        let latest = self.chosen.back_mut().map(|(_, draft)| draft);
        self.open.iter_mut().chain(latest).for_each(|draft| draft.lost_lines());
    }

    /// Drops a report that gets no more lines. A group's victims are printed right after the first:
    /// it is known to be none a moment later. Whether it was dropped.
    pub(crate) fn release(&mut self, id: u64) -> bool {
        let at = self.chosen.iter().position(|(seq, draft)| *seq == id && draft.is_over());
        at.and_then(|at| self.chosen.remove(at)).is_some()
    }

    /// Drops the reports that have a victim: their kills are recorded, or not of a container.
    pub(crate) fn clear(&mut self) {
        self.chosen = VecDeque::new();
    }

    /// The memory limit in a report.
    pub(crate) fn memory_limit(&self, id: u64) -> Option<u64> {
        self.draft(id)?.memory_limit()
    }

    /// A report as far as it was read, and the number of its entries above the limits.
    pub(crate) fn finished(&self, id: u64) -> Option<(KernelReport, u32)> {
        self.draft(id).map(Draft::finished)
    }

    fn draft(&self, id: u64) -> Option<&Draft> {
        self.chosen.iter().find(|(seq, _)| *seq == id).map(|(_, draft)| &**draft)
    }
}

#[cfg(test)]
mod tests;
