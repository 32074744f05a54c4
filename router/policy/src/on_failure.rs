//! `on_failure` of a policy's file: what rules in place of a call that failed or was skipped.

use coroner_core::ruling::Action;
use coroner_core::signal::Event;
use coroner_core::table::{Mistakes, Table};
use serde::{Deserialize, Serialize};
use toml::Value;

/// The highest exit status, as legality allows it.
const MAX_STATUS: u32 = 255;

/// What rules where a policy fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The draft before it.
    #[default]
    Draft,
    /// It is called in quarantine too, and once more after a fault; then the draft before it.
    Hold,
    /// A fixed ruling.
    #[serde(untagged)]
    Fixed(FixedRuling),
}

/// What a fixed ruling changes of the draft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct FixedRuling {
    /// Whether it has a task-oom; `None`: as in the draft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_oom: Option<bool>,
    /// Status of its task-exit; `None`: as in the draft.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
}

impl OnFailure {
    /// Reads the value of the key; `None`: it is missing.
    pub(super) fn read(value: Option<Value>, mistakes: &Mistakes) -> Self {
        match value {
            None => Self::Draft,
            Some(Value::Table(values)) => FixedRuling::read(values, mistakes),
            Some(Value::String(text)) if text == "draft" => Self::Draft,
            Some(Value::String(text)) if text == "hold" => Self::Hold,
            Some(other) => {
                let value =
                    other.as_str().map_or_else(|| other.type_str().to_owned(), |it| format!("`{it}`"));
                mistakes.add("on_failure", format_args!("{value} is not \"draft\", \"hold\" or a table"));
                Self::Draft
            }
        }
    }
}

impl FixedRuling {
    fn read(mut values: toml::Table, mistakes: &Mistakes) -> OnFailure {
        let before = mistakes.count();
        let mut fixed = Self::default();
        match values.remove("task-oom") {
            Some(Value::Boolean(task_oom)) => fixed.task_oom = Some(task_oom),
            None => {}
            Some(_) => mistakes.add("on_failure.task-oom", "is not true or false"),
        }
        match values.remove("status").map(|it| it.as_integer().and_then(|it| u32::try_from(it).ok())) {
            Some(Some(status)) if status <= MAX_STATUS => fixed.status = Some(status),
            None => {}
            Some(_) => mistakes.add("on_failure.status", "is not a whole number from 0 to 255"),
        }
        Table::new("on_failure", values, mistakes).end();
        if fixed == Self::default() && mistakes.count() == before {
            mistakes.add("on_failure", "has neither task-oom nor status");
        }
        OnFailure::Fixed(fixed)
    }

    /// The draft with this ruling. Only kills and ends have one: a fixed task-oom for every
    /// pressure signal would report kills that never were.
    pub(super) fn apply(self, event: &Event, draft: &[Action]) -> Vec<Action> {
        match event {
            Event::OomKill(_) | Event::Exited(_) | Event::GuestLost(_) => {}
            Event::Pressure(_)
            | Event::KillRequest(_)
            | Event::Evidence(_)
            | Event::Other(_)
            | Event::Forwarded(_) => {
                return draft.to_vec();
            }
        }
        let kept = draft.iter().filter(|it| self.task_oom.is_none() || **it != Action::TaskOom);
        let mut actions: Vec<Action> = kept
            .map(|action| match (action, self.status) {
                (Action::TaskExit(_), Some(status)) => Action::TaskExit(Some(status)),
                (other, _) => other.clone(),
            })
            .collect();
        if self.task_oom == Some(true) {
            actions.insert(0, Action::TaskOom);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coroner_core::signal::{Exited, KillRequest};

    const EXIT: [Action; 1] = [Action::TaskExit(None)];

    fn exited() -> Event {
        Event::Exited(Exited::unknown())
    }

    #[test]
    fn fixed_ruling_changes_what_it_names_of_the_draft() {
        let apply =
            |task_oom, status, draft: &[Action]| FixedRuling { task_oom, status }.apply(&exited(), draft);
        let both = [Action::TaskOom, Action::TaskExit(Some(3))];
        assert_eq!(apply(Some(true), Some(3), &EXIT), both);
        assert_eq!(apply(Some(true), None, &both), both, "one task-oom, not two");
        assert_eq!(apply(Some(false), None, &both), [Action::TaskExit(Some(3))]);
        assert_eq!(apply(None, Some(0), &both), [Action::TaskOom, Action::TaskExit(Some(0))]);
        assert_eq!(apply(None, Some(7), &[]), [], "no exit is due");
    }

    #[test]
    fn fixed_ruling_leaves_other_kinds_of_signal_alone() {
        let fixed = FixedRuling { task_oom: Some(true), status: Some(3) };
        let request = Event::KillRequest(KillRequest { signal: 9, all: false });
        assert_eq!(fixed.apply(&request, &[]), []);
    }

    #[test]
    fn every_form_is_read_and_every_mistake_is_named() {
        let read = |text: &str| {
            let mistakes = Mistakes::default();
            let mut file: toml::Table = toml::from_str(text).unwrap();
            let read = OnFailure::read(file.remove("on_failure"), &mistakes);
            let keys: Vec<String> = mistakes.all().into_iter().map(|it| it.key).collect();
            (read, keys)
        };
        let fixed = |task_oom, status| (OnFailure::Fixed(FixedRuling { task_oom, status }), vec![]);
        assert_eq!(read(""), (OnFailure::Draft, vec![]));
        assert_eq!(read("on_failure = 'draft'"), (OnFailure::Draft, vec![]));
        assert_eq!(read("on_failure = 'hold'"), (OnFailure::Hold, vec![]));
        assert_eq!(read("[on_failure]\ntask-oom = true\nstatus = 0"), fixed(Some(true), Some(0)));
        assert_eq!(read("[on_failure]\ntask-oom = false"), fixed(Some(false), None));
        for (text, keys) in [
            ("on_failure = 'skip'", &["on_failure"][..]),
            ("on_failure = 3", &["on_failure"]),
            ("[on_failure]", &["on_failure"]),
            ("[on_failure]\nstatus = 256", &["on_failure.status"]),
            (
                "[on_failure]\nstatus = -1\ntask-oom = 1\nexit = 2",
                &["on_failure.task-oom", "on_failure.status", "on_failure.exit"],
            ),
        ] {
            assert_eq!(read(text).1, keys, "{text}");
        }
    }
}
