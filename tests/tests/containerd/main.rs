//! Coroner in mode `beside`, next to a stock containerd and a stock runc shim.

mod beside;
mod causes;
mod down_then_up;
mod evidence;
mod published;
mod reasons;
mod sigkill_policy;
mod stock;
mod unwatched;
