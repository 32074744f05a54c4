//! A journal's file, as a router reads it at its start.

#[path = "../../router/src/journal/entry.rs"]
mod entry;
#[path = "../../router/src/journal/line.rs"]
mod line;
#[path = "../../router/src/journal/live.rs"]
mod live;
#[path = "../../router/src/journal/read.rs"]
mod read;

use std::path::PathBuf;

/// Whatever is in it, it is read; what was understood leads to the same again.
pub fn journal(bytes: &[u8]) {
    const BOOT: &str = "b";
    let file = |bytes: &[u8]| read::Read { number: 1, path: PathBuf::new(), bytes: bytes.to_vec() };
    let (entries, damage) = line::decode(bytes);
    for entry in &entries {
        assert_eq!(line::decode(&line::encode(entry)).0.as_slice(), std::slice::from_ref(entry));
    }
    assert!(damage.iter().all(|it| it.offset + it.bytes <= bytes.len()));
    let (first, live) = read::recover(vec![file(bytes)], BOOT);
    let (again, _) = read::recover(vec![file(&live.lines())], BOOT);
    assert_eq!(first.unruled, again.unruled);
    assert_eq!(first.undelivered, again.undelivered);
    assert_eq!(again.damage, []);
}
