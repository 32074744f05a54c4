//! The keys of `[[route]]`, and what is wrong with them.

use coroner_core::table::{Mistakes, Table};
use coroner_sinks::route::LONGEST_TOPIC;

use super::{Pattern, Route, SinkKind, SinkSettings};
use coroner_core::signal::KINDS;

/// Reads a route.
pub(super) fn read(mut table: Table<'_>) -> Option<Route> {
    let topics = patterns(&mut table, "topics");
    let topics =
        table.required("topics", topics, "\"audit\", \"/tasks/oom\", \"/tasks/exit\" or those of reports");
    let kinds = texts(&mut table, "kinds");
    for kind in kinds.iter().flatten().filter(|kind| !KINDS.contains(&kind.as_str())) {
        table.wrong("kinds", format_args!("`{kind}` is not one of {}", KINDS.join(", ")));
    }
    let namespaces = patterns(&mut table, "namespaces");
    let sinks = texts(&mut table, "sinks");
    let sinks = table.required("sinks", sinks, "the names of sinks");
    table.end();
    Some(Route { topics: topics?, kinds, namespaces, sinks: sinks? })
}

fn patterns(table: &mut Table<'_>, name: &str) -> Option<Vec<Pattern>> {
    let read = texts(table, name)?.into_iter().map(|text| {
        let wrong = format!("`{text}` is not 1 to {LONGEST_TOPIC} characters with a * at most at the end");
        Pattern::new(&text).ok_or(wrong)
    });
    Some(read.filter_map(|pattern| table.checked(name, pattern)).collect())
}

/// The strings of a list that is not empty.
fn texts(table: &mut Table<'_>, name: &str) -> Option<Vec<String>> {
    let texts = table.texts(name)?;
    let named = (!texts.is_empty()).then_some(texts);
    table.required(name, named, "an empty list names nothing; leave the key out, or name something")
}

/// Checks where routes lead, and adds those of sinks that have one by default. All sinks and routes
/// could be read.
pub(super) fn link(mut routes: Vec<Route>, sinks: &[SinkSettings], mistakes: &Mistakes) -> Vec<Route> {
    let before = mistakes.count();
    for (at, route) in routes.iter().enumerate() {
        for name in &route.sinks {
            let key = format!("route[{at}].sinks");
            match sinks.iter().find(|sink| sink.name == *name) {
                None => mistakes.add(&key, format_args!("no sink is named `{name}`")),
                Some(sink) if sink.kind.is_lifecycle() => {
                    let kind = sink.kind.name();
                    let message =
                        format!("`{name}` is of type \"{kind}\": no route leads there, the mode does");
                    mistakes.add(&key, message);
                }
                Some(_) => {}
            }
        }
    }
    if mistakes.count() > before {
        return routes;
    }
    for (at, sink) in sinks.iter().enumerate() {
        if routes.iter().any(|route| route.sinks.contains(&sink.name)) {
            continue;
        }
        match sink.kind {
            SinkKind::Containerd | SinkKind::OomFile => {}
            SinkKind::Jsonl(_) => routes.push(Route::of_audit(&sink.name)),
            SinkKind::Webhook(_) | SinkKind::Unix(_) => {
                let message = format!("no [[route]] names `{}`: nothing would go there", sink.name);
                mistakes.add(&format!("sink[{at}]"), message);
            }
        }
    }
    routes
}
