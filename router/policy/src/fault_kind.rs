//! The kind of fault that stopped a call: a limit reached, or a trap.

use coroner_core::ruling::FaultKind;
use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use super::call_evidence::EvidenceFlood;
use super::limits::Meter;
use super::policy_log::Flood;
use super::wasi::Waited;

/// The kind of fault that stopped a call.
pub(super) fn fault_kind(error: &wasmtime::Error, meter: &Meter) -> FaultKind {
    if meter.memory_hit {
        return FaultKind::Memory;
    }
    if error.is::<Flood>() {
        return FaultKind::Log;
    }
    if error.is::<Waited>() || error.is::<I32Exit>() || error.is::<EvidenceFlood>() {
        return FaultKind::Trap;
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => FaultKind::Fuel,
        Some(Trap::Interrupt) => FaultKind::Time,
        Some(Trap::StackOverflow) => FaultKind::Stack,
        Some(_) => FaultKind::Trap,
        // Neither a trap nor a limit: the answer could not be lifted.
        None => FaultKind::Answer,
    }
}
