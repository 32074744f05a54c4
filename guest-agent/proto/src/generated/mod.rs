// @generated
#![cfg_attr(rustfmt, rustfmt::skip)]

pub mod agent;
pub mod control;
pub mod agent_ttrpc;
pub mod control_ttrpc;
