//! An NBD client's requests, in reads of any size, over a device that answers late and out of order: every request is
//! answered exactly once, what reaches the device is inside it, and what is held stays bounded.
//! Byte 0 chooses the style, the device and the order, byte 1 the size of the reads.
#![no_main]

use std::collections::HashMap;

use berth_agent::block::{Completion, Error, Extent, Geometry, Op, Output, Request};
use berth_agent::nbd::handshake::{Negotiated, ReplyMode};
use berth_agent::nbd::transmission::{Limits, Transmission};
use berth_agent::nbd::wire::TransmissionFlags;
use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use libfuzzer_sys::fuzz_target;

const SIZE_BYTES: u64 = 1 << 20;

fn geometry(read_only: bool) -> Geometry {
    Geometry {
        size_bytes: SIZE_BYTES,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        optimal_io_bytes: 4096,
        transfer_max_bytes: 1 << 20,
        read_only,
        write_cache: true,
        rotational: false,
        trim: None,
        write_zeroes: None,
        provisioning_map: true,
    }
}

fn inside(offset_bytes: u64, len_bytes: u64) {
    let end = offset_bytes.checked_add(len_bytes).expect("no overflow");
    assert!(
        end <= SIZE_BYTES,
        "{offset_bytes}+{len_bytes} reaches the device"
    );
}

fn answer(request: &Request, fail: bool, read_only: bool) -> Result<Output, Error> {
    let done = match &request.op {
        Op::Read {
            offset_bytes,
            len_bytes,
        } => {
            inside(*offset_bytes, (*len_bytes).into());
            Output::Data(Payload::zeroes(*len_bytes as usize))
        }
        Op::Write {
            offset_bytes, data, ..
        } => {
            assert!(!read_only);
            inside(*offset_bytes, data.len() as u64);
            Output::Done
        }
        Op::Trim {
            offset_bytes,
            len_bytes,
            ..
        }
        | Op::WriteZeroes {
            offset_bytes,
            len_bytes,
            ..
        } => {
            assert!(!read_only);
            inside(*offset_bytes, *len_bytes);
            Output::Done
        }
        Op::Cache {
            offset_bytes,
            len_bytes,
        } => {
            inside(*offset_bytes, *len_bytes);
            Output::Done
        }
        Op::BlockStatus {
            offset_bytes,
            len_bytes,
        } => {
            inside(*offset_bytes, *len_bytes);
            assert!(*len_bytes > 0);
            let extent = |len_bytes| Extent {
                len_bytes,
                hole: true,
                zero: true,
            };
            Output::Extents(vec![extent(512), extent(1 << 32)])
        }
        Op::Flush => Output::Done,
        Op::ReadToMerge { .. } => panic!("no client can ask for that"),
    };
    if fail { Err(Error::Medium) } else { Ok(done) }
}

fuzz_target!(|bytes: &[u8]| {
    let [mode, size, wire @ ..] = bytes else {
        return;
    };
    let read_only = mode & 4 != 0;
    let device = geometry(read_only);
    let info = berth_agent::nbd::export::ExportInfo::new("a", "", &device);
    let negotiated = Negotiated {
        mode: [
            ReplyMode::Simple,
            ReplyMode::Structured,
            ReplyMode::Extended,
        ][usize::from(mode & 3) % 3],
        base_allocation: mode & 8 != 0,
        flags: info.flags
            | if mode & 3 == 0 {
                TransmissionFlags::empty()
            } else {
                TransmissionFlags::SEND_DF
            },
        ..Negotiated::for_kernel(&info)
    };
    let limits = Limits {
        requests_max: 8,
        bytes_max: 256 * 1024,
        extents_max: 64,
    };
    let mut transmission = Transmission::new(&negotiated, limits);
    let (mut input, mut out) = (ReceiveBuffer::new(), SendQueue::new());
    let mut waiting: HashMap<u64, Request> = HashMap::new();
    let mut pieces = wire.chunks(usize::from(*size).pow(2) + 1);
    let mut submitted = Vec::new();
    loop {
        let blocked = !transmission.wants_input();
        if !blocked {
            let Some(piece) = pieces.next() else { break };
            input.extend(piece);
        }
        let result = transmission.handle_input(&mut input, &mut out, &device, |request| {
            submitted.push(request)
        });
        for request in submitted.drain(..) {
            assert!(
                waiting.insert(request.id, request).is_none(),
                "an id is given twice"
            );
        }
        assert_eq!(transmission.in_flight(), waiting.len());
        assert!(waiting.len() <= limits.requests_max);
        if result.is_err() {
            break;
        }
        // A slow device: at a bound it has to answer something, else the client waits for ever.
        if !transmission.wants_input() && !transmission.is_ended() {
            out.clear();
            let id = if mode & 16 == 0 {
                waiting.keys().min()
            } else {
                waiting.keys().max()
            };
            if let Some(request) = id.copied().and_then(|id| waiting.remove(&id)) {
                let result = answer(&request, mode & 32 != 0, read_only);
                transmission.complete(
                    Completion {
                        id: request.id,
                        result,
                    },
                    &device,
                    &mut out,
                );
                assert!(!out.is_empty(), "a request without a reply");
            }
        }
        if transmission.is_ended() {
            break;
        }
    }
    let waiting: Vec<Request> = waiting.into_values().collect();
    for request in waiting {
        out.clear();
        let result = answer(&request, mode & 32 != 0, read_only);
        transmission.complete(
            Completion {
                id: request.id,
                result,
            },
            &device,
            &mut out,
        );
        assert!(!out.is_empty(), "a request without a reply");
    }
    assert_eq!(transmission.in_flight(), 0);
});
