//! What the fuzz targets feed: the router's own files, in a tree of modules like the router's, so
//! that they are built without the engine.

#![expect(dead_code, reason = "the router uses the rest of these files")]

pub mod journal;
pub mod source;

pub use coroner_core::signal;
