//! The score card for a person.

use crate::card::{Card, Death, Row};
use crate::screen::{Colour, columns, paint, visible};
use crate::verdict::Verdict;

use super::lines;

/// What a card without the kernel log proves less.
const NOT_READ: &str = " (kernel log not read: CRI is compared with the cases alone)";

/// Rows, one summary for each handler, and every container that was not right.
pub(super) fn text(card: &Card, colours: bool) -> String {
    let mut text = vec![visible(&card.runtime), String::new()];
    text.extend(rows(card, colours));
    text.push(String::new());
    text.extend(card.handlers.iter().map(|handler| summary(card, handler, colours)));
    let listed: Vec<&Death> = card.deaths.iter().filter(|death| death.is_listed()).collect();
    if !listed.is_empty() {
        text.push(String::new());
        text.extend(containers(&listed, colours));
    }
    if card.interrupted {
        text.push(paint("interrupted: the card is not complete", Some(Colour::Yellow), colours));
    }
    lines(text)
}

fn rows(card: &Card, colours: bool) -> Vec<String> {
    let names = Verdict::ALL.map(|verdict| verdict.name().to_uppercase());
    let headings = ["HANDLER", "CASE", "N"].map(str::to_owned).into_iter().chain(names).collect();
    let rows: Vec<Row> = card.rows().collect();
    let cells = rows.iter().map(cells);
    let colour = |row: &Row| match row.skipped {
        Some(_) => Some(Colour::Dim),
        None if row.counts.has_failure() => Some(Colour::Red),
        None if row.counts.of(Verdict::Ok) < row.counts.all() => Some(Colour::Yellow),
        None => None,
    };
    let colour_of = std::iter::once(Some(Colour::Bold)).chain(rows.iter().map(colour));
    let table = columns(std::iter::once(headings).chain(cells));
    table.iter().zip(colour_of).map(|(line, colour)| paint(line, colour, colours)).collect()
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.handler.to_owned(), row.case.to_owned(), row.counts.all().to_string()];
    match row.skipped {
        Some(reason) => cells.push(format!("not applicable: {reason}")),
        None => cells.extend(Verdict::ALL.map(|verdict| row.counts.of(verdict).to_string())),
    }
    cells
}

fn summary(card: &Card, handler: &str, colours: bool) -> String {
    let totals = card.totals(handler);
    let colour = if totals.has_failure() { Colour::Red } else { Colour::Green };
    let limit = if card.is_assumed(handler) { NOT_READ } else { "" };
    paint(&format!("{}: {}{limit}", visible(handler), totals.sentence()), Some(colour), colours)
}

fn containers(deaths: &[&Death], colours: bool) -> Vec<String> {
    let headings =
        ["CONTAINER", "HANDLER", "CASE", "VERDICT", "FIRST", "FINAL", "EXPECTED", "PROOF"].map(str::to_owned);
    let rows = deaths.iter().map(|death| {
        let (first, last) = death.readings();
        let (id, verdict) = (death.short_id().to_owned(), death.verdict.name().to_owned());
        let (expected, proof) = (death.expected.to_string(), death.evidence.to_string());
        vec![id, death.handler.clone(), death.case.clone(), verdict, first, last, expected, proof]
    });
    let mut table = columns(std::iter::once(headings.to_vec()).chain(rows));
    table[0] = paint(&table[0], Some(Colour::Bold), colours);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::tests::sample;
    use crate::case::Proof;
    use crate::evidence::Evidence;

    const PLAIN: &str = "\
containerd v2.4.2

HANDLER  CASE       N  OK  LOST  FALSE  WRONG  FIRST-WRONG  NOT-STARTED  NOT-PROVEN
runc     oom-pid-1  2  0   1     0      0      1            0            0
runc     exit-7     2  1   0     0      0      0            1            0
runc     oom-group  0  not applicable: memory.oom.group needs cgroup v2
coroner  oom-pid-1  2  2   0     0      0      0            0            0
coroner  exit-7     1  1   0     0      0      0            0            0
coroner  oom-group  0  not applicable: memory.oom.group needs cgroup v2

runc: 4 containers: 1 ok, 1 lost, 1 first-wrong, 1 not-started
coroner: 3 containers: 3 ok

";

    #[test]
    fn card_lists_what_was_not_right() {
        let text = text(&sample(), false);
        let (card, containers) = text.split_at(text.find("CONTAINER").unwrap());
        assert_eq!(card, PLAIN);
        let lines: Vec<&str> = containers.lines().collect();
        assert_eq!(lines.len(), 4, "{containers}");
        let words = |line: &str| {
            line.split("  ").map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let proof = "OOM kill of dd (pid 4711) in the kernel log";
        let cells =
            ["0cba00000000", "runc", "oom-pid-1", "lost", "Error/137", "Error/137", "OOMKilled/137", proof];
        assert_eq!(words(lines[1]), cells);
        assert!(
            lines[3].contains("not-started  -          no <memory> & \"no\" start  Error/7"),
            "{containers}"
        );
    }

    #[test]
    fn failures_are_red_on_a_terminal() {
        let text = text(&sample(), true);
        assert!(text.contains("\u{1b}[31mrunc     oom-pid-1"), "{text}");
        assert!(text.contains("\u{1b}[32mcoroner: 3 containers: 3 ok\u{1b}[0m"), "{text}");
    }

    #[test]
    fn card_without_the_kernel_log_is_marked() {
        let mut card = sample();
        card.deaths[2].evidence = Evidence::Assumed(Proof::OomKill);
        assert!(text(&card, false).contains("\ncoroner: 3 containers: 3 ok (kernel log not read: "));
        assert_eq!(text(&card, false).matches("not read").count(), 1);
    }

    #[test]
    fn interrupted_card_is_marked() {
        let text = text(&crate::card::Card { interrupted: true, ..sample() }, false);
        assert!(text.ends_with("interrupted: the card is not complete\n"), "{text}");
    }
}
