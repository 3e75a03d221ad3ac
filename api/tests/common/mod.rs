//! What the tests of router and client share.

#![allow(clippy::unwrap_used, reason = "this is all test code")]
#![allow(dead_code, unused_imports, reason = "each test binary uses its part")]

mod fake;
pub(crate) mod harness;

pub(crate) use fake::{Fake, body, name, request};
