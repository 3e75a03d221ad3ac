//! The local HTTP contract of berth.
