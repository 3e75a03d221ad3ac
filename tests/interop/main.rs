//! Tests against programs that others wrote. `tests/setup` installs them; one that is missing fails its tests.

mod bad_input;
mod clients;
mod data;
mod guards;
mod leaks;
mod raw_nbd;
mod silence;
mod target_role;
