//! Reservation keys: who registered, and in which of its lives.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// The key that an attachment registers: 32 bits of node, 32 bits of epoch.
///
/// The node part is the same for all attachments of a node, the epoch grows with each attach. A key
/// with our node and an older epoch is therefore our own, from before a crash; one with a newer epoch
/// says that our claim is outdated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u64);

impl Key {
    /// A key of this node, which is not 0, and epoch.
    #[must_use]
    pub const fn new(node: NodeId, epoch: u32) -> Self {
        Self((node.0 as u64) << 32 | epoch as u64)
    }

    /// The key as a target reports it.
    #[must_use]
    pub const fn from_u64(key: u64) -> Self {
        Self(key)
    }

    /// The key as it is registered; never 0, which would mean "not registered".
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Who registered it; anything at all when it was not registered by berth.
    #[must_use]
    pub const fn node(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// In which of its lives.
    #[must_use]
    pub const fn epoch(self) -> u32 {
        self.0 as u32
    }

    /// Whether both are of one node.
    #[must_use]
    pub const fn same_node(self, other: Self) -> bool {
        self.node() == other.node()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = ParseIntError;

    /// Reads hexadecimal digits, with or without `0x`.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).map(Self)
    }
}

/// The node's part of a key; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeId(u32);

impl NodeId {
    /// The number of the initiator of this name: its CRC-32C, so that names which differ in up to four
    /// neighbouring characters (`worker-1`, `worker-2`) never share one.
    #[must_use]
    pub fn of(initiator_name: &str) -> Self {
        Self(berth_iscsi::pdu::crc32c(initiator_name.as_bytes()).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_a_node_and_an_epoch_and_reads_back() {
        let node = NodeId::of("iqn.2026-11.example:worker-1");
        let key = Key::new(node, 7);
        assert_eq!((key.node(), key.epoch()), (node.0, 7));
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 18);
        assert_eq!("ff".parse(), Ok(Key::from_u64(255)));
        assert!("0xg".parse::<Key>().is_err());
    }

    #[test]
    fn neighbours_have_other_numbers_and_none_is_zero() {
        let of = |n: u32| NodeId::of(&format!("iqn.2026-11.example:worker-{n:04}")).0;
        let mut all: Vec<u32> = (0..10_000).map(of).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10_000);
        assert!(!all.contains(&0));
        // CRC-32C of the empty name is 0.
        assert_eq!(NodeId::of("").0, 1);
    }
}
