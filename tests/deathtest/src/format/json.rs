//! The score card as one JSON document, with every container.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::card::{Card, Counts, Death, Row};
use crate::evidence::Evidence;
use crate::verdict::{Outcome, Reading, Verdict};

/// The whole document.
#[derive(Serialize)]
struct Document<'a> {
    runtime: &'a str,
    right: bool,
    interrupted: bool,
    handlers: Vec<Value>,
    containers: Vec<Container<'a>>,
}

#[derive(Serialize)]
struct Container<'a> {
    id: &'a str,
    handler: &'a str,
    case: &'a str,
    verdict: Verdict,
    expected: &'a Reading,
    outcome: &'a Outcome,
    evidence: &'a Evidence,
}

/// The document's text.
pub(super) fn text(card: &Card) -> String {
    let document = Document {
        runtime: &card.runtime,
        right: card.is_right(),
        interrupted: card.interrupted,
        handlers: card.handlers.iter().map(|name| handler(card, name)).collect(),
        containers: card.deaths.iter().map(container).collect(),
    };
    let text = serde_json::to_string_pretty(&document).expect("strings and numbers have a form in JSON");
    text + "\n"
}

fn handler(card: &Card, name: &str) -> Value {
    let cases: Vec<Value> = card.rows().filter(|row| row.handler == name).map(|row| case(&row)).collect();
    json!({ "name": name, "counts": counts(card.totals(name)), "cases": cases })
}

fn case(row: &Row) -> Value {
    match row.skipped {
        Some(reason) => json!({ "name": row.case, "not-applicable": reason }),
        None => json!({ "name": row.case, "counts": counts(row.counts) }),
    }
}

fn counts(counts: Counts) -> Value {
    let mut object = Map::new();
    object.insert("n".to_owned(), counts.all().into());
    for verdict in Verdict::ALL {
        object.insert(verdict.name().to_owned(), counts.of(verdict).into());
    }
    object.into()
}

fn container(death: &Death) -> Container<'_> {
    let Death { handler, case, container, expected, outcome, evidence, verdict } = death;
    Container { id: container, handler, case, verdict: *verdict, expected, outcome, evidence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::tests::sample;

    #[test]
    fn document_has_every_container() {
        let document: Value = serde_json::from_str(&text(&sample())).unwrap();
        assert_eq!((&document["right"], &document["interrupted"]), (&false.into(), &false.into()));
        assert_eq!(document["handlers"][0]["counts"]["first-wrong"], 1);
        assert_eq!(document["handlers"][1]["cases"][2]["not-applicable"], "memory.oom.group needs cgroup v2");
        assert_eq!(document["containers"].as_array().unwrap().len(), 7);
        let lost = &document["containers"][0];
        assert_eq!(lost["verdict"], "lost");
        assert_eq!(lost["outcome"]["ended"]["last"], json!({ "reason": "Error", "status": 137 }));
        let victim = json!({ "pid": 4711, "command": "dd" });
        assert_eq!(lost["evidence"]["kill"], json!({ "victim": victim, "shown-by": "record" }));
        assert_eq!(document["containers"][4]["evidence"], "none");
    }

    #[test]
    fn verdicts_have_one_name_in_every_format() {
        for verdict in Verdict::ALL {
            assert_eq!(serde_json::to_value(verdict).unwrap(), verdict.name());
        }
    }
}
