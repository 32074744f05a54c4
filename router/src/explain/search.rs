//! Finds the records of one container among those of all: one pass, and only what is about it is kept.

use std::collections::{HashMap, VecDeque};

use serde_json::Value;

use crate::telling::container_of;

/// Records kept of one container. One that is short of memory for a year tells so each second; the end says what became of it.
const RECORDS: usize = 10_000;
/// Bytes of them.
const BYTES: usize = 64 << 20;
/// Other containers that fit, which are remembered: a pod's container that was restarted so often has told enough.
const OTHERS: usize = 1_000;
/// Starts of the router between two records of the container that are told. One that cannot start tries ten times a second.
const STARTS: usize = 8;
/// Ids that are named when several begin alike.
const NAMED: usize = 8;

/// What a line that tells of a start has at its beginning.
const START: &str = "\"record\":\"recovered\"";

/// Whom to look for.
#[derive(Debug)]
enum Whom {
    /// The container with this id, or the one whose id begins so.
    Id(String),
    /// The latest of this name.
    Name { namespace: String, pod: String, container: String },
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    Nothing,
    One {
        container: String,
        records: Vec<String>,
        left_out: usize,
        others: Vec<String>,
    },
    /// A start that several ids have; some of them.
    Several(Vec<String>),
}

/// The search, fed a line at a time.
#[derive(Debug)]
pub(super) struct Search {
    whom: Whom,
    /// A record that is about whom we look for has this in it.
    needle: String,
    current: Option<Kept>,
    /// Others that fit, the latest last.
    others: Vec<String>,
    /// Lines of the group that is read now, by how often they came in it.
    group: HashMap<String, usize>,
}

/// A container's records.
#[derive(Debug)]
struct Kept {
    container: String,
    lines: VecDeque<String>,
    bytes: usize,
    left_out: usize,
    /// How often each came in the groups before, at most.
    before: HashMap<String, usize>,
    /// Starts of the router since the last of its lines: told if more of it follows.
    starts: VecDeque<String>,
}

impl Search {
    pub(super) fn new(whom: &str) -> Result<Self, String> {
        let (whom, needle) = match whom.split('/').collect::<Vec<_>>()[..] {
            [id] if !id.is_empty() => (Whom::Id(id.to_owned()), id.to_owned()),
            [namespace, pod, container] if ![namespace, pod, container].contains(&"") => {
                let [namespace, pod, container] = [namespace, pod, container].map(str::to_owned);
                let needle = format!("\"{pod}\"");
                (Whom::Name { namespace, pod, container }, needle)
            }
            _ => return Err(format!("`{whom}` is neither a container id nor namespace/pod/container")),
        };
        Ok(Self { whom, needle, current: None, others: Vec::new(), group: HashMap::new() })
    }

    /// Begins the files of another sink: it may hold the same records again.
    pub(super) fn begin(&mut self) {
        if let Some(kept) = &mut self.current {
            for (line, count) in self.group.drain() {
                let most = kept.before.entry(line).or_default();
                *most = count.max(*most);
            }
            kept.starts.clear();
        }
        self.group.clear();
    }

    /// Keeps a line that is about the container. False: it could not be read.
    pub(super) fn take(&mut self, line: &str) -> bool {
        let ours = self.current.as_ref().is_some_and(|kept| line.contains(&kept.container));
        if !ours && !line.contains(&self.needle) {
            self.start(line);
            return true;
        }
        let Ok(record) = serde_json::from_str::<Value>(line) else { return false };
        let container = match record["record"].as_str() {
            Some("ruled") => self.fits(&record["signal"]["target"]),
            // A delivery is told with the signal's id alone, after its ruling.
            Some("resumed") if record["signal"].is_object() => self.fits(&record["signal"]["target"]),
            Some("journaled" | "resumed") => record["container"].as_str().filter(|id| self.is_known(id)),
            // Whatever in it looks like whom we look for.
            Some("recovered") => {
                self.start(line);
                None
            }
            Some("delivered") => record["id"].as_str().and_then(container_of).filter(|id| self.is_known(id)),
            _ => {
                self.start(line);
                None
            }
        };
        if let Some(container) = container.map(str::to_owned) {
            self.found_one(&container);
            self.keep(&container, line);
        }
        true
    }

    /// A start of the router is about no container, and about every one that lived then.
    fn start(&mut self, line: &str) {
        // Near the beginning, as routers write it: a look at the whole of every line would be for nothing.
        let begins = line.get(..START.len() + 16).unwrap_or(line);
        if let Some(kept) = &mut self.current
            && begins.contains(START)
        {
            kept.starts.push_back(line.to_owned());
            if kept.starts.len() > STARTS {
                kept.starts.pop_front();
            }
        }
    }

    pub(super) fn found(self) -> Found {
        let Some(kept) = self.current else { return Found::Nothing };
        if let Whom::Id(whom) = &self.whom
            && *whom != kept.container
            && !self.others.is_empty()
        {
            let mut ids: Vec<String> = [kept.container].into_iter().chain(self.others).collect();
            ids.sort_unstable();
            ids.truncate(NAMED);
            return Found::Several(ids);
        }
        Found::One {
            container: kept.container,
            records: kept.lines.into(),
            left_out: kept.left_out,
            others: if matches!(self.whom, Whom::Name { .. }) { self.others } else { Vec::new() },
        }
    }

    fn fits<'a>(&self, target: &'a Value) -> Option<&'a str> {
        let id = target["container-id"].as_str()?;
        let fits = match &self.whom {
            Whom::Id(start) => id.starts_with(start.as_str()),
            Whom::Name { namespace, pod, container } => {
                let owner = &target["owner"];
                owner["namespace"] == **namespace
                    && owner["pod"] == **pod
                    && owner["container"] == **container
            }
        };
        // Before its name was known a container's signals were told without one.
        (fits || self.is_current(id)).then_some(id)
    }

    fn is_current(&self, id: &str) -> bool {
        self.current.as_ref().is_some_and(|kept| kept.container == id)
    }

    fn is_known(&self, id: &str) -> bool {
        self.is_current(id) || matches!(&self.whom, Whom::Id(start) if id.starts_with(start.as_str()))
    }

    /// Goes over to this container, if it is the one: the only one so far, the one named in full, or the latest of a name.
    fn found_one(&mut self, container: &str) {
        if self.is_current(container) || self.others.iter().any(|it| it == container) {
            return;
        }
        let goes_over = match (&self.whom, &self.current) {
            (_, None) => true,
            (Whom::Id(whom), Some(_)) => container == whom,
            (Whom::Name { .. }, Some(_)) => true,
        };
        if !goes_over {
            self.other(container.to_owned());
            return;
        }
        let kept = Kept {
            container: container.to_owned(),
            lines: VecDeque::new(),
            bytes: 0,
            left_out: 0,
            before: HashMap::new(),
            starts: VecDeque::new(),
        };
        if let Some(before) = self.current.replace(kept) {
            self.other(before.container);
        }
        self.group.clear();
    }

    fn other(&mut self, container: String) {
        if self.others.len() < OTHERS {
            self.others.push(container);
        }
    }

    fn keep(&mut self, container: &str, line: &str) {
        let Some(kept) = self.current.as_mut().filter(|kept| kept.container == container) else { return };
        // Several sinks hold the same records: what this one has no more often than those before is there already. Within one sink
        // the same line twice is what happened twice.
        let times = self.group.entry(line.to_owned()).or_default();
        *times += 1;
        if kept.before.get(line).is_some_and(|before| *before >= *times) {
            kept.starts.clear();
            return;
        }
        for line in std::mem::take(&mut kept.starts).into_iter().chain([line.to_owned()]) {
            kept.bytes += line.len();
            kept.lines.push_back(line);
        }
        while (kept.lines.len() > RECORDS || kept.bytes > BYTES)
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.bytes -= oldest.len();
            kept.left_out += 1;
            self.group.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ruled(container: &str, pod: &str, at: u64) -> String {
        let owner = json!({ "namespace": "shop", "pod": pod, "container": "app" });
        let target = json!({ "container-id": container, "owner": owner });
        let id = format!("n::s:{container}:{at}");
        json!({ "record": "ruled", "signal": { "id": id, "at": { "received-ms": at }, "target": target } })
            .to_string()
    }

    fn delivered(container: &str, at: u64) -> String {
        json!({ "record": "delivered", "id": format!("n::s:{container}:{at}") }).to_string()
    }

    fn one(whom: &str, lines: &[String]) -> (String, usize, Vec<String>) {
        let mut search = Search::new(whom).unwrap();
        assert!(lines.iter().all(|line| search.take(line)));
        let Found::One { container, records, others, .. } = search.found() else {
            panic!("not one is {whom}")
        };
        (container, records.len(), others)
    }

    #[test]
    fn a_container_is_found_by_its_id_a_start_of_it_and_its_name() {
        let lines = [
            ruled("abc1", "web", 1),
            ruled("abd1", "job", 2),
            delivered("abc1", 1),
            ruled("abc1", "web", 3),
            delivered("abd1", 2),
            ruled("abc2", "web", 4),
            delivered("abc1", 3),
            delivered("abc2", 4),
            ruled("ab", "tiny", 5),
        ];
        assert_eq!(one("abc1", &lines), ("abc1".to_owned(), 4, vec![]));
        assert_eq!(one("abd", &lines), ("abd1".to_owned(), 2, vec![]));
        assert_eq!(
            one("ab", &lines),
            ("ab".to_owned(), 1, vec![]),
            "an id in full is one, whatever begins so"
        );
        assert_eq!(
            one("shop/web/app", &lines),
            ("abc2".to_owned(), 2, vec!["abc1".to_owned()]),
            "the latest"
        );
        assert_eq!(one("shop/job/app", &lines), ("abd1".to_owned(), 2, vec![]));
        let found = |whom: &str| {
            let mut search = Search::new(whom).unwrap();
            lines.iter().for_each(|line| assert!(search.take(line)));
            search.found()
        };
        assert!(matches!(found("abc"), Found::Several(ids) if ids == ["abc1", "abc2"]));
        assert!(matches!(found("shop/web/sidecar"), Found::Nothing));
        assert!(matches!(found("zz"), Found::Nothing));
        for wrong in ["", "a/b", "a//c", "a/b/c/d"] {
            assert!(Search::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn records_that_two_sinks_hold_are_told_once_and_those_that_came_twice_twice() {
        let mut search = Search::new("a").unwrap();
        search.begin();
        for line in [ruled("a", "web", 1), delivered("a", 1), delivered("a", 1)] {
            search.take(&line);
        }
        search.begin();
        for line in [
            ruled("a", "web", 1),
            delivered("a", 1),
            delivered("a", 1),
            delivered("a", 1),
            ruled("a", "web", 2),
        ] {
            search.take(&line);
        }
        let Found::One { records, .. } = search.found() else { panic!("one is found") };
        assert_eq!(records.len(), 5);
    }

    #[test]
    fn starts_of_the_router_within_its_life_are_kept() {
        let start = |at: u64| format!("{{\"v\":3,\"record\":\"recovered\",\"at-ms\":{at}}}");
        let lines = [
            start(1),
            ruled("a", "web", 1),
            start(2),
            ruled("b", "job", 1),
            start(3),
            delivered("a", 1),
            start(4),
        ];
        assert_eq!(one("a", &lines).1, 4, "two records, two starts between them");
        let many: Vec<String> = (0..100).map(start).collect();
        let lines = [vec![ruled("a", "web", 1)], many, vec![delivered("a", 1)]].concat();
        assert_eq!(one("a", &lines).1, 2 + STARTS);
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_end_stays() {
        let mut search = Search::new("a").unwrap();
        for at in 0..RECORDS as u64 + 5 {
            search.take(&ruled("a", "web", at));
        }
        assert!(search.group.len() <= RECORDS);
        let Found::One { records, left_out, .. } = search.found() else { panic!("one is found") };
        assert_eq!((records.len(), left_out), (RECORDS, 5));
        assert_eq!(records[0], ruled("a", "web", 5));
    }

    #[test]
    fn a_line_about_others_is_not_read_and_a_broken_one_is_said_to_be() {
        let mut search = Search::new("abc").unwrap();
        assert!(search.take("{nothing}"));
        assert!(!search.take("{\"abc\":}"));
        assert!(search.take("{\"record\":\"chain\",\"x\":\"abc\"}"));
        assert!(matches!(search.found(), Found::Nothing));
    }
}
