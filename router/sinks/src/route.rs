//! Routes: which documents lead to which sinks.

use std::fmt;

/// The topic of every audit record.
pub const AUDIT: &str = "audit";
/// Bytes of a topic, as those of a report have at most.
pub const LONGEST_TOPIC: usize = 128;

/// A route: which documents go to which sinks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Topics that it matches.
    pub topics: Vec<Pattern>,
    /// Kinds of signal; `None`: all.
    pub kinds: Option<Vec<String>>,
    /// Namespaces of pods; `None`: all, and documents without a namespace.
    pub namespaces: Option<Vec<Pattern>>,
    /// Names of sinks.
    pub sinks: Vec<String>,
}

impl Route {
    /// A route of every audit record to one sink.
    pub fn of_audit(sink: &str) -> Self {
        let audit = Pattern { start: AUDIT.to_owned(), open: false };
        Self { topics: vec![audit], kinds: None, namespaces: None, sinks: vec![sink.to_owned()] }
    }

    /// Whether it matches this topic.
    pub fn is_for(&self, topic: &str) -> bool {
        self.topics.iter().any(|it| it.matches(topic))
    }

    /// Whether it matches any topic other than the audit's.
    pub fn is_for_events(&self) -> bool {
        self.topics.iter().any(|it| it.open || it.start != AUDIT)
    }

    /// Whether it takes documents about a signal of this kind and a pod in this namespace.
    pub fn takes(&self, kind: Option<&str>, namespace: Option<&str>) -> bool {
        let kinds = |kinds: &Vec<String>| kind.is_some_and(|kind| kinds.iter().any(|it| it == kind));
        let namespaces =
            |all: &Vec<Pattern>| namespace.is_some_and(|name| all.iter().any(|it| it.matches(name)));
        self.kinds.as_ref().is_none_or(kinds) && self.namespaces.as_ref().is_none_or(namespaces)
    }
}

/// A pattern: a word, or a prefix followed by `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    start: String,
    open: bool,
}

impl Pattern {
    /// Parses a pattern; `None`: it is empty, too long, or has a `*` before its end.
    pub fn new(text: &str) -> Option<Self> {
        let (start, open) = match text.strip_suffix('*') {
            Some(start) => (start, true),
            None => (text, false),
        };
        let good = !text.is_empty() && text.len() <= LONGEST_TOPIC && !start.contains('*');
        good.then(|| Self { start: start.to_owned(), open })
    }

    /// Whether it matches only topics of the router: topics of reports do not begin with a slash.
    pub fn is_of_router(&self) -> bool {
        self.start.starts_with('/')
    }

    /// Whether it matches this word. A `*` never matches the topic `audit`: a route of all reports
    /// must not take every audit record too.
    pub fn matches(&self, word: &str) -> bool {
        if self.open { word != AUDIT && word.starts_with(&self.start) } else { word == self.start }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.start, if self.open { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_any_suffix_but_never_audit() {
        let matches = |pattern: &str, word: &str| Pattern::new(pattern).unwrap().matches(word);
        assert!(matches("oom-*", "oom-child") && matches("oom-*", "oom-") && !matches("oom-*", "oom"));
        assert!(matches("*", "x") && matches("audit", "audit"));
        assert!(!matches("*", "audit") && !matches("au*", "audit") && matches("au*", "audits"));
        for wrong in ["", "a*b", "**"] {
            assert_eq!(Pattern::new(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn document_without_kind_or_namespace_matches_no_named_one() {
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
