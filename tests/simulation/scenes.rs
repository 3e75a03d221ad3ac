//! Hand-made runs: one scene for each bug that only seeds had found, so that it has a name and no luck is needed.
//!
//! The stage is that of the seeds: the product's data plane, the array, the network, one virtual clock. Here a
//! sleep is time that passes in the story, not a wait for something to be ready.

mod bring_up;
mod detach;
mod merges;
mod redirects;
mod stage;
