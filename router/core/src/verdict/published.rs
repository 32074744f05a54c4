//! What was published about an end, as containerd's CRI shows it, and the policy that put it there.

use serde::Serialize;

use super::records::DeathRecords;
use crate::audit::{PlannedState, Ruled};
use crate::mode::Known;
use crate::native_default::default_ruling;
use crate::ruling::{Action, FailureHandled, Opinion, Ruling};

/// The reason that CRI shows of a container that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CriReason {
    /// A TaskOOM was published.
    #[serde(rename = "OOMKilled")]
    OomKilled,
    /// Status 0.
    Completed,
    /// Another status.
    Error,
}

impl CriReason {
    /// The name in CRI.
    pub fn name(self) -> &'static str {
        match self {
            Self::OomKilled => "OOMKilled",
            Self::Completed => "Completed",
            Self::Error => "Error",
        }
    }
}

/// What was published about an end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CriView {
    /// `None`: it has not ended, or the records do not show what other publishers published.
    pub reason: Option<CriReason>,
    /// The status of the exit; `None`: not known, or not published.
    pub status: Option<u32>,
    /// The router's TaskOOM; `None`: it published none.
    pub oom: Option<PublishedAction>,
    /// The router's TaskExit; `None`: its shim publishes the exit.
    pub exit: Option<PublishedAction>,
}

/// An event that the router publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PublishedAction {
    /// What put it into the ruling; `None`: the record of the ruling is lost.
    pub by: Option<RulingAuthor>,
    /// The first sink that it was queued for; `None`: it was withheld, or the record is lost.
    pub sink: Option<String>,
    /// Whether that sink has it.
    pub delivered: Option<bool>,
}

/// What put an action into a ruling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RulingAuthor {
    /// The policy; `None`: the native default.
    pub policy: Option<String>,
    /// The rule that decided, by the policy's name for it.
    pub rule: Option<String>,
    /// Its reason.
    pub because: Option<String>,
}

impl RulingAuthor {
    fn native(ruled: &Ruled) -> Self {
        // A record of another version may have another default.
        let default = default_ruling(&ruled.signal, &ruled.case);
        let default = Some(default).filter(|it| it.actions == ruled.draft);
        let (rule, because) = default.map(|it| (it.rule, it.because)).unzip();
        Self { policy: None, rule: rule.flatten(), because }
    }

    fn of(opinion: &Opinion) -> Self {
        let policy = Some(opinion.policy.clone());
        match &opinion.ruling {
            Some(Ruling::Decide(it)) => {
                Self { policy, rule: it.rule.clone(), because: Some(it.because.clone()) }
            }
            Some(Ruling::Pass) | None => {
                let kind = opinion.fault.as_ref().map_or("unknown", |fault| fault.kind.name());
                let because = format!("it failed ({kind}) and its on_failure is a fixed ruling");
                Self { policy, rule: None, because: Some(because) }
            }
        }
    }
}

/// What put `action` into the ruling: not the last policy that decided, if that one kept the action
/// of the draft before it.
pub(super) fn author(ruled: &Ruled, action: &Action) -> RulingAuthor {
    if let Some(why) = &ruled.illegal {
        let because = Some(format!("the ruling is not legal: {why}"));
        return RulingAuthor { policy: None, rule: None, because };
    }
    let (mut draft, mut author) = (ruled.draft.as_slice(), RulingAuthor::native(ruled));
    for opinion in &ruled.rulings {
        let next = match (&opinion.ruling, &opinion.on_failure) {
            (Some(Ruling::Decide(decision)), _) => &decision.actions,
            (None, Some(FailureHandled::Fixed(actions))) => actions,
            (Some(Ruling::Pass) | None, _) => continue,
        };
        // The native default as a policy's own ruling is that policy's.
        let confirms = author.policy.is_none() && next.as_slice() == draft;
        if next.contains(action) && (confirms || !draft.contains(action)) {
            author = RulingAuthor::of(opinion);
        } else if !next.contains(action) {
            author = RulingAuthor::native(ruled);
        }
        draft = next;
    }
    author
}

impl DeathRecords<'_> {
    pub(super) fn cri_view(&self) -> CriView {
        let oom =
            self.is_oom.then(|| self.published(self.oom, &Action::TaskOom, |it| *it == Action::TaskOom));
        let end = self.end_ruled();
        let exit = end
            .filter(|it| it.actions.iter().any(is_exit))
            .map(|it| self.published(Some(it), &Action::TaskExit(None), is_exit));
        let status = self.status(exit.as_ref());
        let has_ended = self.exit.is_some() || self.lost.is_some();
        let reason = match (&oom, status) {
            _ if !has_ended => None,
            // Without its record it was resumed: it was queued.
            (Some(oom), _) if oom.sink.is_some() || self.oom.is_none() => Some(CriReason::OomKilled),
            // The shim may have published a TaskOOM of its own.
            _ if self.kill.is_some() && !end.is_some_and(|it| it.case.knows(Known::OomWritable)) => None,
            (_, Some(0)) => Some(CriReason::Completed),
            (_, Some(_)) => Some(CriReason::Error),
            // An unknown status is published as 255.
            (_, None) if exit.as_ref().is_some_and(|it| it.sink.is_some()) => Some(CriReason::Error),
            (_, None) => None,
        };
        CriView { reason, status, oom, exit }
    }

    /// The published status of the end.
    fn status(&self, exit: Option<&PublishedAction>) -> Option<u32> {
        let seen = self.exit.and_then(|(_, exited)| exited.status);
        let Some(exit) = exit else {
            // The shim's own, unless the record of the router's ruling is lost.
            return seen.filter(|_| self.end_ruled().is_some());
        };
        exit.sink.as_ref()?;
        let ruled = self.end_ruled()?.actions.iter().find_map(|action| match action {
            Action::TaskExit(status) => *status,
            Action::TaskOom | Action::Report(_) => None,
        });
        ruled.or(seen)
    }

    fn published(
        &self,
        ruled: Option<&Ruled>,
        kind: &Action,
        is: impl Fn(&Action) -> bool,
    ) -> PublishedAction {
        let topic = kind.topic();
        let action = ruled.and_then(|ruled| Some((ruled, ruled.actions.iter().find(|it| is(it))?)));
        let by = action.map(|(ruled, action)| author(ruled, action));
        let sink = ruled.and_then(|ruled| {
            let mut plans = ruled.delivery.iter().filter(|it| it.state == PlannedState::Queued);
            plans.find(|it| it.topic == topic)?.sink.clone()
        });
        let delivered = sink.as_ref().zip(ruled).map(|(sink, ruled)| self.has(&ruled.signal.id, topic, sink));
        PublishedAction { by, sink, delivered }
    }
}

fn is_exit(action: &Action) -> bool {
    matches!(action, Action::TaskExit(_))
}
