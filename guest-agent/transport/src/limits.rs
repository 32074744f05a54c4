//! Limits that both ends of the agent protocol enforce, and why.

/// Bytes of one frame's body. ttrpc itself allows 4 MiB and reads what it discards. Without this
/// limit a guest could make the router hold 4 MiB for every link, and one large answer would leave
/// the agent's heap at its high-water mark.
pub const MAX_FRAME: usize = 64 << 10;

/// Bytes of signals or containers in one answer. The rest of the frame is for its other fields.
pub const MAX_ANSWER: usize = 48 << 10;

/// Bytes of a container id. containerd's own limit is 76. Without a limit a guest could fill the
/// router's maps, event ids and audit records with names as long as a frame.
pub const MAX_CONTAINER_ID: usize = 256;

/// Whether `id` is a container id: 1 to 256 characters of `a-z A-Z 0-9 _ . -`, not starting with a
/// dot. Without the alphabet an id could forge lines of a log, or parts of a path.
///
/// ```
/// use coroner_transport::limits::valid_container_id;
///
/// assert!(valid_container_id("web-1"));
/// assert!(!valid_container_id("../etc"));
/// ```
pub fn valid_container_id(id: &str) -> bool {
    (1..=MAX_CONTAINER_ID).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_id_limited_in_length_and_alphabet() {
        for good in ["a", "0", "c-1_x.y", &"f".repeat(256)] {
            assert!(valid_container_id(good), "{good}");
        }
        for bad in ["", ".", ".a", "a/b", "a b", "a\n", "\u{e9}", &"f".repeat(257)] {
            assert!(!valid_container_id(bad), "{bad}");
        }
    }
}
