// @generated
#![cfg_attr(rustfmt, rustfmt::skip)]

pub mod agent;
pub mod kata;
pub mod shim;
pub mod agent_ttrpc;
pub mod kata_ttrpc;
pub mod shim_ttrpc;
