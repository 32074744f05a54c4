//! Where signals come from. A source decodes, bounds and hands on; it keeps count of what it has under way.

pub mod agent;
mod calls;
mod decode;
pub mod replay;
mod watermark;
