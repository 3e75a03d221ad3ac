//! Big-endian fields at byte offsets, as SCSI lays them out.
//!
//! Reads are total: what lies beyond the end is zero (SPC-4 4.3.5.6, truncated replies).

/// The byte at `at`, or 0.
pub(crate) fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

/// Whether `bit` of the byte at `at` is set.
pub(crate) fn bit(bytes: &[u8], at: usize, bit: u8) -> bool {
    byte(bytes, at) >> bit & 1 == 1
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    let tail = bytes.get(at..).unwrap_or_default();
    let n = N.min(tail.len());
    out[..n].copy_from_slice(&tail[..n]);
    out
}

/// 16 bits at `at`.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

/// 32 bits at `at`.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

/// 64 bits at `at`.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// The bytes `at..at + len`, cut at the end of `bytes`.
pub(crate) fn range(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    let tail = bytes.get(at..).unwrap_or_default();
    &tail[..len.min(tail.len())]
}

/// `flag` as bit number `bit`.
pub(crate) const fn flag(flag: bool, bit: u8) -> u8 {
    (flag as u8) << bit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_end_is_zero() {
        let bytes = [0x12, 0x34, 0x56];
        assert_eq!(be16(&bytes, 1), 0x3456);
        assert_eq!(be32(&bytes, 1), 0x3456_0000);
        assert_eq!(be64(&bytes, 9), 0);
        assert_eq!(byte(&bytes, usize::MAX), 0);
        assert_eq!(range(&bytes, 1, usize::MAX), &[0x34, 0x56]);
        assert_eq!(range(&bytes, 4, 1), &[0u8; 0]);
    }
}
