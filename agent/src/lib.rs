//! The berth node agent.

pub mod block;
pub mod cli;
pub mod nbd;
