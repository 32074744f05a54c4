//! Lowers the evidence of an OOM kill to the types of contract 0.2.0.

use coroner_core::signal::{self, KillEvidence};

use super::v0_2::evidence as wit;

/// A copy of the evidence, as a component receives it.
pub(crate) fn kill_evidence(evidence: &KillEvidence) -> wit::KillEvidence {
    wit::KillEvidence {
        kill: evidence.kill.clone(),
        has_names: evidence.has_names(),
        report: evidence.report.as_ref().map(report),
        cgroups: evidence.cgroups.iter().map(cgroup).collect(),
        samples: evidence.samples.iter().map(sample).collect(),
        limits: evidence.limits.iter().map(|it| (it.boot_ns, it.limit_bytes)).collect(),
        left_out: evidence.left_out,
    }
}

fn report(report: &signal::KernelReport) -> wit::KernelReport {
    wit::KernelReport {
        trigger_comm: report.trigger_comm.clone(),
        trigger_pid: report.trigger_pid,
        limit_cgroup: report.limit_cgroup.clone(),
        usage: report.usage.iter().map(usage).collect(),
        stats: report.stats.clone(),
        processes: report.processes.iter().map(process).collect(),
        victims: report.victims.iter().map(killed).collect(),
        group: report.group,
        incomplete: report.incomplete,
    }
}

fn usage(usage: &signal::ResourceUsage) -> wit::ResourceUsage {
    wit::ResourceUsage {
        name: usage.name.clone(),
        usage: usage.usage_bytes,
        limit: usage.limit_bytes,
        failures: usage.failures,
    }
}

fn process(process: &signal::ProcessMemory) -> wit::Process {
    wit::Process {
        pid: process.pid,
        comm: process.comm.clone(),
        uid: process.uid,
        total_vm: process.total_vm_bytes,
        rss: process.rss_bytes,
        anon: process.anon_bytes,
        file: process.file_bytes,
        shmem: process.shmem_bytes,
        page_table: process.page_table_bytes,
        swap: process.swap_bytes,
        score_adj: process.score_adj,
    }
}

fn killed(victim: &signal::VictimMemory) -> wit::Killed {
    wit::Killed {
        pid: victim.pid,
        comm: victim.comm.clone(),
        total_vm: victim.total_vm_bytes,
        anon: victim.anon_bytes,
        file: victim.file_bytes,
        shmem: victim.shmem_bytes,
    }
}

fn cgroup(cgroup: &signal::CgroupMemory) -> wit::CgroupMemory {
    wit::CgroupMemory {
        path: cgroup.path.clone(),
        usage: cgroup.usage_bytes,
        peak: cgroup.peak_bytes,
        limit: match cgroup.limit {
            signal::MemoryLimit::Bytes(bytes) => wit::MemoryLimit::Bytes(bytes),
            signal::MemoryLimit::Unlimited => wit::MemoryLimit::Unlimited,
            signal::MemoryLimit::Unknown => wit::MemoryLimit::Unknown,
        },
        kills: cgroup.kills,
        stats: cgroup.stats.clone(),
        children: cgroup.children.clone(),
    }
}

fn sample(sample: &signal::MemorySample) -> wit::Sample {
    wit::Sample {
        boot_ns: sample.boot_ns,
        usage: sample.usage_bytes,
        limit: sample.limit_bytes,
        some_us: sample.some_us,
        full_us: sample.full_us,
    }
}
