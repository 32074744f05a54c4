//! Where signals come from. A source decodes, bounds and hands on; it keeps count of what it has under way.

pub mod agent;
mod allowance;
mod backoff;
mod calls;
mod cursor;
mod decode;
mod greeting;
pub mod kata;
mod living;
mod machine;
mod orders;
mod past;
mod peer;
mod reconcile;
pub mod replay;
mod settlers;
pub mod shim;
mod taking;
mod watermark;
mod words;

pub use orders::Orders;
pub use past::{History, Past};
pub use settlers::Settlers;
