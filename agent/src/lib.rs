//! The berth node agent.

pub mod block;
pub mod nbd;
