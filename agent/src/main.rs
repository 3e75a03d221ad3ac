//! `berthd`, the node daemon.
fn main() {}
