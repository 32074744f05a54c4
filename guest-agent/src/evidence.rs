//! Evidence of the containers' last OOM kills: bounded, and encoded as it is sent.

use std::collections::VecDeque;
use std::str::FromStr;
use std::sync::Arc;

use coroner_proto::agent::{CgroupMemory, Evidence, KernelReport, MemorySample, VictimMemory};
use protobuf::{Message, MessageField};
use tokio::time::Instant;

use crate::kmsg::OomRecord;
use crate::memory_history::RecordedMemory;

/// Kills with evidence: the latest ones of different containers. Most take some 4 KiB each, and
/// none more than the two limits below.
const MAX_KILLS: usize = 16;
/// Encoded bytes of a report, of the cgroups, and of samples and limits. With the rest, that is 16
/// KiB: an answer must fit into a frame, and the evidence of all kills into 256 KiB.
const MAX_REPORT: u64 = 8 << 10;
const MAX_CGROUPS: u64 = 5 << 10;
/// A sample of a container with 64 GiB takes 39 bytes, and 8 limits take 144.
const MAX_HISTORY: u64 = 2560;

/// How much evidence of a kill the agent keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EvidenceDetail {
    /// No evidence.
    None,
    /// Without the names of processes.
    Counts,
    /// With the names of processes.
    #[default]
    Full,
}

impl EvidenceDetail {
    /// Name in the protocol and of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Counts => "counts",
            Self::Full => "full",
        }
    }
}

impl FromStr for EvidenceDetail {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Counts, Self::Full];
        let found = all.into_iter().find(|detail| detail.name() == text);
        found.ok_or_else(|| format!("`{text}` is not none, counts or full"))
    }
}

/// Where the kernel's report of a kill is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ReportSource {
    /// In the log, by its id.
    Record(u64),
    /// The log may have the victim's line without a report.
    Pid(u32),
    /// The victim's line is all that the log has.
    Victim(Box<VictimMemory>),
    /// The kill belongs to the one before: it has that one's report.
    Earlier,
    Unknown,
}

impl ReportSource {
    /// `marked`: the victim by the trace. `is_same`: the kill is part of the one before.
    pub(crate) fn of(record: Option<&OomRecord>, marked: Option<u32>, is_same: bool) -> Self {
        match (record, marked) {
            (Some(record), _) => Self::Record(record.report),
            (None, _) if is_same => Self::Earlier,
            (None, Some(pid)) => Self::Pid(pid),
            (None, None) => Self::Unknown,
        }
    }
}

/// A kill without its evidence yet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PendingEvidence {
    pub(crate) container: String,
    pub(crate) cgroup: Arc<str>,
    pub(crate) seq: u64,
    pub(crate) limit_cgroup: String,
    pub(crate) source: ReportSource,
    pub(crate) memory: RecordedMemory,
}

/// A report and the number of its entries that are left out.
pub(crate) type CountedReport = (KernelReport, u32);

#[derive(Debug)]
struct Kept {
    container: String,
    /// The report in the log, until its last line was read.
    report: Option<u64>,
    /// Cgroups and their entries that are left out.
    cgroups_left_out: u32,
    /// Samples and limits that are left out.
    memory_left_out: u32,
    encoded: Box<[u8]>,
}

impl Kept {
    fn decode(&self) -> Evidence {
        Evidence::parse_from_bytes(&self.encoded).expect("encoded by `encode`")
    }

    /// What is left out of all but the report.
    fn others_left_out(&self) -> u32 {
        self.cgroups_left_out.saturating_add(self.memory_left_out)
    }
}

/// The kills to gather evidence of, and the evidence.
#[derive(Debug)]
pub(crate) struct EvidenceStore {
    detail: EvidenceDetail,
    pending: Vec<PendingEvidence>,
    /// When the first of them is to be gathered.
    due: Option<Instant>,
    kept: VecDeque<Kept>,
}

impl EvidenceStore {
    pub(crate) fn new(detail: EvidenceDetail) -> Self {
        Self { detail, pending: Vec::new(), due: None, kept: VecDeque::new() }
    }

    /// Notes a kill, to be gathered at `due`. It replaces an earlier one of the container.
    pub(crate) fn expect(&mut self, mut pending: PendingEvidence, due: Instant) {
        if self.detail == EvidenceDetail::None {
            return;
        }
        if let Some(at) = self.pending.iter().position(|it| it.container == pending.container) {
            let before = self.pending.remove(at);
            if pending.source == ReportSource::Earlier {
                // Its memory is that of before the first kill.
                (pending.source, pending.memory) = (before.source, before.memory);
            }
        } else if self.pending.len() == MAX_KILLS {
            self.pending.remove(0);
        }
        self.pending.push(pending);
        self.due = self.due.or(Some(due));
    }

    /// When to gather what is pending.
    pub(crate) fn due(&self) -> Instant {
        self.due.unwrap_or_else(Instant::now)
    }

    pub(crate) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn take_pending(&mut self) -> Vec<PendingEvidence> {
        self.due = None;
        std::mem::take(&mut self.pending)
    }

    /// Keeps the evidence of a kill. `left_out`: children of the cgroups that were not read.
    pub(crate) fn put(
        &mut self,
        pending: PendingEvidence,
        report: Option<CountedReport>,
        mut cgroups: Vec<CgroupMemory>,
        left_out: u32,
    ) {
        let before = self.take(&pending.container);
        let (id, report, mut memory) = match (pending.source, before) {
            (ReportSource::Record(id), _) => (Some(id), report, pending.memory),
            (ReportSource::Earlier, Some(before)) => {
                let (report, memory) = parts_of(&before);
                (before.report, report, memory)
            }
            (ReportSource::Earlier, None) => (None, None, pending.memory),
            (ReportSource::Pid(_) | ReportSource::Victim(_) | ReportSource::Unknown, _) => {
                (None, report, pending.memory)
            }
        };
        cut_memory(&mut memory);
        let mut kept = Kept {
            container: pending.container,
            report: id,
            cgroups_left_out: left_out.saturating_add(cut_cgroups(&mut cgroups)),
            memory_left_out: memory.left_out,
            encoded: Box::default(),
        };
        let evidence = Evidence {
            seq: pending.seq,
            detail: self.detail.name().to_owned(),
            cgroups,
            samples: memory.samples,
            limits: memory.limits,
            ..Evidence::default()
        };
        kept.encoded = self.encode(evidence, report, kept.others_left_out());
        if self.kept.len() == MAX_KILLS {
            self.kept.pop_front();
        }
        self.kept.push_back(kept);
    }

    /// The evidence of a container's last kill, encoded.
    pub(crate) fn get(&self, container: &str) -> Option<&[u8]> {
        self.kept.iter().find(|kept| kept.container == container).map(|kept| &*kept.encoded)
    }

    /// Puts the reports in as they are now: a group's victims are logged one by one. `complete`
    /// adds to a new report what the log does not have.
    pub(crate) fn update(
        &mut self,
        report: impl Fn(u64) -> Option<CountedReport>,
        complete: impl Fn(&mut KernelReport),
    ) {
        for at in 0..self.kept.len() {
            let kept = &self.kept[at];
            if let Some((mut latest, left_out)) = kept.report.and_then(&report) {
                let evidence = kept.decode();
                match evidence.report.as_ref() {
                    Some(before) => keep_cgroups(&mut latest, before),
                    None => complete(&mut latest),
                }
                let encoded = self.encode(evidence, Some((latest, left_out)), kept.others_left_out());
                self.kept[at].encoded = encoded;
            }
        }
    }

    /// Notes which reports get no more lines.
    pub(crate) fn close_reports(&mut self, mut is_over: impl FnMut(u64) -> bool) {
        for kept in &mut self.kept {
            kept.report = kept.report.filter(|id| !is_over(*id));
        }
    }

    /// Drops the evidence of a container.
    pub(crate) fn remove(&mut self, container: &str) {
        self.pending.retain(|it| it.container != container);
        self.due = self.due.filter(|_| !self.pending.is_empty());
        drop(self.take(container));
    }

    fn take(&mut self, container: &str) -> Option<Kept> {
        let at = self.kept.iter().position(|kept| kept.container == container)?;
        self.kept.remove(at)
    }

    fn encode(&self, mut evidence: Evidence, report: Option<CountedReport>, left_out: u32) -> Box<[u8]> {
        evidence.left_out = left_out;
        evidence.report = MessageField::from_option(report.map(|(mut report, report_left_out)| {
            if self.detail == EvidenceDetail::Counts {
                remove_names(&mut report);
            }
            let cut = cut_report(&mut report);
            evidence.left_out = left_out.saturating_add(report_left_out).saturating_add(cut);
            report
        }));
        let bytes = evidence
            .write_to_bytes()
            .expect("encoding to memory fails only for missing required fields, and there are none");
        bytes.into_boxed_slice()
    }
}

/// The cgroups of processes as they were read first: a process may have ended since.
fn keep_cgroups(latest: &mut KernelReport, before: &KernelReport) {
    for process in &mut latest.processes {
        let known = before.processes.iter().find(|it| it.pid == process.pid);
        process.cgroup = known.and_then(|it| it.cgroup.clone());
    }
}

/// The report and the memory of a kill, for the next one of the same group.
fn parts_of(kept: &Kept) -> (Option<CountedReport>, RecordedMemory) {
    let evidence = kept.decode();
    let left_out = evidence.left_out.saturating_sub(kept.others_left_out());
    let report = evidence.report.into_option().map(|report| (report, left_out));
    let (samples, limits) = (evidence.samples, evidence.limits);
    (report, RecordedMemory { samples, limits, left_out: kept.memory_left_out })
}

/// The report of a kill of which the kernel's log has the victim's line alone.
pub(crate) fn only_victim(victim: VictimMemory) -> CountedReport {
    (KernelReport { victims: vec![victim], incomplete: true, ..KernelReport::default() }, 0)
}

fn remove_names(report: &mut KernelReport) {
    report.trigger_comm.clear();
    report.processes.iter_mut().for_each(|process| process.comm.clear());
    report.victims.iter_mut().for_each(|victim| victim.comm.clear());
}

/// Halves the longest list until the report is within its limit. Returns how many entries it cut.
fn cut_report(report: &mut KernelReport) -> u32 {
    let mut cut = 0;
    while report.compute_size() > MAX_REPORT {
        let sizes = [encoded(&report.processes), encoded(&report.victims), encoded(&report.stats)];
        let removed = match longest(&sizes) {
            0 => halve(&mut report.processes),
            1 => halve(&mut report.victims),
            _ => halve(&mut report.stats),
        };
        if removed == 0 {
            break;
        }
        cut += removed;
    }
    cut
}

/// Removes the uppermost cgroups while their paths alone take half of the limit, then halves the
/// longest list. Returns how many entries it cut.
fn cut_cgroups(cgroups: &mut Vec<CgroupMemory>) -> u32 {
    let mut cut = 0;
    while encoded(cgroups) > MAX_CGROUPS {
        let paths: usize = cgroups.iter().map(|it| it.path.len()).sum();
        let sizes: Vec<u64> =
            cgroups.iter().map(|it| encoded(&it.children).max(encoded(&it.stats))).collect();
        let is_deep = cgroups.len() > 1 && paths as u64 > MAX_CGROUPS / 2;
        let removed = match cgroups.get_mut(longest(&sizes)) {
            Some(_) if is_deep => halve(cgroups),
            Some(it) if encoded(&it.children) >= encoded(&it.stats) => halve(&mut it.children),
            Some(it) => halve(&mut it.stats),
            None => 0,
        };
        if removed == 0 {
            break;
        }
        cut += removed;
    }
    cut
}

/// Removes the oldest samples, and counts them.
fn cut_memory(memory: &mut RecordedMemory) {
    // With the field's number and the length.
    let size = |list: &[MemorySample]| encoded(list) + 2 * list.len() as u64;
    let limits = encoded(&memory.limits) + 2 * memory.limits.len() as u64;
    let samples = &mut memory.samples;
    let mut excess = (size(samples) + limits).saturating_sub(MAX_HISTORY);
    let is_in_excess = |sample: &&MemorySample| {
        let is_cut = excess > 0;
        excess = excess.saturating_sub(sample.compute_size() + 2);
        is_cut
    };
    let cut = samples.iter().take_while(is_in_excess).count();
    samples.drain(..cut);
    memory.left_out = memory.left_out.saturating_add(u32::try_from(cut).unwrap_or(u32::MAX));
}

fn encoded(list: &[impl Message]) -> u64 {
    list.iter().map(Message::compute_size).sum()
}

fn longest(sizes: &[u64]) -> usize {
    sizes.iter().enumerate().max_by_key(|(_, size)| **size).map_or(0, |(at, _)| at)
}

fn halve<T>(list: &mut Vec<T>) -> u32 {
    let keep = list.len() / 2;
    let removed = list.len() - keep;
    list.truncate(keep);
    u32::try_from(removed).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "evidence_tests.rs"]
mod tests;
