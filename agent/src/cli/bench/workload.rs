//! What is asked of an attachment: which requests, where, with which data.

use berth_api::AttachmentName;
use berth_iobuf::Payload;
use bytes::Bytes;
use clap::{Args, ValueEnum};

use crate::block::Op;

/// Different payloads that writes take in turn, so that a volume that recognises equal blocks has
/// little to recognise.
const PAYLOADS: usize = 16;
/// Longest request, in bytes: what every NBD server takes.
const REQUEST_MAX_BYTES: u32 = 32 * 1024 * 1024;

/// Arguments of `berthctl bench`.
#[derive(Debug, Args)]
pub(in crate::cli) struct Bench {
    /// Name of the attachment
    pub(in crate::cli) name: AttachmentName,
    /// Which requests
    #[arg(long, value_enum, default_value_t = Pattern::Randread)]
    pub(in crate::cli) pattern: Pattern,
    /// Bytes of a request, as 4k, 128k, 1m
    #[arg(long, default_value = "4k", value_parser = parse_size)]
    pub(in crate::cli) size: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(in crate::cli) depth: u32,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86400))]
    pub(in crate::cli) seconds: u32,
    /// Allow patterns that overwrite what the volume holds
    #[arg(long)]
    pub(in crate::cli) destructive: bool,
}

/// Which requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Pattern {
    /// Reads at random places
    Randread,
    /// Writes at random places (destroys data)
    Randwrite,
    /// Reads one after the other
    Read,
    /// Writes one after the other (destroys data)
    Write,
}

impl Pattern {
    /// Whether data is lost.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Randwrite | Self::Write)
    }

    fn is_random(self) -> bool {
        matches!(self, Self::Randread | Self::Randwrite)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Parses a size as `512`, `4k`, `1m`; a multiple of 512 up to 32 MiB.
pub(in crate::cli) fn parse_size(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1024),
        Some(b'm') => (&lower[..lower.len() - 1], 1024 * 1024),
        _ => (lower.as_str(), 1),
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .filter(|bytes| (512..=REQUEST_MAX_BYTES).contains(bytes) && bytes.is_multiple_of(512))
        .ok_or_else(|| "expected a multiple of 512 up to 32m, as 4k or 1m".to_owned())
}

/// Gives one request after the other, all within the device.
pub(super) struct Workload {
    pattern: Pattern,
    len_bytes: u32,
    /// Requests that fit the device side by side.
    slots: u64,
    next_slot: u64,
    random: Random,
    payloads: Vec<Payload>,
}

impl Workload {
    /// `None` if the device is smaller than one request.
    pub(super) fn new(
        pattern: Pattern,
        len_bytes: u32,
        device_bytes: u64,
        seed: u64,
    ) -> Option<Self> {
        let slots = device_bytes / u64::from(len_bytes);
        if slots == 0 {
            return None;
        }
        let mut random = Random(seed | 1);
        let payloads = if pattern.writes() {
            (0..PAYLOADS)
                .map(|_| Payload::from(random.bytes(len_bytes as usize)))
                .collect()
        } else {
            Vec::new()
        };
        Some(Self {
            pattern,
            len_bytes,
            slots,
            next_slot: 0,
            random,
            payloads,
        })
    }

    /// The next request.
    pub(super) fn next_op(&mut self) -> Op {
        let slot = if self.pattern.is_random() {
            self.random.next() % self.slots
        } else {
            self.next_slot % self.slots
        };
        self.next_slot += 1;
        let offset_bytes = slot * u64::from(self.len_bytes);
        if self.pattern.writes() {
            let payload = self.next_slot as usize % self.payloads.len();
            Op::Write {
                offset_bytes,
                data: self.payloads[payload].clone(),
                fua: false,
            }
        } else {
            Op::Read {
                offset_bytes,
                len_bytes: self.len_bytes,
            }
        }
    }
}

/// xorshift64* (Vigna 2016): fast enough not to be measured, and nothing depends on its quality.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self, len: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("512", 512),
            ("4k", 4096),
            ("128K", 131_072),
            ("32m", 33_554_432),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in [
            "",
            "k",
            "0",
            "100",
            "4kb",
            "33m",
            "-4k",
            "4096m",
            "99999999999",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn requests_stay_within_the_device() {
        let device = 10 * 4096 + 100;
        for pattern in [
            Pattern::Randread,
            Pattern::Randwrite,
            Pattern::Read,
            Pattern::Write,
        ] {
            let mut workload = Workload::new(pattern, 4096, device, 7).unwrap();
            let mut offsets = std::collections::BTreeSet::new();
            for _ in 0..1000 {
                let (offset, len) = match workload.next_op() {
                    Op::Read {
                        offset_bytes,
                        len_bytes,
                    } => (offset_bytes, u64::from(len_bytes)),
                    Op::Write {
                        offset_bytes, data, ..
                    } => (offset_bytes, data.len() as u64),
                    other => panic!("{other:?}"),
                };
                assert_eq!(len, 4096);
                assert!(offset + len <= device && offset % 4096 == 0);
                offsets.insert(offset);
            }
            assert_eq!(offsets.len(), 10, "{pattern:?} goes everywhere");
        }
        assert!(Workload::new(Pattern::Read, 4096, 4095, 7).is_none());
    }

    #[test]
    fn sequential_is_in_order_and_starts_again() {
        let mut workload = Workload::new(Pattern::Read, 512, 1024, 7).unwrap();
        let offsets: Vec<_> = (0..4)
            .map(|_| match workload.next_op() {
                Op::Read { offset_bytes, .. } => offset_bytes,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(offsets, [0, 512, 0, 512]);
    }
}
