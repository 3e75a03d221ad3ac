//! Ragged requests against a model disk.

use super::super::model::ModelDevice;
use super::*;
use proptest::prelude::*;

const SIZE: u64 = 64 * 512;

fn align() -> Align<ModelDevice> {
    Align::new(ModelDevice::new(SIZE, 512, 1 << 20))
}

fn write(id: RequestId, offset_bytes: u64, len: usize, byte: u8) -> Request {
    let data = Payload::from(vec![byte; len]);
    Request {
        id,
        op: Op::Write {
            offset_bytes,
            data,
            fua: false,
        },
    }
}

fn run(align: &mut Align<ModelDevice>) -> Vec<Completion> {
    std::iter::from_fn(|| align.poll_complete()).collect()
}

#[test]
fn an_aligned_write_waits_for_a_read_modify_write_of_the_same_block() {
    // Otherwise the merged write would put back what the aligned write had replaced.
    let mut align = align();
    align.device.held = true;
    align.submit(write(1, 10, 4, 0xaa));
    align.submit(write(2, 0, 512, 0xbb));
    align.submit(write(3, 512, 512, 0xcc));
    assert_eq!(align.waiting.len(), 1, "only the overlapping write waits");
    align.device.held = false;
    align.device.reverse = true;
    let answers = run(&mut align);
    assert_eq!(answers.len(), 3);
    assert!(answers.iter().all(|c| c.result == Ok(Output::Done)));
    assert_eq!(align.device.bytes[..512], [0xbb; 512]);
}

#[test]
fn a_read_modify_write_waits_for_an_aligned_write_in_flight() {
    let mut align = align();
    align.device.held = true;
    align.submit(write(1, 0, 512, 0xbb));
    align.submit(write(2, 10, 4, 0xaa));
    align.device.held = false;
    run(&mut align);
    assert_eq!(
        align.device.bytes[9..15],
        [0xbb, 0xaa, 0xaa, 0xaa, 0xaa, 0xbb]
    );
}

#[test]
fn later_writes_do_not_overtake_a_waiting_one_that_they_overlap() {
    let mut align = align();
    align.device.held = true;
    align.submit(write(1, 10, 4, 1));
    align.submit(write(2, 20, 1000, 2));
    align.submit(write(3, 512, 512, 3));
    assert_eq!(align.waiting.len(), 2);
    align.device.held = false;
    assert_eq!(run(&mut align).len(), 3);
    assert_eq!(align.device.bytes[512..1024], [3; 512]);
    assert!(align.writing.is_empty() && align.steps.is_empty());
}

#[test]
fn zeroes_may_start_at_the_first_block_and_end_inside_of_one() {
    // Found by the simulation (seed 175): there is no block before the first.
    let mut align = align();
    align.submit(write(1, 0, 2048, 0xaa));
    align.submit(Request {
        id: 2,
        op: Op::WriteZeroes {
            offset_bytes: 0,
            len_bytes: 704,
            may_unmap: true,
            fast_only: false,
            fua: true,
        },
    });
    assert!(run(&mut align).iter().all(|c| c.result == Ok(Output::Done)));
    assert_eq!(align.device.bytes[..704], [0; 704]);
    assert_eq!(align.device.bytes[704..2048], [0xaa; 1344]);
}

#[test]
fn a_failed_read_fails_the_write_and_frees_the_range() {
    let mut align = align();
    align.device.fail_next(Error::Medium);
    align.submit(write(1, 10, 4, 1));
    assert_eq!(
        run(&mut align),
        [Completion {
            id: 1,
            result: Err(Error::Medium)
        }]
    );
    align.submit(write(2, 0, 512, 2));
    assert_eq!(
        run(&mut align),
        [Completion {
            id: 2,
            result: Ok(Output::Done)
        }]
    );
}

#[test]
fn ranges_beyond_the_device_are_refused_without_io() {
    let mut align = align();
    align.submit(write(1, SIZE - 4, 8, 1));
    align.submit(Request {
        id: 2,
        op: Op::Read {
            offset_bytes: u64::MAX,
            len_bytes: 2,
        },
    });
    let answers = run(&mut align);
    assert!(answers.iter().all(|c| c.result == Err(Error::OutOfRange)));
    assert!(align.device.log.is_empty());
}

#[test]
fn trim_is_rounded_inward() {
    let mut align = align();
    align.submit(Request {
        id: 1,
        op: Op::Trim {
            offset_bytes: 1,
            len_bytes: 1500,
            fua: false,
        },
    });
    align.submit(Request {
        id: 2,
        op: Op::Trim {
            offset_bytes: 1,
            len_bytes: 500,
            fua: false,
        },
    });
    assert_eq!(run(&mut align).len(), 2);
    assert_eq!(
        align.device.log,
        [Op::Trim {
            offset_bytes: 512,
            len_bytes: 512,
            fua: false
        }]
    );
}

proptest! {
    #[test]
    fn any_mix_of_ragged_requests_agrees_with_a_flat_model(
        ops in proptest::collection::vec((0u8..3, 0u64..SIZE, 1u64..3000, any::<u8>()), 1..40),
        reverse in any::<bool>(),
    ) {
        let mut align = align();
        align.device.reverse = reverse;
        let mut flat = align.device.bytes.clone();
        for (id, (kind, offset, len, byte)) in ops.into_iter().enumerate() {
            let len = len.min(SIZE - offset);
            let (from, to) = (offset as usize, (offset + len) as usize);
            let id = id as u64;
            match kind {
                0 => { align.submit(write(id, offset, len as usize, byte)); flat[from..to].fill(byte); }
                1 => {
                    align.submit(Request { id, op: Op::WriteZeroes { offset_bytes: offset, len_bytes: len, may_unmap: true, fast_only: false, fua: false } });
                    flat[from..to].fill(0);
                }
                _ => {
                    align.submit(Request { id, op: Op::Read { offset_bytes: offset, len_bytes: len as u32 } });
                    let answers = run(&mut align);
                    let last = answers.iter().find(|c| c.id == id).cloned();
                    let Some(Completion { result: Ok(Output::Data(data)), .. }) = last else { panic!("no data") };
                    prop_assert_eq!(data.to_bytes(), &flat[from..to]);
                    continue;
                }
            }
            let answers = run(&mut align);
            prop_assert_eq!(answers, vec![Completion { id, result: Ok(Output::Done) }]);
        }
        prop_assert_eq!(&align.device.bytes, &flat);
        prop_assert!(align.steps.is_empty() && align.writing.is_empty());
    }
}
