use super::*;
use coroner_proto::agent::{MemoryStat, ProcessMemory};

const PAGE: u64 = 4096;
const KIB: u64 = 1024;

/// Every record's report, by what the kernel's log contains.
fn reports(records: &str) -> OomReports {
    let mut reports = OomReports::new(PAGE);
    for record in records.lines() {
        add(&mut reports, record);
    }
    reports
}

/// As `kmsg` does.
fn add(reports: &mut OomReports, record: &str) {
    let Some(line) = KernelLine::parse(record) else { return };
    if let Some(rest) = line.text.strip_prefix("oom-kill:") {
        let pid = rest.rsplit_once(",pid=").unwrap().1.split(',').next().unwrap().parse().unwrap();
        let limit = rest.split_once(",oom_memcg=").map_or("/", |(_, it)| it.split(',').next().unwrap());
        reports.chosen(&line, pid, limit);
    } else if let Some(victim) = lines::killed(line.text) {
        reports.killed(&victim);
    } else {
        reports.line(&line);
    }
}

/// The only report of a fixture.
fn only(records: &str) -> KernelReport {
    let reports = reports(records);
    let ids: Vec<u64> = reports.chosen.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(ids.len(), 1);
    let (report, left_out) = reports.finished(ids[0]).unwrap();
    assert_eq!(left_out, 0);
    report
}

fn stat(report: &KernelReport, name: &str) -> Option<u64> {
    report.stats.iter().find(|stat| stat.name == name).map(|stat: &MemoryStat| stat.bytes)
}

fn usage(report: &KernelReport) -> Vec<(&str, u64, Option<u64>, Option<u64>)> {
    let fields = |it: &'_ coroner_proto::agent::ResourceUsage| (it.usage_bytes, it.limit_bytes, it.failures);
    report
        .usage
        .iter()
        .map(|it| {
            let (usage, limit, failures) = fields(it);
            (it.name.as_str(), usage / KIB, limit.map(|limit| limit / KIB), failures)
        })
        .collect()
}

fn trigger(report: &KernelReport) -> (&str, Option<u32>, Option<i32>) {
    (&report.trigger_comm, report.trigger_pid, report.trigger_score_adj)
}

fn pages(process: &ProcessMemory) -> (u32, u64, Option<u64>, &str) {
    let anon = process.anon_bytes.map(|bytes| bytes / PAGE);
    (process.pid, process.rss_bytes / PAGE, anon, &process.comm)
}

#[test]
fn captured_report_of_a_parents_limit_is_parsed() {
    let report = only(include_str!("fixtures/v1-6.18-parent.txt"));
    assert_eq!(trigger(&report), ("tail", Some(13877), Some(0)));
    assert_eq!(report.limit_cgroup, "/wtc-cap");
    let expect = [
        ("memory", 65536, Some(65536), Some(191)),
        ("memory+swap", 65536, None, Some(0)),
        ("kmem", 384, None, Some(0)),
    ];
    assert_eq!(usage(&report), expect);
    assert_eq!((stat(&report, "rss"), stat(&report, "total_rss")), (Some(0), Some(66_711_552)));
    // Counts of events are not bytes, and the limits are in `usage`.
    for name in ["total_pgpgin", "total_workingset_refault_file", "hierarchical_memory_limit"] {
        assert_eq!(stat(&report, name), None, "{name}");
    }
    let processes: Vec<_> = report.processes.iter().map(pages).collect();
    let expect = [
        (13877, 12842, Some(12480), "tail"),
        (13831, 5371, Some(3744), "python3"),
        (13876, 397, Some(0), "sh"),
    ];
    assert_eq!(processes, expect);
    let tail = &report.processes[0];
    assert_eq!((tail.file_bytes, tail.shmem_bytes), (Some(362 * PAGE), Some(0)));
    assert_eq!((tail.total_vm_bytes, tail.page_table_bytes, tail.swap_bytes), (13208 * PAGE, 143_360, 0));
    let victim = &report.victims[0];
    assert_eq!((report.victims.len(), victim.pid, victim.comm.as_str()), (1, 13877, "tail"));
    assert_eq!((victim.total_vm_bytes, victim.anon_bytes), (52832 * KIB, 49920 * KIB));
    assert_eq!((victim.file_bytes, victim.shmem_bytes), (1448 * KIB, 0));
    assert_eq!((victim.uid, victim.page_table_bytes, victim.score_adj), (Some(0), Some(140 * KIB), Some(0)));
    assert_eq!((report.group, report.incomplete), (None, false));
}

#[test]
fn captured_command_name_with_brackets_is_kept() {
    let report = only(include_str!("fixtures/v1-6.18-comm.txt"));
    let comm = "(a\\x0a, pid=1) [ 7";
    assert_eq!(trigger(&report), (comm, Some(25093), Some(0)));
    assert_eq!(pages(&report.processes[0]), (25093, 5732, Some(4064), comm));
    let victim = &report.victims[0];
    assert_eq!((victim.comm.as_str(), victim.anon_bytes), (comm, 4064 * PAGE));
    assert!(!report.incomplete);
}

#[test]
fn statistics_in_one_record_lose_only_the_cut_one() {
    let records = include_str!("fixtures/v2-6.1.txt");
    let report = only(records);
    assert_eq!(trigger(&report), ("tail", Some(4242), Some(-997)));
    assert_eq!(usage(&report)[1], ("swap", 0, None, Some(0)));
    assert_eq!((stat(&report, "anon"), stat(&report, "slab")), (Some(16_314_368), Some(291_064)));
    let victim = &report.processes[0];
    assert_eq!((pages(victim), victim.uid), ((4242, 4240, None, " a b "), u32::MAX - 1));
    assert_eq!((victim.swap_bytes, victim.score_adj), (12 * PAGE, -997));
    assert_eq!(report.victims[0].uid, Some(u32::MAX - 1));
    // The end of the record may be the middle of a number.
    let cut = records.find("\\x0aslab 291064").unwrap();
    let end = cut + records[cut..].find('\n').unwrap();
    let counts = "\\x0apgscan 219".repeat(40);
    let cut = format!("{}{counts}{}{}", &records[..cut], "\\x0aslab 29", &records[end..]);
    assert_eq!((stat(&only(&cut), "slab"), stat(&only(&cut), "slab_unreclaimable")), (None, Some(187_520)));
}

#[test]
fn group_kill_has_every_victim_once() {
    let report = only(include_str!("fixtures/v2-6.12-group.txt"));
    assert_eq!((report.group, report.limit_cgroup.as_str(), report.incomplete), (Some(true), "/pod1", false));
    let victims: Vec<_> = report.victims.iter().map(|it| (it.pid, it.anon_bytes / KIB)).collect();
    // 99 is another OOM's, which the kernel did not report.
    assert_eq!(victims, [(71, 76000), (70, 240)]);
    // Another task's and an interrupt's records between its lines are not its own.
    assert_eq!(usage(&report)[0], ("memory", 131_072, Some(131_072), Some(7)));
    assert_eq!(stat(&report, "anon"), Some(16_314_368));
}

#[test]
fn report_of_the_machine_names_the_root() {
    let report = only(include_str!("fixtures/global-6.12.txt"));
    assert_eq!((report.limit_cgroup.as_str(), report.usage.len(), report.stats.len()), ("/", 0, 0));
    assert_eq!(pages(&report.processes[0]), (301, 440_000, Some(440_000), "hog"));
    assert_eq!((report.victims[0].uid, report.incomplete), (Some(33), false));
}

#[test]
fn statistics_in_the_cgroups_line_are_of_the_first_cgroup() {
    let report = only(include_str!("fixtures/v1-5.0.txt"));
    assert_eq!(report.limit_cgroup, "/a: b");
    assert_eq!((stat(&report, "cache"), stat(&report, "rss")), (Some(4 * KIB), Some(8064 * KIB)));
    let victim = &report.victims[0];
    assert_eq!((victim.uid, victim.page_table_bytes, victim.score_adj), (None, None, None));
}

#[test]
fn report_with_missing_lines_is_incomplete() {
    let records = include_str!("fixtures/v1-6.18-parent.txt");
    let from = |start: &str| only(&records[records.find(start).unwrap()..]);
    // The agent started in the middle of it.
    let middle = from("6,413");
    assert!(middle.incomplete && middle.processes.is_empty() && middle.victims.len() == 1);
    assert_eq!(middle.limit_cgroup, "/wtc-cap");
    // The victim's line is not there yet.
    let before = only(&records[..records.find("3,418").unwrap()]);
    assert!(before.incomplete && before.processes.len() == 3);
    // A kernel with other columns.
    let unknown = only(&records.replace("swapents", "swapped"));
    assert!(unknown.incomplete && unknown.processes.is_empty());
    let mut reports = OomReports::new(PAGE);
    for record in records.lines() {
        if record.starts_with("6,380") {
            reports.lost_lines();
        }
        add(&mut reports, record);
    }
    assert!(reports.finished(417).unwrap().0.incomplete);
}

#[test]
fn spared_victim_has_no_report() {
    let mut reports = reports(include_str!("fixtures/v1-6.18-parent.txt"));
    reports.spared(1);
    assert!(reports.finished(417).is_some());
    reports.spared(13877);
    assert!(reports.finished(417).is_none());
}

#[test]
fn report_is_released_once_its_victims_are_known() {
    let records = include_str!("fixtures/v1-6.18-parent.txt");
    let mut before = reports(&records[..records.find("3,418").unwrap()]);
    assert!(!before.release(417));
    add(&mut before, &records[records.find("3,418").unwrap()..]);
    assert!(!before.release(416) && before.release(417));
    assert!(before.finished(417).is_none());
    let mut group = reports(include_str!("fixtures/v2-6.12-group.txt"));
    let id = group.chosen[0].0;
    assert!(!group.release(id) && group.finished(id).is_some());
}

#[test]
fn records_of_processes_are_not_of_the_kernel() {
    let records = include_str!("fixtures/v1-6.18-parent.txt");
    let written: String = records.lines().map(|record| format!("1{record}\n")).collect();
    assert!(reports(&written).chosen.is_empty());
    assert_eq!(KernelLine::parse("6,1,2,-,caller=C1;a;b\n X=y\n").unwrap().text, "a;b");
}

#[test]
fn longest_report_keeps_the_largest_processes() {
    let records = include_str!("fixtures/v1-6.18-parent.txt");
    let (before, after) = records.split_at(records.find("6,417").unwrap());
    let mut many = before.to_owned();
    for pid in 1..=5001 {
        let rss = if pid == 5001 { 1 } else { pid + 20000 };
        let row = format!("[{pid:7}]     0 {pid:5}    99999 {rss:8} 0 0 0    40960        0     0 p");
        many.push_str(&format!("6,413,1,-;{row}\n"));
    }
    let reports = reports(&(many + after));
    let (report, left_out) = reports.finished(417).unwrap();
    assert_eq!((report.processes.len(), left_out), (48, 5004 - 48));
    assert_eq!(report.processes[0].rss_bytes, 25000 * PAGE);
    assert_eq!(report.processes[47].rss_bytes, (25000 - 47) * PAGE);
}

#[test]
fn other_lines_are_not_of_a_victim() {
    let line = "Out of memory: Killed process 7 (a) total-vm:1kB, anon-rss:2kB, file-rss:3kB, shmem-rss:4kB";
    assert_eq!(lines::killed(line).unwrap().shmem_bytes, 4096);
    for bad in ["", "A out of memory", "Out of memory", "7 ", "7 (a", "total-vm:1", "file-rss:3kB, "] {
        let other = if bad.is_empty() { String::new() } else { line.replacen(bad, "x", 1) };
        assert_eq!(lines::killed(&other).is_some(), bad == "A out of memory", "{other}");
    }
    assert_eq!(lines::killed(&line.replace('7', "-3")), None);
    assert_eq!(lines::killed(&format!("A{line}")), None);
}

/// Pieces of reports in any order, cut anywhere: a small generator of its own, with a fixed seed.
#[test]
fn arbitrary_records_never_panic_and_stay_bounded() {
    let fixtures = [
        include_str!("fixtures/v1-6.18-parent.txt"),
        include_str!("fixtures/v1-6.18-comm.txt"),
        include_str!("fixtures/v2-6.1.txt"),
        include_str!("fixtures/v2-6.12-group.txt"),
        include_str!("fixtures/v1-5.0.txt"),
    ];
    let lines: Vec<&str> = fixtures.iter().flat_map(|it| it.lines()).collect();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let mut reports = OomReports::new(PAGE);
    for _ in 0..40_000 {
        let (first, second) = (lines[random(lines.len())], lines[random(lines.len())]);
        let mut record = first.as_bytes()[..random(first.len() + 1)].to_vec();
        record.extend(&second.as_bytes()[random(second.len())..]);
        for _ in 0..random(3) {
            let at = random(record.len());
            record[at] = u8::try_from(random(256)).unwrap();
        }
        let record = String::from_utf8_lossy(&record).into_owned();
        let Some(line) = KernelLine::parse(&record) else { continue };
        match (random(20), lines::killed(line.text)) {
            (0, _) => reports.chosen(&line, 7, "/a"),
            (_, Some(victim)) => reports.killed(&victim),
            _ => reports.line(&line),
        }
        assert!(reports.chosen.len() <= MAX_REPORTS);
        for (_, draft) in &reports.chosen {
            let (report, _) = draft.finished();
            assert!(protobuf::Message::compute_size(&report) < 24 << 10);
            assert!(report.processes.len() <= 48 && report.victims.len() <= 32);
        }
    }
}
