//! The lines of a report, one function each: what mm/oom_kill.c and mm/memcontrol.c print.
//!
//! A command name may contain anything: where one is in the middle of a line, the line is parsed
//! from its end.

use coroner_proto::agent::{MemoryStat, ProcessMemory, ResourceUsage, VictimMemory};

/// Bytes kept of a command name; the kernel's limit is 16, four times as many when escaped.
const MAX_COMM: usize = 64;
/// Limits from here on mean "no limit": PAGE_COUNTER_MAX, the largest number of pages that a long
/// can count, in bytes. It differs by page size and is above this for all of them.
const NO_LIMIT: u64 = 1 << 62;
/// A record of at least this many bytes may be cut: printk stores at most 1,024 of one call, less a
/// prefix of up to 48.
const MAYBE_CUT: usize = 900;
/// The statistics that are amounts of memory. The others count events or pages: they are not bytes.
/// Of v2 `memory_stats` in mm/memcontrol.c, of v1 `memcg1_stat_names` and the LRU lists; v1 has
/// each a second time for the cgroup with those below it, as `total_NAME`.
const BYTE_STATS: [&str; 35] = [
    "active_anon",
    "active_file",
    "anon",
    "anon_thp",
    "cache",
    "dirty",
    "file",
    "file_dirty",
    "file_mapped",
    "file_thp",
    "file_writeback",
    "hugetlb",
    "inactive_anon",
    "inactive_file",
    "kernel",
    "kernel_stack",
    "mapped_file",
    "pagetables",
    "percpu",
    "rss",
    "rss_huge",
    "sec_pagetables",
    "shmem",
    "shmem_thp",
    "slab",
    "slab_reclaimable",
    "slab_unreclaimable",
    "sock",
    "swap",
    "swapcached",
    "unevictable",
    "vmalloc",
    "writeback",
    "zswap",
    "zswapped",
];

/// The record's first line: `tail invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0,
/// oom_score_adj=0`. The command name and the score.
pub(super) fn invoked(line: &str) -> Option<(&str, i32)> {
    let (comm, rest) = line.rsplit_once(" invoked oom-killer: gfp_mask=")?;
    let (_, score) = rest.rsplit_once(", oom_score_adj=")?;
    Some((truncated(comm), score.trim_end().parse().ok()?))
}

/// The pid in the first line of the stack: `CPU: 0 UID: 0 PID: 7 Comm: tail Not tainted 6.18.0`;
/// before 6.12 without the UID.
pub(super) fn stack_pid(line: &str, comm: &str) -> Option<u32> {
    let (_, rest) = line.strip_prefix("CPU: ")?.split_once(" PID: ")?;
    let (pid, rest) = rest.split_once(" Comm: ")?;
    rest.strip_prefix(comm)?.starts_with(' ').then(|| pid.trim().parse().ok())?
}

/// `memory: usage 65536kB, limit 65536kB, failcnt 191`.
pub(super) fn usage(line: &str) -> Option<ResourceUsage> {
    let (name, rest) = line.split_once(": usage ")?;
    if !["memory", "swap", "memory+swap", "kmem"].contains(&name) {
        return None;
    }
    let (used, rest) = rest.split_once(", limit ")?;
    let (limit, failures) = rest.split_once(", failcnt ")?;
    Some(ResourceUsage {
        name: name.to_owned(),
        usage_bytes: kilobytes(used)?,
        limit_bytes: Some(kilobytes(limit)?).filter(|bytes| *bytes < NO_LIMIT),
        failures: failures.trim_end().parse().ok(),
        ..ResourceUsage::default()
    })
}

/// `Memory cgroup stats for /a:`, and what follows the colon. Before Linux 5.2 the values were in
/// the same line, and each cgroup below had such a line too.
pub(super) fn stats_of(line: &str) -> Option<(&str, &str)> {
    let rest = line.strip_prefix("Memory cgroup stats for ")?;
    match rest.rsplit_once(": cache:") {
        Some((path, _)) => Some((path, &rest[path.len() + 2..])),
        None => Some((rest.strip_suffix(':')?, "")),
    }
}

/// The statistics in a line. One a record: `anon 4096`. Linux 5.2 to 6.4 printed all in one record,
/// with line feeds that /dev/kmsg escapes; earlier kernels printed `cache:0KB rss:4KB`.
pub(super) fn stats(line: &str) -> Vec<MemoryStat> {
    let mut parts: Vec<&str> = line.split("\\x0a").collect();
    if parts.len() > 1 && line.len() >= MAYBE_CUT {
        // The last number may have lost its end.
        parts.pop();
    }
    if parts.len() == 1 && line.contains(':') {
        parts = line.split(' ').collect();
    }
    parts.into_iter().filter_map(stat).collect()
}

fn stat(part: &str) -> Option<MemoryStat> {
    let (name, bytes) = match part.split_once(' ') {
        Some((name, value)) => (name, value.parse().ok()?),
        None => {
            let (name, value) = part.split_once(':')?;
            (name, value.strip_suffix("KB")?.parse::<u64>().ok()?.saturating_mul(1024))
        }
    };
    let known = BYTE_STATS.contains(&name.strip_prefix("total_").unwrap_or(name));
    known.then(|| MemoryStat { name: name.to_owned(), bytes, ..MemoryStat::default() })
}

/// The columns of the table of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Columns {
    /// Before 6.8.
    Rss,
    /// Since 6.8, with rss_anon, rss_file and rss_shmem.
    RssParts,
}

/// The header of the table: `[  pid  ]   uid  tgid total_vm      rss ...`. An unknown one is an
/// error.
pub(super) fn columns(line: &str) -> Option<Result<Columns, ()>> {
    let rest = line.strip_prefix("[  pid  ]")?;
    let names: Vec<&str> = rest.split_whitespace().collect();
    Some(match names.as_slice() {
        ["uid", "tgid", "total_vm", "rss", rest @ ..] => match rest {
            ["pgtables_bytes", "swapents", "oom_score_adj", "name"] => Ok(Columns::Rss),
            ["rss_anon", "rss_file", "rss_shmem", "pgtables_bytes", "swapents", "oom_score_adj", "name"] => {
                Ok(Columns::RssParts)
            }
            _ => Err(()),
        },
        _ => Err(()),
    })
}

/// A row of the table, sizes in pages of `page` bytes.
pub(super) fn process(line: &str, columns: Columns, page: u64) -> Option<ProcessMemory> {
    let (pid, mut rest) = line.strip_prefix('[')?.split_once(']')?;
    let mut number = || -> Option<i64> {
        let (value, after) = rest.trim_start_matches(' ').split_once(' ').unwrap_or((rest.trim(), ""));
        rest = after;
        value.parse().ok()
    };
    let pages = |value: i64| u64::try_from(value).ok().map(|pages| pages.saturating_mul(page));
    let (uid, _tgid) = (number()?, number()?);
    let (total_vm, rss) = (pages(number()?)?, pages(number()?)?);
    let [anon, file, shmem] = match columns {
        Columns::Rss => [None; 3],
        Columns::RssParts => [Some(pages(number()?)?), Some(pages(number()?)?), Some(pages(number()?)?)],
    };
    let (page_tables, swap, score) = (number()?, number()?, number()?);
    Some(ProcessMemory {
        pid: pid.trim().parse().ok()?,
        // `%d` of an unsigned number.
        uid: u32::try_from(uid).or_else(|_| i32::try_from(uid).map(i32::cast_unsigned)).ok()?,
        total_vm_bytes: total_vm,
        rss_bytes: rss,
        anon_bytes: anon,
        file_bytes: file,
        shmem_bytes: shmem,
        page_table_bytes: u64::try_from(page_tables).ok()?,
        swap_bytes: pages(swap)?,
        score_adj: i32::try_from(score).ok()?,
        comm: truncated(rest).to_owned(),
        ..ProcessMemory::default()
    })
}

/// `Memory cgroup out of memory: Killed process 7 (sh) total-vm:52832kB, anon-rss:49920kB,
/// file-rss:1448kB, shmem-rss:0kB, UID:0 pgtables:140kB oom_score_adj:0`. The UID and what follows
/// it are printed since 5.4.
pub(crate) fn killed(line: &str) -> Option<VictimMemory> {
    let (reason, rest) = line.split_once(": Killed process ")?;
    if !["Memory cgroup out of memory", "Out of memory"].contains(&reason) {
        return None;
    }
    let (pid, rest) = rest.split_once(" (")?;
    let (comm, rest) = rest.rsplit_once(") total-vm:")?;
    let (total_vm, rest) = rest.split_once(", anon-rss:")?;
    let (anon, rest) = rest.split_once(", file-rss:")?;
    let (file, rest) = rest.split_once(", shmem-rss:")?;
    let (shmem, rest) = rest.split_once(',').unwrap_or((rest, ""));
    let field = |name: &str| rest.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix(':'));
    Some(VictimMemory {
        pid: pid.parse().ok()?,
        comm: truncated(comm).to_owned(),
        total_vm_bytes: kilobytes(total_vm)?,
        anon_bytes: kilobytes(anon)?,
        file_bytes: kilobytes(file)?,
        shmem_bytes: kilobytes(shmem.trim_end())?,
        uid: field("UID").and_then(|uid| uid.parse().ok()),
        page_table_bytes: field("pgtables").and_then(kilobytes),
        score_adj: field("oom_score_adj").and_then(|score| score.trim_end().parse().ok()),
        ..VictimMemory::default()
    })
}

/// The cgroup in `Tasks in /a are going to be killed due to memory.oom.group set`.
pub(super) fn killed_group(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("Tasks in ")?;
    rest.trim_end().strip_suffix(" are going to be killed due to memory.oom.group set")
}

/// Cuts a command name to at most [`MAX_COMM`] bytes.
pub(crate) fn truncated(comm: &str) -> &str {
    &comm[..comm.floor_char_boundary(MAX_COMM)]
}

fn kilobytes(text: &str) -> Option<u64> {
    text.strip_suffix("kB")?.parse::<u64>().ok().map(|value| value.saturating_mul(1024))
}
