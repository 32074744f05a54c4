//! The codec of a journal line: eight hexadecimal digits of CRC-32, a space, a JSON object, a line
//! feed.
//!
//! JSON contains no raw line feed, so each line stands for itself: after any damage the next whole
//! line is found again.

use serde::Serialize;

use super::record::JournalRecord;

/// Checksum and space.
const HEAD: usize = 9;
/// A longer line is not a journal line: a signal is bounded at some 20 KiB, and a case too. Without
/// a bound a foreign file would be searched for checksums at every byte.
const LONGEST: usize = 256 << 10;

/// Bytes that are not a whole line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the first byte.
    pub offset: usize,
    /// Number of bytes.
    pub bytes: usize,
}

/// Encodes a record as a line.
pub(super) fn encode(entry: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::with_capacity(512);
    line.extend_from_slice(b"00000000 ");
    serde_json::to_writer(&mut line, entry).expect("records contain only what JSON can express");
    let sum = crc32fast::hash(&line[HEAD..]);
    line[..HEAD].copy_from_slice(format!("{sum:08x} ").as_bytes());
    line.push(b'\n');
    line
}

/// Decodes every whole line, in order, and returns the damage between them.
pub(super) fn decode(bytes: &[u8]) -> (Vec<JournalRecord<'static>>, Vec<Damage>) {
    let (mut entries, mut damage, mut offset) = (Vec::new(), Vec::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let begin = offset;
        offset += line.len();
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        match whole(text) {
            Some(entry) => entries.push(entry),
            None => salvage(text, begin, &mut entries, &mut damage),
        }
    }
    (entries, damage)
}

/// The line feed itself may be damaged: joined lines are separated where a checksum matches.
fn salvage(text: &[u8], begin: usize, entries: &mut Vec<JournalRecord<'static>>, damage: &mut Vec<Damage>) {
    let starts = |at: &usize| {
        let head = text.get(*at..*at + HEAD + 1);
        head.is_some_and(|head| head[HEAD - 1] == b' ' && head[HEAD] == b'{' && sum(head).is_some())
    };
    let starts: Vec<usize> = (0..text.len().min(LONGEST)).filter(starts).collect();
    let mut done = 0;
    for (place, start) in starts.iter().enumerate() {
        // A line ends before the next line's line feed, or at the end of this text; each byte in
        // between may be the damaged line feed.
        let ends =
            starts[place + 1..].iter().map(|next| next - 1).chain([text.len(), text.len().saturating_sub(1)]);
        let found = ends.filter(|end| *end > *start).find_map(|end| Some((whole(&text[*start..end])?, end)));
        if let Some((entry, end)) = found.filter(|_| *start >= done) {
            if *start > done {
                damage.push(Damage { offset: begin + done, bytes: start - done });
            }
            entries.push(entry);
            done = end;
        }
    }
    if done < text.len() {
        damage.push(Damage { offset: begin + done, bytes: text.len() - done });
    }
}

fn whole(text: &[u8]) -> Option<JournalRecord<'static>> {
    let json = text.get(HEAD..)?;
    if text[HEAD - 1] != b' ' || sum(text)? != crc32fast::hash(json) {
        return None;
    }
    serde_json::from_slice(json).ok()
}

fn sum(text: &[u8]) -> Option<u32> {
    let digits = text.get(..HEAD - 1)?;
    // `from_str_radix` accepts a sign.
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
