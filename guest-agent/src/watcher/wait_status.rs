//! The kernel's wait status of a process, as the fields of an exit.

use coroner_proto::agent::Exited;

/// Decodes a wait(2) status: the exit code above, the signal in the low seven bits, the core flag
/// between.
pub(super) fn exited(code: u32) -> Exited {
    let exited = Exited { by_signal: Some(signal(code) != 0), ..Exited::default() };
    match signal(code) {
        0 => Exited { status: Some(code >> 8 & 0xff), ..exited },
        signal => Exited {
            status: Some(128 + signal),
            signal: Some(signal),
            core: Some(code & 0x80 != 0),
            ..exited
        },
    }
}

/// The signal that ended the process; 0: it exited with a code.
pub(super) fn signal(code: u32) -> u32 {
    code & 0x7f
}

#[cfg(test)]
mod tests {
    #[test]
    fn wait_status_decoded_as_containerd_does() {
        let check = |code: u32, status: u32, signal: Option<u32>, core: Option<bool>| {
            let exited = super::exited(code);
            let found = (exited.status, exited.signal, exited.core, exited.by_signal);
            assert_eq!(found, (Some(status), signal, core, Some(signal.is_some())), "{code:#x}");
        };
        check(0, 0, None, None);
        check(7 << 8, 7, None, None);
        // A code with the value of a signal's status.
        check(137 << 8, 137, None, None);
        check(255 << 8, 255, None, None);
        check(9, 137, Some(9), Some(false));
        check(15, 143, Some(15), Some(false));
        check(11 | 0x80, 139, Some(11), Some(true));
    }
}
