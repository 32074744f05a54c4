//! The facade: a router in the process of a shim.

mod builder;
mod compile_process;
mod error;
mod handle;
#[cfg(test)]
mod tests;

pub use self::builder::{Router, RouterBuilder};
pub use self::compile_process::compile_process;
pub use self::error::Error;
pub use self::handle::Handle;
