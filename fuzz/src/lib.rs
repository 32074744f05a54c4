//! What the fuzz targets feed: the files of the router and of the agent, in a tree of modules like
//! theirs, so that they are built without the engine.

#![expect(dead_code, reason = "the router and the agent use the rest of these files")]

pub mod journal;
pub mod kernel_log;
pub mod source;

pub use coroner_core::signal;
