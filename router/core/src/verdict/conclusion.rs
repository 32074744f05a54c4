//! The verdict of a container's records.

use super::Verdict;
use super::certainty::certainty;
use super::records::DeathRecords;

impl DeathRecords<'_> {
    /// What they show.
    pub fn verdict(&self) -> Verdict {
        let exit = self.exit.map(|(signal, exited)| self.exit_facts(signal, exited));
        let kill = self.kill.map(|(signal, kill)| self.kill_facts(signal, kill));
        let ended_by = self.ended_by(exit.as_ref(), kill.as_ref());
        Verdict {
            ended_by,
            certainty: certainty(ended_by, exit.as_ref(), kill.as_ref(), self.is_oom),
            unknown: self.gaps(exit.as_ref(), kill.as_ref()),
            guest_lost: self.lost.map(|lost| lost.reason.clone()),
            published: self.cri_view(),
            exit,
            kill,
            evidence: self.evidence.clone(),
        }
    }
}
