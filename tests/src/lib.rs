//! Harness shared by the tests of berth: programs as guards that end what they started.
//!
//! - [`process`]: a started program with its log and its use of resources.
//! - [`berthd`]: the daemon under test, and the HTTP requests a user would send it.
//! - [`csi`]: fabric, daemons and CSI drivers together, and the suite that holds a driver to the rules.
//! - [`manager`]: keeps descriptors over the daemon's restarts.
//! - [`peers`]: iSCSI targets that others wrote, and our own `portal`.
//! - [`net`]: a network of our own between the two, and what can go wrong with it.
//! - [`fabric`]: the simulated fabric as a process that is killed and started again, and a REST client of its own.
//! - [`fio`]: a load that checks every byte, [`prober`]: how long one request takes, 20 times a second.
//! - [`guest`]: guest kernels, for what this machine's kernel lacks or must not suffer.
//! - [`programs`]: where the programs under test come from.
//! - [`simulation`]: everything in one thread under one clock, from a seed.
//! - [`tool`]: a foreign program that is run to its end, within a deadline.

pub mod berthd;
pub mod csi;
pub mod fabric;
pub mod fio;
pub mod guest;
pub mod http;
pub mod manager;
pub mod net;
pub mod peers;
pub mod ports;
pub mod prober;
pub mod process;
pub mod programs;
pub mod raw_nbd;
#[path = "../simulation/mod.rs"]
pub mod simulation;
pub mod tool;

pub use berthd::Berthd;
pub use process::Process;
