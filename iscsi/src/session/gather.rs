//! The slices of a read, in order.

use berth_iobuf::Payload;

/// Slices after which it is looked at whether they are worth their overhead.
const SLICES_PER_CHECK: usize = 256;
/// Average length in bytes below which slices are copied together: a target that sends (or a network
/// that delivers) a few bytes at a time must not make us hold a receive chunk for each of them.
const SLICE_WORTH_BYTES: usize = 256;

/// Collects slices without copying them, unless they are tiny and many.
#[derive(Debug, Default)]
pub(super) struct Gather {
    settled: Payload,
    recent: Payload,
}

impl Gather {
    pub(super) fn len(&self) -> usize {
        self.settled.len() + self.recent.len()
    }

    pub(super) fn append(&mut self, data: Payload) {
        self.recent.append(data);
        let slices = self.recent.segments().len();
        if slices >= SLICES_PER_CHECK {
            let recent = std::mem::take(&mut self.recent);
            if recent.len() / slices < SLICE_WORTH_BYTES {
                self.settled.push(recent.to_bytes());
            } else {
                self.settled.append(recent);
            }
        }
    }

    pub(super) fn take(&mut self) -> Payload {
        if self.settled.is_empty() {
            return std::mem::take(&mut self.recent);
        }
        let mut all = std::mem::take(&mut self.settled);
        all.append(std::mem::take(&mut self.recent));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn usual_slices_are_kept_as_they_are() {
        let mut gather = Gather::default();
        let page = Bytes::from(vec![7; 4096]);
        for _ in 0..1000 {
            gather.append(Payload::from(page.clone()));
        }
        let data = gather.take();
        assert_eq!(data.len(), 4096 * 1000);
        assert!(data.segments().iter().all(|s| s.as_ptr() == page.as_ptr()));
        assert_eq!(gather.len(), 0);
    }

    #[test]
    fn crumbs_are_swept_together_in_order() {
        let mut gather = Gather::default();
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        for byte in &bytes {
            gather.append(Payload::from(vec![*byte]));
        }
        assert_eq!(gather.len(), bytes.len());
        let data = gather.take();
        assert_eq!(data.to_bytes(), bytes);
        assert!(data.segments().len() <= 10_000 / SLICES_PER_CHECK + SLICES_PER_CHECK);
    }
}
