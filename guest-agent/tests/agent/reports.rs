//! What a reader received of one container.

use coroner_proto::agent::{Exited, OomKill, Signal, signal};

/// The signals of one container, each with its seq.
pub(crate) struct ContainerReports {
    pub(crate) kills: Vec<(u64, OomKill)>,
    pub(crate) exit: Option<(u64, Exited)>,
    pub(crate) execs: Vec<(String, Exited)>,
}

impl ContainerReports {
    pub(crate) fn of(signals: &[Signal], id: &str) -> Self {
        let mut reports = Self { kills: Vec::new(), exit: None, execs: Vec::new() };
        for signal in signals.iter().filter(|signal| signal.container_id == id) {
            match (&signal.event, &signal.exec_id) {
                (Some(signal::Event::OomKill(kill)), _) => reports.kills.push((signal.seq, kill.clone())),
                (Some(signal::Event::Exited(exit)), None) => reports.exit = Some((signal.seq, exit.clone())),
                (Some(signal::Event::Exited(exit)), Some(exec)) => {
                    reports.execs.push((exec.clone(), exit.clone()))
                }
                (other, _) => panic!("{other:?}"),
            }
        }
        reports
    }

    pub(crate) fn exited(&self) -> &Exited {
        &self.exit.as_ref().expect("an exit").1
    }

    /// The latest kill, which must precede the exit.
    pub(crate) fn kill_before_exit(&self) -> &OomKill {
        let (seq, kill) = self.kills.last().expect("a kill");
        let (exit, _) = self.exit.as_ref().expect("an exit");
        assert!(seq < exit, "the kill has the lower seq");
        kill
    }
}
