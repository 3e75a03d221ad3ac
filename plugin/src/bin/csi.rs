//! `berth-csi`.

fn main() {}
