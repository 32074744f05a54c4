//! Policy: replaces the exit status of a container by a configured table.
//!
//! A tool that exits 3 for "nothing to do" need not fail its Job: published as 0 it succeeds. The
//! first entry that matches the exit of a container's init applies; exits of execs stay.
//!
//! Put it into the policy directory as `90-exit-code-map.wasm`, after the policies that rule on
//! OOMs, with its table in `90-exit-code-map.toml`:
//!
//! ```toml
//! [[config.map]]
//! from = 3
//! to = 0
//! namespace = "batch-*"
//! container = "sync"
//!
//! [[config.map]]
//! from = 137
//! to = 247
//! when = "oom"
//! ```
//!
//! | key | default | what it does |
//! |---|---|---|
//! | `from` | required | the status to replace, 0 to 255; after a change by an earlier policy, the changed status |
//! | `to` | required | the status to publish instead |
//! | `namespace`, `container` | any | only for this namespace, and for containers of this name; a `*` at the end matches any rest. An unknown name does not match |
//! | `when` | `"any"` | `"oom"`: only for containers with a ruled OOM; `"no-oom"`: only for others |
//!
//! It needs `status-writable`, as in the modes `proxy` and `sole`; elsewhere it passes.

use coroner_sdk::prelude::*;
use serde::Deserialize;
use serde_json::Value;

/// Its table.
#[derive(Debug, Default)]
pub struct ExitCodeMap {
    entries: Vec<Entry>,
}

/// The configured table. Each entry is parsed by itself, so that a mistake has its index.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    map: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    from: u8,
    to: u8,
    namespace: Option<Name>,
    container: Option<Name>,
    #[serde(default)]
    when: When,
}

/// Whether an OOM was ruled for the container.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum When {
    #[default]
    Any,
    Oom,
    NoOom,
}

/// A name, or with a `*` how it begins.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Name {
    text: String,
    begins: bool,
}

impl TryFrom<String> for Name {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (text, begins) = match text.strip_suffix('*') {
            Some(beginning) => (beginning.to_owned(), true),
            None => (text, false),
        };
        // No name contains a star: such an entry would never match.
        if text.contains('*') { Err("a * may stand at the end alone") } else { Ok(Self { text, begins }) }
    }
}

impl Name {
    /// An unknown name does not match.
    fn fits(&self, name: Option<&String>) -> bool {
        name.is_some_and(|name| if self.begins { name.starts_with(&self.text) } else { *name == self.text })
    }
}

impl Policy for ExitCodeMap {
    const NAME: &str = "exit-code-map";

    fn wants() -> Kinds {
        Kinds::EXITED
    }

    fn needs() -> Known {
        Known::STATUS_WRITABLE
    }

    fn config_schema() -> Option<String> {
        Some(include_str!("../config.schema.json").to_owned())
    }

    fn configure(json: &str) -> Result<Self, Mistakes> {
        let table: Table = config::parse(json)?;
        let (mut entries, mut mistakes) = (Vec::new(), Mistakes::new());
        for (at, entry) in table.map.iter().enumerate() {
            match config::parse(&entry.to_string()) {
                Ok(entry) => entries.push(entry),
                Err(wrong) => mistakes.extend(wrong.into_iter().map(|(key, message)| {
                    let dot = if key.is_empty() { "" } else { "." };
                    (format!("map[{at}]{dot}{key}"), message)
                })),
            }
        }
        if mistakes.is_empty() { Ok(Self { entries }) } else { Err(mistakes) }
    }

    fn rule(&self, signal: &Signal, case: &CaseFile, draft: &[Action]) -> Result<Ruling, String> {
        if !case.known.contains(Known::STATUS_WRITABLE) {
            return Ok(Ruling::Pass);
        }
        let Some(exited) = signal.exit_of_init() else { return Ok(Ruling::Pass) };
        let ruled = draft.iter().find_map(|action| match action {
            Action::TaskExit(status) => Some(status.or_else(|| exited.code())),
            Action::TaskOom | Action::Report(_) => None,
        });
        let Some(Some(status)) = ruled else { return Ok(Ruling::Pass) };
        let oom = case.oom_sent || draft.contains(&Action::TaskOom);
        let owner = signal.target.owner.as_ref();
        let found = self.entries.iter().enumerate().find(|(_, entry)| entry.fits(status, oom, owner));
        let Some((at, Entry { to, .. })) = found else { return Ok(Ruling::Pass) };
        let actions: Vec<Action> = draft
            .iter()
            .map(|action| match action {
                Action::TaskExit(_) => Action::TaskExit(Some(u32::from(*to))),
                Action::TaskOom | Action::Report(_) => action.clone(),
            })
            .collect();
        Ok(Ruling::decide(actions, format!("status {status} is shown as {to}, by map[{at}]"))
            .by_rule("mapped"))
    }
}

export_policy!(ExitCodeMap);

impl Entry {
    fn fits(&self, status: u32, oom: bool, owner: Option<&Owner>) -> bool {
        let name = |wanted: &Option<Name>, name: fn(&Owner) -> Option<&String>| {
            wanted.as_ref().is_none_or(|wanted| wanted.fits(owner.and_then(name)))
        };
        let when = match self.when {
            When::Any => true,
            When::Oom => oom,
            When::NoOom => !oom,
        };
        u32::from(self.from) == status
            && when
            && name(&self.namespace, |owner| owner.namespace.as_ref())
            && name(&self.container, |owner| owner.container.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OOM: Action = Action::TaskOom;
    const EXIT: Action = Action::TaskExit(None);

    /// The table of the page's example and more, one of them never reached.
    fn policy() -> ExitCodeMap {
        ExitCodeMap::configure(
            r#"{"map": [
                {"from": 3, "to": 0, "namespace": "batch-*", "container": "sync"},
                {"from": 137, "to": 247, "when": "oom"},
                {"from": 137, "to": 1, "when": "no-oom"},
                {"from": 137, "to": 2},
                {"from": 255, "to": 4, "namespace": "*"},
                {"from": 0, "to": 5, "when": "any"},
                {"from": 134, "to": 6, "when": "no-oom"}
            ]}"#,
        )
        .unwrap()
    }

    fn exit(status: u32) -> Signal {
        let exited = Exited { is_init: Some(true), status: Some(status), ..testing::exited() };
        owned(Some("batch-1"), Some("sync"), testing::signal(Event::Exited(exited)))
    }

    fn owned(namespace: Option<&str>, container: Option<&str>, mut signal: Signal) -> Signal {
        signal.target.owner = Some(Owner {
            pod: None,
            namespace: namespace.map(str::to_owned),
            pod_uid: None,
            container: container.map(str::to_owned),
            image: None,
        });
        signal
    }

    fn ours() -> CaseFile {
        CaseFile { known: Known::STATUS_WRITABLE | Known::EXIT_WRITABLE, ..testing::case() }
    }

    fn rule(signal: &Signal, case: &CaseFile, draft: &[Action]) -> Option<Decision> {
        match policy().rule(signal, case, draft) {
            Ok(Ruling::Decide(decision)) => Some(decision),
            Ok(Ruling::Pass) => None,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn first_matching_entry_replaces_status() {
        let after_oom = CaseFile { oom_sent: true, ..ours() };
        let by_signal = Exited { signal: ExitSignal::Some(9), ..testing::exited() };
        let nameless = Signal { target: testing::signal(Event::Exited(by_signal.clone())).target, ..exit(3) };
        let cases = [
            ("both names", exit(3), ours(), vec![EXIT], Some(0)),
            ("another namespace", owned(Some("batch"), Some("sync"), exit(3)), ours(), vec![EXIT], None),
            ("it only ends so", owned(Some("my-batch-1"), Some("sync"), exit(3)), ours(), vec![EXIT], None),
            ("another container", owned(Some("batch-1"), Some("sync-2"), exit(3)), ours(), vec![EXIT], None),
            ("the namespace is not known", owned(None, Some("sync"), exit(3)), ours(), vec![EXIT], None),
            ("the container is not known", owned(Some("batch-1"), None, exit(3)), ours(), vec![EXIT], None),
            ("the owner is not known", nameless, ours(), vec![EXIT], None),
            ("any name, if there is one", exit(255), ours(), vec![EXIT], Some(4)),
            ("an OOM is ruled now", exit(137), ours(), vec![OOM, EXIT], Some(247)),
            ("an OOM was ruled before", exit(137), after_oom, vec![EXIT], Some(247)),
            ("no OOM", exit(137), ours(), vec![EXIT], Some(1)),
            ("no OOM, and there is no other entry", exit(134), ours(), vec![EXIT], Some(6)),
            ("an OOM, and there is no other entry", exit(134), ours(), vec![OOM, EXIT], None),
            ("by signal alone", testing::signal(Event::Exited(by_signal)), ours(), vec![EXIT], Some(1)),
            ("a success", exit(0), ours(), vec![EXIT], Some(5)),
            ("no entry", exit(7), ours(), vec![EXIT], None),
            ("what it became before", exit(7), ours(), vec![Action::TaskExit(Some(3))], Some(0)),
            ("what it was before that", exit(3), ours(), vec![Action::TaskExit(Some(7))], None),
            ("not known", testing::signal(Event::Exited(testing::exited())), ours(), vec![EXIT], None),
        ];
        for (name, signal, case, draft, expect) in cases {
            let actions = rule(&signal, &case, &draft).map(|it| it.actions);
            let shown = actions.map(|mut actions| actions.pop());
            assert_eq!(shown, expect.map(|to| Some(Action::TaskExit(Some(to)))), "{name}");
        }
    }

    #[test]
    fn it_leaves_alone_what_is_not_its_own() {
        let mut exec = exit(3);
        exec.target.exec_id = Some("e1".to_owned());
        let exec_by_flag = Exited { is_init: Some(false), status: Some(3), ..testing::exited() };
        let exec_by_flag = Signal { event: Event::Exited(exec_by_flag), ..exit(3) };
        let elsewhere = CaseFile { known: Known::all() - Known::STATUS_WRITABLE, ..ours() };
        let lost = Event::GuestLost(GuestLost { reason: "gone".to_owned() });
        let cases = [
            ("an exec", exec, ours(), vec![EXIT]),
            ("an exec, by its flag", exec_by_flag, ours(), vec![EXIT]),
            ("the status is not ours", exit(3), elsewhere, vec![EXIT]),
            ("the exit is not ours", exit(3), ours(), vec![]),
            ("a lost guest", Signal { event: lost, ..exit(3) }, ours(), vec![EXIT]),
        ];
        for (name, signal, case, draft) in cases {
            assert_eq!(rule(&signal, &case, &draft), None, "{name}");
        }
    }

    #[test]
    fn other_actions_kept_and_reason_names_the_entry() {
        let report = Action::Report(Report {
            topic: "team".to_owned(),
            reason: "Killed".to_owned(),
            message: "it ended".to_owned(),
            fields: vec![],
        });
        let decision = rule(&exit(137), &ours(), &[OOM, report.clone(), EXIT]);
        let expect = Decision {
            actions: vec![OOM, report, Action::TaskExit(Some(247))],
            because: "status 137 is shown as 247, by map[1]".to_owned(),
            rule: Some("mapped".to_owned()),
        };
        assert_eq!(decision, Some(expect));
    }

    #[test]
    fn each_key_that_is_wrong_is_named_with_its_place() {
        let expected_when = "unknown variant `never`, expected one of `any`, `oom`, `no-oom`";
        let known = "unknown key; known are from, to, namespace, container, when";
        let cases: [(&str, &[(&str, &str)]); 8] = [
            (
                r#"{"map": [{"from": 256, "to": -1}]}"#,
                &[
                    ("map[0].from", "invalid value: integer `256`, expected u8"),
                    ("map[0].to", "invalid value: integer `-1`, expected u8"),
                ],
            ),
            (r#"{"map": [{"from": 1, "to": 2}, {"from": 1}]}"#, &[("map[1].to", "missing")]),
            (r#"{"map": [{"from": 1, "to": 2, "when": "never"}]}"#, &[("map[0].when", expected_when)]),
            (r#"{"map": [{"from": 1, "to": 2, "pod": "x"}]}"#, &[("map[0].pod", known)]),
            (
                r#"{"map": [{"from": 1, "to": 2, "namespace": "a*b", "container": "**"}]}"#,
                &[
                    ("map[0].container", "a * may stand at the end alone"),
                    ("map[0].namespace", "a * may stand at the end alone"),
                ],
            ),
            (
                r#"{"map": [1]}"#,
                &[("map[0]", "invalid type: integer `1`, expected a map at line 1 column 1")],
            ),
            (r#"{"map": {}}"#, &[("map", "invalid type: map, expected a sequence")]),
            (r#"{"maps": []}"#, &[("maps", "unknown key; known are map")]),
        ];
        for (json, expect) in cases {
            let mistakes = ExitCodeMap::configure(json).err().unwrap_or_default();
            let mistakes: Vec<(&str, &str)> =
                mistakes.iter().map(|(k, m)| (k.as_str(), m.as_str())).collect();
            assert_eq!(mistakes, expect, "{json}");
        }
        assert!(ExitCodeMap::configure("{}").is_ok_and(|policy| policy.entries.is_empty()));
    }
}
