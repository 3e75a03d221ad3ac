//! Tests against programs that others wrote. `tests/setup` installs them; one that is missing fails its tests.

mod bad_input;
mod clients;
mod csi;
mod data;
mod fabric;
mod fabric_attach;
mod fabric_crash;
mod fabric_declared;
mod fabric_faults;
mod fabric_nodes;
mod fabric_proxy;
mod fabric_scale;
mod fabric_session;
mod fabric_site;
mod fence;
mod guards;
mod leaks;
mod links;
mod load;
mod paths;
mod recovery;
mod silence;
mod target_role;

use berth_tests::raw_nbd;
