//! `berth-flexvolume`.

fn main() {}
