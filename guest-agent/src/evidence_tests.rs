use super::*;
use coroner_proto::agent::{ChildUsage, LimitChange, MemoryStat, ProcessMemory};

fn pending(container: &str, seq: u64, source: ReportSource) -> PendingEvidence {
    let (cgroup, limit_cgroup) = (Arc::from("/a/c"), "/a".to_owned());
    let memory = RecordedMemory::default();
    PendingEvidence { container: container.to_owned(), cgroup, seq, limit_cgroup, source, memory }
}

fn victim(pid: u32) -> VictimMemory {
    VictimMemory { pid, comm: "v".repeat(64), anon_bytes: u64::MAX, ..VictimMemory::default() }
}

/// As large as the parser makes one.
fn largest_report() -> KernelReport {
    let process = |pid| ProcessMemory {
        pid,
        uid: u32::MAX,
        total_vm_bytes: u64::MAX,
        rss_bytes: u64::MAX - u64::from(pid),
        anon_bytes: Some(u64::MAX),
        file_bytes: Some(u64::MAX),
        shmem_bytes: Some(u64::MAX),
        page_table_bytes: u64::MAX,
        swap_bytes: u64::MAX,
        score_adj: -1000,
        comm: "p".repeat(64),
        ..ProcessMemory::default()
    };
    let stat = |at| MemoryStat { name: format!("total_stat_{at}"), bytes: u64::MAX, ..MemoryStat::default() };
    KernelReport {
        trigger_comm: "t".repeat(64),
        limit_cgroup: "/x".repeat(2048),
        stats: (0..70).map(stat).collect(),
        processes: (0..48).map(process).collect(),
        victims: (0..32).map(victim).collect(),
        ..KernelReport::default()
    }
}

fn largest_cgroups() -> Vec<CgroupMemory> {
    let child = |at| {
        let path = format!("{}/{at}", "/y".repeat(2000));
        ChildUsage { path, usage_bytes: u64::MAX, ..ChildUsage::default() }
    };
    let stat = |at| MemoryStat { name: format!("total_stat_{at}"), bytes: u64::MAX, ..MemoryStat::default() };
    let cgroup = |level: usize| CgroupMemory {
        path: "/x".repeat(2048 - level),
        stats: (0..8).map(stat).collect(),
        children: (0..16).map(child).collect(),
        ..CgroupMemory::default()
    };
    (0..16).map(cgroup).collect()
}

/// Of a container with as many bytes, which stalled for an hour, on a machine that is up for a
/// month.
fn recorded(samples: u64, bytes: u64) -> RecordedMemory {
    const MONTH: u64 = 30 * 86_400_000_000_000;
    let sample = |at| MemorySample {
        boot_ns: MONTH + at * 1_000_000_000,
        usage_bytes: bytes / 2 + at,
        limit_bytes: Some(bytes),
        some_us: Some(3_600_000_000 + at),
        full_us: Some(3_600_000_000),
        ..MemorySample::default()
    };
    let limit = |at| LimitChange { boot_ns: MONTH + at, limit_bytes: Some(bytes), ..LimitChange::default() };
    let (samples, limits) = ((0..samples).map(sample).collect(), (0..8).map(limit).collect());
    RecordedMemory { samples, limits, left_out: 2 }
}

fn decoded(store: &EvidenceStore, container: &str) -> Evidence {
    Evidence::parse_from_bytes(store.get(container).unwrap()).unwrap()
}

#[test]
fn largest_evidence_is_cut_and_counted() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    let (report, cgroups) = (largest_report(), largest_cgroups());
    let memory = recorded(60, u64::MAX);
    let pending = PendingEvidence { memory, ..pending("c", 7, ReportSource::Record(1)) };
    store.put(pending, Some((report, 5)), cgroups, 100);
    assert!(store.get("c").unwrap().len() <= 16 << 10);
    let evidence = decoded(&store, "c");
    assert_eq!((evidence.seq, evidence.detail.as_str()), (7, "full"));
    let report = &*evidence.report;
    // The largest and the first are kept.
    assert_eq!(report.processes[0].pid, 0);
    assert_eq!((report.victims[0].pid, evidence.cgroups[0].path.len()), (0, 4096));
    let kept = report.stats.len() + report.processes.len() + report.victims.len();
    assert!(report.processes.len() >= 6, "{}", report.processes.len());
    assert_eq!((evidence.cgroups.len(), evidence.cgroups[0].stats.len()), (1, 8));
    // The latest samples.
    assert!((50..60).contains(&evidence.samples.len()), "{}", evidence.samples.len());
    assert_eq!(evidence.samples[..], recorded(60, u64::MAX).samples[60 - evidence.samples.len()..]);
    assert_eq!(evidence.limits.len(), 8);
    // Children and statistics of a cgroup that is cut itself are counted with it as one.
    let kept = kept + evidence.samples.len();
    let cut = u32::try_from(70 + 48 + 32 + 60 - kept).unwrap() + 5 + 100 + 2;
    assert!(evidence.left_out > cut, "{} {cut}", evidence.left_out);
}

#[test]
fn usual_evidence_is_not_cut() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    let mut report = largest_report();
    report.limit_cgroup = "/a".to_owned();
    report.processes.truncate(10);
    report.victims.truncate(1);
    let cgroup = |path: &str| CgroupMemory { path: path.to_owned(), ..CgroupMemory::default() };
    let cgroups = vec![cgroup("/a/c"), cgroup("/a"), cgroup("/")];
    let memory = recorded(60, 64 << 30);
    let pending = PendingEvidence { memory: memory.clone(), ..pending("c", 7, ReportSource::Record(1)) };
    store.put(pending, Some((report.clone(), 0)), cgroups.clone(), 0);
    let evidence = decoded(&store, "c");
    assert_eq!((&*evidence.report, &evidence.cgroups, evidence.left_out), (&report, &cgroups, 2));
    assert_eq!((evidence.samples, evidence.limits), (memory.samples, memory.limits));
}

#[test]
fn counts_have_no_names_of_processes() {
    let mut store = EvidenceStore::new(EvidenceDetail::Counts);
    let report = KernelReport { limit_cgroup: "/a".to_owned(), ..largest_report() };
    store.put(pending("c", 7, ReportSource::Record(1)), Some((report, 0)), vec![], 0);
    let evidence = decoded(&store, "c");
    assert_eq!((evidence.detail.as_str(), evidence.report.limit_cgroup.as_str()), ("counts", "/a"));
    let names = || {
        let processes = evidence.report.processes.iter().map(|it| &it.comm);
        processes.chain(evidence.report.victims.iter().map(|it| &it.comm))
    };
    assert!(names().count() > 0 && names().all(String::is_empty));
    assert_eq!(evidence.report.trigger_comm, "");
    assert_eq!(evidence.report.victims[0].anon_bytes, u64::MAX);
}

#[test]
fn oldest_of_too_many_kills_is_evicted() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    for kill in 0..20 {
        let pending = pending(&format!("c{kill}"), kill, ReportSource::Record(kill));
        store.expect(pending.clone(), Instant::now());
        store.put(pending, Some((largest_report(), 0)), largest_cgroups(), 0);
    }
    assert_eq!(store.take_pending().len(), 16);
    assert!(store.get("c3").is_none() && store.get("c4").is_some());
    let bytes: usize = store.kept.iter().map(|kept| kept.encoded.len()).sum();
    assert!(store.kept.len() == 16 && bytes <= 256 << 10);
    store.remove("c4");
    assert!(store.get("c4").is_none());
}

#[test]
fn cgroups_of_processes_are_those_that_were_read_first() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    let report = || {
        let processes = vec![ProcessMemory { pid: 7, ..ProcessMemory::default() }];
        Some((KernelReport { processes, ..KernelReport::default() }, 0))
    };
    let complete = |name: &'static str| {
        move |report: &mut KernelReport| report.processes[0].cgroup = Some(name.to_owned())
    };
    let cgroup = |store: &EvidenceStore| decoded(store, "c").report.processes[0].cgroup.clone();
    store.put(pending("c", 7, ReportSource::Record(1)), None, vec![], 0);
    store.update(|_| report(), complete("/first"));
    store.update(|_| report(), complete("/later"));
    assert_eq!(cgroup(&store).as_deref(), Some("/first"));
}

#[test]
fn later_kill_of_a_group_keeps_its_report() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    let report = |pids: &[u32]| {
        let victims = pids.iter().copied().map(victim).collect();
        (KernelReport { limit_cgroup: "/a".to_owned(), victims, ..KernelReport::default() }, 3)
    };
    let victims = |store: &EvidenceStore| decoded(store, "c").report.victims.len();
    store.put(pending("c", 7, ReportSource::Record(1)), Some(report(&[1])), vec![], 2);
    store.update(|_| Some(report(&[1, 2])), |_| ());
    assert_eq!((victims(&store), decoded(&store, "c").left_out), (2, 5));
    store.put(pending("c", 8, ReportSource::Earlier), None, vec![], 1);
    assert_eq!((decoded(&store, "c").seq, victims(&store), decoded(&store, "c").left_out), (8, 2, 4));
    store.update(|id| (id == 1).then(|| report(&[1, 2, 3])), |_| ());
    assert_eq!(victims(&store), 3);
    store.close_reports(|id| id != 1);
    store.update(|_| Some(report(&[1, 2, 3])), |_| ());
    store.close_reports(|id| id == 1);
    store.update(|_| Some(report(&[])), |_| ());
    assert_eq!(victims(&store), 3);
    store.put(pending("c", 9, ReportSource::Earlier), None, vec![], 0);
    assert_eq!(victims(&store), 3);
    // Another kill has a report of its own, or none.
    store.put(pending("c", 10, ReportSource::Unknown), None, vec![], 0);
    assert!(decoded(&store, "c").report.is_none());
}

#[test]
fn kill_before_its_evidence_is_gathered_replaces_the_first() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    store.expect(pending("c", 7, ReportSource::Record(1)), Instant::now());
    store.expect(pending("d", 8, ReportSource::Unknown), Instant::now());
    store.expect(pending("c", 9, ReportSource::Earlier), Instant::now());
    let expect = [pending("d", 8, ReportSource::Unknown), pending("c", 9, ReportSource::Record(1))];
    assert_eq!(store.take_pending(), expect);
    assert!(!store.is_pending());
}

#[test]
fn nothing_is_kept_without_detail() {
    let mut store = EvidenceStore::new(EvidenceDetail::None);
    store.expect(pending("c", 7, ReportSource::Record(1)), Instant::now());
    assert!(!store.is_pending());
    let parsed = ["none", "counts", "full"].map(|name| name.parse::<EvidenceDetail>().unwrap().name());
    assert_eq!(parsed, ["none", "counts", "full"]);
}

#[test]
fn later_kill_of_a_group_keeps_the_memory_before_the_first() {
    let mut store = EvidenceStore::new(EvidenceDetail::Full);
    let of = |seq, samples, source| PendingEvidence {
        memory: recorded(samples, 1 << 30),
        ..pending("c", seq, source)
    };
    store.expect(of(7, 3, ReportSource::Record(1)), Instant::now());
    store.expect(of(8, 4, ReportSource::Earlier), Instant::now());
    let first = store.take_pending().remove(0);
    assert_eq!((first.seq, first.memory.samples.len()), (8, 3));
    store.put(first, None, vec![], 1);
    store.put(of(9, 5, ReportSource::Earlier), None, vec![], 1);
    let evidence = decoded(&store, "c");
    assert_eq!((evidence.seq, evidence.samples.len(), evidence.left_out), (9, 3, 3));
    store.put(of(10, 6, ReportSource::Record(2)), None, vec![], 0);
    assert_eq!((decoded(&store, "c").samples.len(), decoded(&store, "c").left_out), (6, 2));
    store.remove("c");
    store.put(of(11, 7, ReportSource::Earlier), None, vec![], 0);
    assert_eq!(decoded(&store, "c").samples.len(), 7);
}
