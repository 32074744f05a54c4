//! The vocabulary of the tree: plain technical English, measured by the words to avoid.
//!
//! The design's own words (signal, case file, ruling ...) and the field's (queue, retry, poll ...) are what a
//! reader can search for: `docs/concepts/glossary.md`. [`HOUSE`] lists the words that stood in their place.
//! [`RATCHET`] bounds their count for each area of the tree; it is only ever lowered.
//!
//! `CORONER_WORDS=AREA` prints each occurrence in that area. `CORONER_WORDS_ROOT=FOLDER` counts another tree.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::sync::LazyLock;

use super::tree;

/// Phrases to avoid. Words of a phrase are separated by spaces, the forms of a word by bars.
const HOUSE: &[&str] = &[
    // Instead: emit, report, publish, print, receive.
    "tell|tells|told|telling",
    "say|says|said|saying",
    "speak|speaks|spoke|spoken|speaking",
    "hear|hears|heard|hearing",
    "talk|talks|talked|talking",
    "news",
    // Instead: query, request.
    "ask|asks|asked|asking",
    "in vain",
    // Instead: poll, inspect, check, lookup.
    "look|looks|looked|looking",
    // Instead: reload, resume, recover.
    "take|takes|took|taken|taking up",
    "go|goes|went|going on with",
    "come|comes|came|coming back",
    // Instead: is evicted, is skipped, is quarantined.
    "give|gives|gave|given|giving way",
    "pass|passes|passed|passing over",
    "put|puts aside",
    // Instead: the component's name.
    "nobody",
    "somebody",
    "anybody",
    "everybody",
    "who",
    "whom",
    "whose",
    "whoever",
    // Instead: final counter read, dead-letter, accounting, retain until acknowledged, shutdown.
    "settle|settles|settled|settling|settlers",
    "bury|buries|buried|burial|burying",
    "books",
    "owe|owes|owed|owing",
    "orders",
    // Instead: log output.
    "too many words",
    // Instead: fixture, path, variant.
    "stand|stands|stood|standing",
    "way|ways",
    "arm|arms|arming",
    // Instead: Print JSON instead of text.
    "for machines",
    // Instead: is not a.
    "is|are|was|were|be no",
];

/// Plain English in which a word of [`HOUSE`] is no component's doing.
const PLAIN: &[&str] = &[
    "look|looks|looked|looking up",
    "there is|are|was|were no",
    "is|are|was|were no longer",
    "person|people|operator|operators|author|authors|anyone|those|user|users who",
    "one|same|either|this|that|other|any|no way",
    "two|three|four|both ways",
    "stand|stands for",
    "stand|stands|stood still",
    "match arm|arms",
    "under way",
];

/// Names that the agent protocol fixes.
const FIXED: &[&str] = &["Settle", "SettleRequest", "SettleResponse"];

/// What one-word doc comments are listed as.
const ONE_WORD: &str = "(one-word doc comment)";

/// Area of the tree, its bound in texts (comments, string literals, pages) and its bound in names (identifiers).
const RATCHET: &[(&str, usize, usize)] = &[
    ("docs", 8, 0),
    ("examples", 2, 0),
    ("guest-agent", 0, 4),
    ("plugins", 13, 0),
    ("router", 7, 0),
    ("sdk", 11, 0),
    ("tests", 3, 3),
    ("top", 1, 0),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Text,
    Name,
}

#[derive(Debug)]
struct Found {
    part: Part,
    words: String,
    line: usize,
}

#[test]
fn vocabulary_stays_within_its_ratchet() {
    let root = std::env::var_os("CORONER_WORDS_ROOT").map_or_else(tree::root, Into::into);
    let listed = std::env::var("CORONER_WORDS").unwrap_or_default();
    let mut areas: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    let mut words: BTreeMap<String, usize> = BTreeMap::new();
    for path in tree::files(&root) {
        let name = path.strip_prefix(&root).unwrap().display().to_string();
        let area = area(&name);
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for found in occurrences(&name, &text) {
            let count = areas.entry(area.to_owned()).or_default();
            match found.part {
                Part::Text => count.0 += 1,
                Part::Name => count.1 += 1,
            }
            if listed == area {
                println!("{name}:{}: {:?} {}", found.line, found.part, found.words);
            }
            *words.entry(found.words).or_default() += 1;
        }
    }

    let mut most: Vec<_> = words.into_iter().collect();
    most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let most: Vec<String> = most.iter().take(24).map(|(word, count)| format!("{word} {count}")).collect();
    println!("most: {}", most.join(", "));
    let (mut texts, mut names, mut above) = (0, 0, Vec::new());
    for (area, (in_texts, in_names)) in &areas {
        println!("{area:<12} {in_texts:>5} in texts {in_names:>5} in names");
        (texts, names) = (texts + in_texts, names + in_names);
        let bound = RATCHET.iter().find(|(name, ..)| name == area).map_or((0, 0), |it| (it.1, it.2));
        if *in_texts > bound.0 || *in_names > bound.1 {
            above.push(format!(
                "{area}: {in_texts} in texts, at most {}; {in_names} in names, at most {}",
                bound.0, bound.1
            ));
        }
    }
    println!("{:<12} {texts:>5} in texts {names:>5} in names", "together");
    assert!(
        above.is_empty() || std::env::var_os("CORONER_WORDS_ROOT").is_some(),
        "{}\nCORONER_WORDS=AREA prints each; docs/concepts/glossary.md has the words to use",
        above.join("\n")
    );
}

/// The folder at the top of the tree; pages at the top belong to `docs`.
fn area(name: &str) -> &str {
    match name.split_once('/') {
        Some((top, _)) => top,
        None if name.ends_with(".md") => "docs",
        None => "top",
    }
}

/// The lines of one file that count, by its kind.
fn occurrences(name: &str, text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    match name.rsplit_once('.').map_or("", |(_, extension)| extension) {
        "rs" => rust(text, &mut found),
        "md" => phrases(&words_of(text, 1), &mut found),
        "proto" | "wit" => {
            let comments = text.lines().map(|line| line.split_once("//").map_or("", |it| it.1));
            phrases(&words_of(&comments.collect::<Vec<_>>().join("\n"), 1), &mut found);
        }
        "toml" | "service" | "socket" | "init" | "yml" | "conf" => {
            let comments = text.lines().map(|line| line.split_once('#').map_or("", |it| it.1));
            phrases(&words_of(&comments.collect::<Vec<_>>().join("\n"), 1), &mut found);
        }
        _ => {}
    }
    found
}

/// Comments as one text, each string literal as another, identifiers word by word.
fn rust(text: &str, found: &mut Vec<Found>) {
    let mut comments: Vec<(String, usize)> = Vec::new();
    for piece in pieces(text) {
        match piece {
            Piece::Comment(comment, line) => {
                let bare = comment.trim_start_matches(['/', '!', '*']).trim();
                let is_doc = comment.starts_with("///") || comment.starts_with("//!");
                if is_doc && !bare.is_empty() && bare.chars().all(|c| c.is_alphabetic() || c == '.') {
                    // Of a paragraph, the last line may be one word.
                    let alone = comments.last().is_none_or(|(_, last)| last + 1 < line)
                        && !text.lines().nth(line).is_some_and(|next| next.trim_start().starts_with("//"));
                    if alone {
                        found.push(Found { part: Part::Text, words: ONE_WORD.to_owned(), line });
                    }
                }
                comments.extend(words_of(bare, line));
            }
            Piece::Literal(literal, line) => phrases(&words_of(literal, line), found),
            Piece::Name(name, line) => names(name, line, found),
        }
    }
    phrases(&comments, found);
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Comment(&'a str, usize),
    Literal(&'a str, usize),
    Name(&'a str, usize),
}

/// Splits Rust source into what a reader reads: raw strings and lifetimes are recognised.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let bytes = text.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut pieces = Vec::new();
    while at < bytes.len() {
        let rest = &text[at..];
        let (length, piece) = if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            (length, Some(Piece::Comment(&rest[..length], line)))
        } else if rest.starts_with("/*") {
            let length = rest.find("*/").map_or(rest.len(), |end| end + 2);
            (length, Some(Piece::Comment(&rest[..length], line)))
        } else if let Some(length) = raw_literal(rest) {
            (length, Some(Piece::Literal(&rest[..length], line)))
        } else if rest.starts_with('"') {
            let length = literal(rest);
            (length, Some(Piece::Literal(&rest[..length], line)))
        } else if rest.starts_with('\'') {
            (character(rest), None)
        } else if rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            (end, Some(Piece::Name(&rest[..end], line)))
        } else {
            (rest.chars().next().map_or(1, char::len_utf8), None)
        };
        line += text[at..at + length].matches('\n').count();
        at += length;
        pieces.extend(piece);
    }
    pieces
}

/// The length of `r"..."`, `br#"..."#` and the like, if one begins here.
fn raw_literal(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let end = body.find(&close).map_or(body.len(), |end| end + close.len());
    Some(rest.len() - body.len() + end)
}

fn literal(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// `'x'` and `'\n'` as a whole; of a lifetime, the quote alone.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, _))) => {
            rest[at + 1..].find('\'').map_or(rest.len(), |end| at + 1 + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}

/// Words in lower case with their lines. What stands between two words breaks no phrase, a full stop does.
fn words_of(text: &str, first: usize) -> Vec<(String, usize)> {
    let mut words = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for token in line.split(|c: char| c.is_whitespace() || "/()[]{}\"`*|,;:<>=".contains(c)) {
            let bare = token.trim_matches(|c: char| !c.is_alphanumeric());
            // An escape at the start of a continued literal, a path or an identifier is not prose.
            if !bare.is_empty() && !FIXED.contains(&bare) {
                words.push((bare.to_lowercase(), first + at));
            }
            if token.ends_with(['.', '!', '?']) {
                words.push((".".to_owned(), first + at));
            }
        }
    }
    words
}

fn phrases(words: &[(String, usize)], found: &mut Vec<Found>) {
    let mut at = 0;
    while at < words.len() {
        if let Some(length) = PLAIN_INDEX.longest(&words[at..]) {
            at += length;
        } else if let Some(length) = HOUSE_INDEX.longest(&words[at..]) {
            let phrase: Vec<&str> = words[at..at + length].iter().map(|(word, _)| word.as_str()).collect();
            found.push(Found { part: Part::Text, words: phrase.join(" "), line: words[at].1 });
            at += length;
        } else {
            at += 1;
        }
    }
}

static HOUSE_INDEX: LazyLock<Index> = LazyLock::new(|| Index::new(HOUSE));
static PLAIN_INDEX: LazyLock<Index> = LazyLock::new(|| Index::new(PLAIN));

/// Phrases by each form of their first word.
struct Index(HashMap<&'static str, Vec<Vec<Vec<&'static str>>>>);

impl Index {
    fn new(list: &[&'static str]) -> Self {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        for phrase in list {
            let forms: Vec<Vec<&str>> = phrase.split(' ').map(|forms| forms.split('|').collect()).collect();
            for first in &forms[0] {
                index.entry(*first).or_default().push(forms.clone());
            }
        }
        Self(index)
    }

    /// How many words the longest phrase has that begins with the first of `words`.
    fn longest(&self, words: &[(String, usize)]) -> Option<usize> {
        let phrases = self.0.get(words.first()?.0.as_str())?;
        let fits = |phrase: &&Vec<Vec<&str>>| {
            phrase.len() <= words.len()
                && phrase.iter().zip(words).all(|(forms, (word, _))| forms.contains(&word.as_str()))
        };
        phrases.iter().filter(fits).map(Vec::len).max()
    }
}

/// `Released`, `is_told` and `MAX_ASKS`, word by word; phrases of several words are prose.
fn names(name: &str, line: usize, found: &mut Vec<Found>) {
    if FIXED.contains(&name) {
        return;
    }
    let mut word = String::new();
    let mut words = Vec::new();
    for c in name.chars() {
        let begins = c == '_' || c.is_uppercase() && word.chars().any(char::is_lowercase);
        if begins && !word.is_empty() {
            words.push((std::mem::take(&mut word).to_lowercase(), line));
        }
        if c != '_' {
            word.push(c);
        }
    }
    words.push((word.to_lowercase(), line));
    let before = found.len();
    phrases(&words, found);
    for it in &mut found[before..] {
        it.part = Part::Name;
    }
}

#[test]
fn house_words_are_found_in_each_kind_of_file() {
    let check = |name: &str, text: &str, expect: &[(Part, &str)]| {
        let found = occurrences(name, text);
        let found: Vec<_> = found.iter().map(|it| (it.part, it.words.as_str())).collect();
        assert_eq!(found, expect, "{name}: {text}");
    };
    use Part::{Name, Text};
    check("a.rs", "/// It tells the agent.\nfn told() {}", &[(Name, "told"), (Text, "tells")]);
    check("a.rs", "let x = \"nobody\\\" asked\";", &[(Text, "nobody"), (Text, "asked")]);
    check("a.rs", "let x = r#\"it \"said\" so\"#; 'a'; fn f<'told>() {}", &[(Text, "said"), (Name, "told")]);
    check("a.rs", "struct ToldOnce; let MAX_ASKS = '\\'';", &[(Name, "told"), (Name, "asks")]);
    check("a.rs", "//! The oldest gives\n//! way.\n", &[(Text, "gives way")]);
    check("a.rs", "/// Which.\nfn f() {}", &[(Text, ONE_WORD)]);
    check("a.rs", "/// A line that ends with a\n/// word.\nfn f() {}", &[]);
    check("a.rs", "// It looks up the name. There is no other. In the same way.", &[]);
    check("a.md", "It looks at it, and is no component.", &[(Text, "looks"), (Text, "is no")]);
    check("a.md", "`Settle` is a call. It settles.", &[(Text, "settles")]);
    check("a.toml", "told = 1 # told once", &[(Text, "told")]);
    check("a.proto", "message Told {} // told once", &[(Text, "told")]);
    check("a.wat", "told", &[]);
}
