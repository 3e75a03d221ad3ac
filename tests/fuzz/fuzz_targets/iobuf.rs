//! The byte plumbing of both data paths against a plain vector: what is put in comes out, in order and once.
#![no_main]

use std::io::IoSlice;

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use bytes::Bytes;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
enum Step {
    Put { len: u16 },
    PutShared { len: u16 },
    PutPayload { cuts: [u16; 3], from: u16, len: u16 },
    Send { len: u32 },
    Receive { len: u16 },
    Take { len: u16, keep: bool },
    Skip { len: u16 },
}

/// Bytes that tell where they came from.
struct Source(u8);

impl Source {
    fn bytes(&mut self, len: u16) -> Vec<u8> {
        (0..len)
            .map(|_| {
                self.0 = self.0.wrapping_mul(29).wrapping_add(17);
                self.0
            })
            .collect()
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut source = Source(1);
    let (mut queue, mut queue_model) = (SendQueue::new(), Vec::new());
    let (mut buffer, mut buffer_model) = (ReceiveBuffer::new(), Vec::<u8>::new());
    let mut kept: Vec<(Bytes, Vec<u8>)> = Vec::new();
    for step in steps.into_iter().take(256) {
        match step {
            Step::Put { len } => {
                let bytes = source.bytes(len);
                queue.put(&bytes);
                queue_model.extend(bytes);
            }
            Step::PutShared { len } => {
                let bytes = source.bytes(len);
                queue.put_shared(Bytes::from(bytes.clone()));
                queue_model.extend(bytes);
            }
            Step::PutPayload { cuts, from, len } => {
                let (mut payload, mut model) = (Payload::new(), Vec::new());
                for cut in cuts {
                    let bytes = source.bytes(cut % 5000);
                    payload.push(Bytes::from(bytes.clone()));
                    model.extend(bytes);
                }
                let from = usize::from(from) % (model.len() + 1);
                let len = usize::from(len) % (model.len() - from + 1);
                let part = payload.slice(from, len);
                assert_eq!(part.to_bytes(), model[from..from + len]);
                queue.put_payload(&part);
                queue_model.extend(&model[from..from + len]);
            }
            Step::Send { len } => {
                let len = len as usize % (queue.len() + 1);
                let mut slices: Vec<IoSlice<'_>> = Vec::new();
                queue.io_slices(&mut slices);
                let on_offer: Vec<u8> = slices.iter().flat_map(|s| s.iter().copied()).collect();
                assert_eq!(on_offer, queue_model[..on_offer.len()]);
                assert!(!on_offer.is_empty() || queue.is_empty());
                queue.advance(len);
                queue_model.drain(..len);
            }
            Step::Receive { len } => {
                let bytes = source.bytes(len);
                let room = buffer.room();
                assert!(room.capacity() - room.len() >= 16 * 1024);
                buffer.extend(&bytes);
                buffer_model.extend(bytes);
            }
            Step::Take { len, keep } => {
                let len = usize::from(len) % (buffer.len() + 1);
                let taken = buffer.take(len);
                let model: Vec<u8> = buffer_model.drain(..len).collect();
                assert_eq!(taken, model);
                // A slice that somebody still holds must not change when its chunk is reused.
                if keep && kept.len() < 64 {
                    kept.push((taken, model));
                }
            }
            Step::Skip { len } => {
                let len = usize::from(len) % (buffer.len() + 1);
                buffer.skip(len);
                buffer_model.drain(..len);
            }
        }
        assert_eq!(queue.len(), queue_model.len());
        assert_eq!(buffer.bytes(), buffer_model);
    }
    assert_eq!(queue.to_vec(), queue_model);
    for (slice, model) in kept {
        assert_eq!(slice, model);
    }
});
