//! The berth node agent.

pub mod block;
