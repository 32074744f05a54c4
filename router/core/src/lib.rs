//! The pure core of Coroner: what a signal, a case file, a ruling and an audit record are, and the
//! rules that hold without a policy.
//!
//! ```text
//! Signal --> Case (what is known of its container) --> policies --> Ruling --> audit Record
//!              mode: what can be known and changed     ^ native_default   ^ legality
//! ```
//!
//! This crate has no tokio, no I/O and no clock: the same input gives the same output on any
//! machine. The modules are listed in the order in which a signal passes through them.

pub mod signal;
pub mod mode;
pub mod ruling;
pub mod case;
pub mod cause;
pub mod native_default;
pub mod legality;
pub mod audit;
pub mod verdict;
pub mod count;
pub mod quantity;
pub mod fair_map;
pub mod table;
