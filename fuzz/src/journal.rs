//! A journal's file, as a router reads it at its start.

#[path = "../../router/journal/src/record.rs"]
mod record;
#[path = "../../router/journal/src/codec.rs"]
mod codec;
#[path = "../../router/journal/src/live_set.rs"]
mod live_set;
#[path = "../../router/journal/src/recovery.rs"]
mod recovery;

use std::path::PathBuf;

/// Whatever is in it, it is read; what was understood leads to the same again.
pub fn journal(bytes: &[u8]) {
    const BOOT: &str = "b";
    let file =
        |bytes: &[u8]| recovery::SegmentFile { number: 1, path: PathBuf::new(), bytes: bytes.to_vec() };
    let (entries, damage) = codec::decode(bytes);
    for entry in &entries {
        assert_eq!(codec::decode(&codec::encode(entry)).0.as_slice(), std::slice::from_ref(entry));
    }
    assert!(damage.iter().all(|it| it.offset + it.bytes <= bytes.len()));
    let (first, live) = recovery::recover(vec![file(bytes)], BOOT);
    let (again, _) = recovery::recover(vec![file(&live.lines())], BOOT);
    assert_eq!(first.unruled, again.unruled);
    assert_eq!(first.undelivered, again.undelivered);
    assert_eq!(again.damage, []);
}
