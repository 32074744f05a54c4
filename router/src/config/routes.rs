//! `[[route]]`: which documents lead to which sinks.

use super::check::Check;
use super::{Sink, SinkKind, raw};
use crate::signal::KINDS;

/// The topic of every audit record.
pub const AUDIT: &str = "audit";
/// Bytes of a topic, as those of a report have at most.
const LONGEST: usize = 128;

/// Leads what matches to its sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Topics it is for.
    pub topics: Vec<Pattern>,
    /// Kinds of signal; `None`: all of them.
    pub kinds: Option<Vec<String>>,
    /// Namespaces of pods; `None`: all, and what has none.
    pub namespaces: Option<Vec<Pattern>>,
    /// Names of sinks.
    pub sinks: Vec<String>,
}

impl Route {
    /// Leads every audit record to a sink.
    pub fn of_audit(sink: &str) -> Self {
        let audit = Pattern { start: AUDIT.to_owned(), open: false };
        Self { topics: vec![audit], kinds: None, namespaces: None, sinks: vec![sink.to_owned()] }
    }

    /// Whether it is for this topic.
    pub fn is_for(&self, topic: &str) -> bool {
        self.topics.iter().any(|it| it.matches(topic))
    }

    /// Whether it is for any topic but the audit's.
    pub fn is_for_events(&self) -> bool {
        self.topics.iter().any(|it| it.open || it.start != AUDIT)
    }

    /// Whether it takes what tells of a signal of this kind, of a pod in this namespace.
    pub fn takes(&self, kind: Option<&str>, namespace: Option<&str>) -> bool {
        let kinds = |kinds: &Vec<String>| kind.is_some_and(|kind| kinds.iter().any(|it| it == kind));
        let namespaces =
            |all: &Vec<Pattern>| namespace.is_some_and(|name| all.iter().any(|it| it.matches(name)));
        self.kinds.as_ref().is_none_or(kinds) && self.namespaces.as_ref().is_none_or(namespaces)
    }
}

/// A word, or the start of one and a `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    start: String,
    open: bool,
}

impl Pattern {
    fn new(text: &str) -> Option<Self> {
        let (start, open) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        let good = !text.is_empty() && text.len() <= LONGEST && !start.contains('*');
        good.then(|| Self { start: start.to_owned(), open })
    }

    /// Whether it stands for this word. A `*` never stands for the topic `audit`: who wants reports does not want every record beside.
    pub fn matches(&self, word: &str) -> bool {
        if self.open { word != AUDIT && word.starts_with(&self.start) } else { word == self.start }
    }
}

impl Check {
    /// The routes that are written, and those of sinks that have one by themselves.
    pub(super) fn routes(&mut self, raw: Vec<raw::Route>, sinks: &[Sink], all_read: bool) -> Vec<Route> {
        let before = self.count();
        let mut routes: Vec<Route> = Vec::new();
        for (at, raw) in raw.into_iter().enumerate() {
            routes.extend(self.route(at, raw));
        }
        // With a sink or a route that could not be read, what leads where is not known.
        if !all_read {
            return routes;
        }
        for (at, route) in routes.iter().enumerate() {
            for name in &route.sinks {
                let key = format!("route[{at}].sinks");
                match sinks.iter().find(|sink| sink.name == *name) {
                    None => self.mistake(&key, &format!("no sink is named `{name}`")),
                    Some(sink) if sink.kind.is_lifecycle() => {
                        let kind = sink.kind.name();
                        let message =
                            format!("`{name}` is of type \"{kind}\": no route leads there, the mode does");
                        self.mistake(&key, &message);
                    }
                    Some(_) => {}
                }
            }
        }
        if self.count() > before {
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
                    self.mistake(&format!("sink[{at}]"), &message);
                }
            }
        }
        routes
    }

    fn route(&mut self, at: usize, raw: raw::Route) -> Option<Route> {
        let key = |name: &str| format!("route[{at}].{name}");
        self.unknown(&key(""), &raw.unknown);
        let topics = self.patterns(&key("topics"), raw.topics);
        if topics.is_none() {
            self.required(&key("topics"), "\"audit\", \"/tasks/oom\", \"/tasks/exit\" or those of reports");
        }
        let kinds = self.texts(&key("kinds"), raw.kinds);
        for kind in kinds.iter().flatten().filter(|kind| !KINDS.contains(&kind.as_str())) {
            self.mistake(&key("kinds"), &format!("`{kind}` is not one of {}", KINDS.join(", ")));
        }
        let namespaces = self.patterns(&key("namespaces"), raw.namespaces);
        let sinks = self.texts(&key("sinks"), raw.sinks);
        if sinks.is_none() {
            self.required(&key("sinks"), "the names of sinks");
        }
        Some(Route { topics: topics?, kinds, namespaces, sinks: sinks? })
    }

    fn patterns(&mut self, key: &str, value: Option<toml::Value>) -> Option<Vec<Pattern>> {
        let texts = self.texts(key, value)?;
        let read = texts.iter().map(|text| {
            Pattern::new(text).ok_or_else(|| {
                format!("`{text}` is not 1 to {LONGEST} characters with a * at most at the end")
            })
        });
        let read: Result<Vec<Pattern>, String> = read.collect();
        read.map_err(|error| self.mistake(key, &error)).ok()
    }

    /// A list of strings that is not empty.
    fn texts(&mut self, key: &str, value: Option<toml::Value>) -> Option<Vec<String>> {
        let value = value?;
        let toml::Value::Array(values) = value else {
            self.mistake(key, &format!("is a {}, not a list of strings", value.type_str()));
            return None;
        };
        if values.is_empty() {
            self.mistake(key, "is an empty list: leave it out, or name something");
            return None;
        }
        let texts: Vec<_> = values.into_iter().map(|value| self.text(key, Some(value))).collect();
        texts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_the_rest_but_never_for_the_audit() {
        let matches = |pattern: &str, word: &str| Pattern::new(pattern).unwrap().matches(word);
        assert!(matches("oom-*", "oom-child") && matches("oom-*", "oom-") && !matches("oom-*", "oom"));
        assert!(matches("*", "x") && matches("audit", "audit"));
        assert!(!matches("*", "audit") && !matches("au*", "audit") && matches("au*", "audits"));
        for wrong in ["", "a*b", "**"] {
            assert_eq!(Pattern::new(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_has_no_kind_or_namespace_matches_none_that_is_named() {
        let route = |kinds: Option<&str>, namespaces: Option<&str>| Route {
            topics: vec![Pattern::new("*").unwrap()],
            kinds: kinds.map(|it| vec![it.to_owned()]),
            namespaces: namespaces.map(|it| vec![Pattern::new(it).unwrap()]),
            sinks: Vec::new(),
        };
        assert!(route(None, None).takes(None, None));
        assert!(!route(Some("exited"), None).takes(None, None));
        assert!(!route(None, Some("*")).takes(Some("exited"), None));
        assert!(route(Some("exited"), Some("prod-*")).takes(Some("exited"), Some("prod-1")));
        assert!(!route(Some("exited"), Some("prod-*")).takes(Some("oom-kill"), Some("prod-1")));
        assert!(!route(Some("exited"), Some("prod-*")).takes(Some("exited"), Some("test")));
    }
}
