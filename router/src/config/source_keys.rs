//! The keys of `[[source]]` and `[[guest]]`, and what is wrong with them.

use std::time::Duration;

use coroner_transport::{ANY_CID, Address};

use super::{Machine, Mode, Source, SourceKind};
use coroner_core::signal::ContainerId;
use coroner_core::table::{Table, UNKNOWN};

/// A guest's link may be down for this long before the guest counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Keys that a guest has and a source has not.
const OF_GUESTS: [&str; 3] = ["containers", "monitor_pid", "lost_after"];

/// Reads a `[[source]]`, which is trusted.
pub(super) fn trusted(mut table: Table<'_>) -> Option<Source> {
    let guest = table.text("guest");
    // Shims run on the node, so no guest has one.
    let kinds = [SourceKind::Agent, SourceKind::Kata, SourceKind::Shim];
    let source = read(&mut table, &kinds);
    table.end_with(|key| {
        let message = match OF_GUESTS.contains(&key) {
            true => "is a key of [[guest]]: a source is trusted",
            false => UNKNOWN,
        };
        Some(message.to_owned())
    });
    Some(Source { guest, ..source? })
}

/// Reads a `[[guest]]`, or one that is added while the router runs.
pub(super) fn guest(mut table: Table<'_>) -> Option<Source> {
    let source = read(&mut table, &[SourceKind::Agent, SourceKind::Kata]);
    let containers = table.texts("containers").map(|ids| {
        let ids = ids.into_iter().map(ContainerId::try_from);
        ids.filter_map(|id| table.checked("containers", id)).collect()
    });
    let pid = table.number::<i32>("monitor_pid");
    let machine = Machine {
        containers,
        monitor_pid: pid.map(i32::cast_unsigned),
        lost_after: table.time("lost_after").unwrap_or(LOST_AFTER),
    };
    table.end_with(|key| {
        let message =
            if key == "guest" { "is a key of [[source]]: a guest's name is its own" } else { UNKNOWN };
        Some(message.to_owned())
    });
    let source = source?;
    Some(Source { guest: Some(source.name.clone()), machine: Some(machine), ..source })
}

/// The keys of both.
fn read(table: &mut Table<'_>, kinds: &[SourceKind]) -> Option<Source> {
    let name = table.name();
    let kinds: Vec<_> = kinds.iter().map(|kind| (kind.name(), *kind)).collect();
    let kind = table.required_choice("type", &kinds);
    let modes: &[_] = match kind {
        Some(SourceKind::Shim) => &[("wrapped", Mode::Wrapped), ("proxy", Mode::Proxy)],
        Some(SourceKind::Agent | SourceKind::Kata) | None => {
            &[("beside", Mode::Beside), ("sole", Mode::Sole)]
        }
    };
    let mode = table.required_choice("mode", modes);
    let address = table.parsed("address", |text| match (text.parse::<Address>(), kind) {
        (Ok(Address::Vsock { .. } | Address::Hvsock { .. }), Some(SourceKind::Shim)) => {
            Err("shims connect to a unix:///path".to_owned())
        }
        (Ok(Address::Vsock { cid: ANY_CID, .. }), _) => {
            Err(format!("`{text}` is an address to listen on: a guest has a CID of its own"))
        }
        (Ok(address), _) => Ok(address),
        (Err(error), _) => Err(error.to_string()),
    });
    let address = table.required("address", address, "unix:///path, vsock://CID:PORT or hvsock:///path:PORT");
    Some(Source { name: name?, kind: kind?, mode: mode?, guest: None, address: address?, machine: None })
}
