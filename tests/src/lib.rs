//! Harness shared by the tests of berth.
