use super::super::export::tests::geometry;
use super::super::wire::request::StatusPayload;
use super::bench::{Answer, Bench, MODES, NO, SIZE};
use super::*;
use crate::block::Extent;
use proptest::prelude::*;

#[test]
fn reads_in_every_style() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        bench.request(Command::READ, NO, 4096, 3);
        let request = bench.taken();
        assert_eq!(
            request.op,
            Op::Read {
                offset_bytes: 4096,
                len_bytes: 3
            }
        );
        assert_eq!(bench.transmission.in_flight(), 1);
        bench.complete(request.id, Ok(Output::Data(Payload::from(vec![1, 2, 3]))));
        assert_eq!(bench.answers(), [(0xc0, Answer::Data(vec![1, 2, 3]))]);
        assert_eq!(bench.transmission.in_flight(), 0);
    }
}

#[test]
fn zeroes_leave_as_a_hole() {
    let mut bench = Bench::new(ReplyMode::Structured);
    bench.request(Command::READ, CommandFlags::DF, 512, 1 << 20);
    let id = bench.taken().id;
    bench.complete(id, Ok(Output::Data(Payload::zeroes(1 << 20))));
    assert_eq!(bench.answer(), Answer::Hole(512, 1 << 20));
}

#[test]
fn a_read_of_the_wrong_length_is_an_error() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        bench.request(Command::READ, NO, 0, 512);
        let id = bench.taken().id;
        bench.complete(id, Ok(Output::Data(Payload::zeroes(511))));
        assert_eq!(bench.errno(), Errno::EIO);
    }
}

#[test]
fn writes_keep_their_payload_by_reference() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        bench.write(CommandFlags::FUA, 8192, &[7; 5000]);
        let request = bench.taken();
        let Op::Write {
            offset_bytes: 8192,
            data,
            fua: true,
        } = request.op
        else {
            panic!("{request:?}");
        };
        assert_eq!(data.to_bytes(), vec![7; 5000]);
        assert_eq!(data.segments().len(), 1);
        bench.complete(request.id, Ok(Output::Done));
        assert_eq!(bench.answer(), Answer::Done);
    }
}

#[test]
fn a_write_of_32_mib_takes_no_more_memory_than_itself() {
    let mut bench = Bench::new(ReplyMode::Simple);
    let header = bench.header(Command::WRITE, NO, 0, 32 << 20);
    bench.receive(&header).unwrap();
    let piece = [0x5a; 1000];
    let mut left = 32 << 20;
    while left > 0 {
        let now = piece.len().min(left);
        bench.receive(&piece[..now]).unwrap();
        left -= now;
    }
    let request = bench.taken();
    let Op::Write { data, .. } = request.op else {
        panic!()
    };
    assert_eq!(data.len(), 32 << 20);
    assert!(data.segments().len() <= (32 << 20) / SLICE_MIN_BYTES + 1);
}

#[test]
fn trim_zeroes_cache_and_flush() {
    let mut bench = Bench::new(ReplyMode::Structured);
    bench.request(Command::TRIM, CommandFlags::FUA, 512, 1024);
    let trim = Op::Trim {
        offset_bytes: 512,
        len_bytes: 1024,
        fua: true,
    };
    assert_eq!(bench.taken().op, trim);
    bench.request(
        Command::WRITE_ZEROES,
        NO,
        0,
        0xffff_ffff & !511 & (SIZE - 1),
    );
    assert!(matches!(
        bench.taken().op,
        Op::WriteZeroes {
            may_unmap: true,
            fast_only: false,
            fua: false,
            ..
        }
    ));
    bench.request(
        Command::WRITE_ZEROES,
        CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
        0,
        512,
    );
    assert!(matches!(
        bench.taken().op,
        Op::WriteZeroes {
            may_unmap: false,
            fast_only: true,
            fua: false,
            ..
        }
    ));
    bench.request(Command::CACHE, NO, 0, 512);
    assert_eq!(
        bench.taken().op,
        Op::Cache {
            offset_bytes: 0,
            len_bytes: 512
        }
    );
    bench.request(Command::FLUSH, NO, 0, 0);
    let flush = bench.taken();
    assert_eq!(flush.op, Op::Flush);
    bench.complete(flush.id, Ok(Output::Done));
    assert_eq!(bench.answers(), [(0xc3, Answer::Done)]);
}

#[test]
fn extended_lengths_pass_4_gib() {
    let device = geometry(1 << 40);
    let mut bench = Bench::with(ReplyMode::Extended, true, device, Limits::default());
    bench.request(Command::TRIM, NO, 4096, 1 << 36);
    let trim = Op::Trim {
        offset_bytes: 4096,
        len_bytes: 1 << 36,
        fua: false,
    };
    assert_eq!(bench.taken().op, trim);
}

// proto.md, Error values; Command flags.
#[test]
fn what_is_not_served_is_refused_with_the_right_number() {
    let fua = CommandFlags::FUA;
    for (command, flags, offset, len, errno) in [
        (Command::READ, NO, SIZE - 512, 1024, Errno::EINVAL),
        (Command::READ, NO, u64::MAX, 512, Errno::EINVAL),
        (Command::READ, NO, 0, (32 << 20) + 1, Errno::EINVAL),
        (Command::READ, CommandFlags::REQ_ONE, 0, 512, Errno::EINVAL),
        (
            Command::READ,
            CommandFlags::from_bits_retain(1 << 9),
            0,
            512,
            Errno::EINVAL,
        ),
        (Command::TRIM, NO, SIZE, 512, Errno::EINVAL),
        (
            Command::TRIM,
            CommandFlags::FAST_ZERO,
            0,
            512,
            Errno::EINVAL,
        ),
        (Command::CACHE, NO, SIZE, 512, Errno::EINVAL),
        (Command::WRITE_ZEROES, NO, SIZE - 512, 1024, Errno::ENOSPC),
        (
            Command::WRITE_ZEROES,
            CommandFlags::DF,
            0,
            512,
            Errno::EINVAL,
        ),
        (Command::BLOCK_STATUS, NO, SIZE, 512, Errno::EINVAL),
        (Command::BLOCK_STATUS, NO, 0, 0, Errno::EINVAL),
        (Command::FLUSH, fua, 512, 0, Errno::EINVAL),
        (Command::FLUSH, fua, 0, 512, Errno::EINVAL),
        (Command::RESIZE, NO, 1 << 20, 0, Errno::EINVAL),
        (Command(999), NO, 0, 0, Errno::EINVAL),
    ] {
        for mode in MODES {
            let mut bench = Bench::new(mode);
            bench.request(command, flags, offset, len);
            assert!(bench.submitted.is_empty(), "{command:?}");
            assert_eq!(
                bench.errno(),
                errno,
                "{mode:?} {command:?} {flags:?} {offset}+{len}"
            );
        }
    }
}

#[test]
fn df_needs_a_style_with_chunks() {
    let mut bench = Bench::new(ReplyMode::Simple);
    bench.request(Command::READ, CommandFlags::DF, 0, 512);
    assert_eq!(bench.errno(), Errno::EINVAL);
}

#[test]
fn read_only_exports_refuse_everything_that_writes() {
    for mode in MODES {
        let device = Geometry {
            read_only: true,
            ..geometry(SIZE)
        };
        let mut bench = Bench::with(mode, true, device, Limits::default());
        bench.write(NO, 0, &[1; 512]);
        assert_eq!(bench.errno(), Errno::EPERM);
        for command in [Command::TRIM, Command::WRITE_ZEROES] {
            bench.request(command, NO, 0, 512);
            assert_eq!(bench.errno(), Errno::EPERM);
        }
        bench.request(Command::FLUSH, NO, 0, 0);
        assert_eq!(bench.taken().op, Op::Flush);
    }
}

#[test]
fn refused_writes_are_drained_and_the_stream_stays_in_step() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        bench.write(NO, SIZE - 512, &[0x25; 1024]);
        assert_eq!(bench.errno(), Errno::ENOSPC);
        bench.write(CommandFlags::NO_HOLE, 0, &[0x25; 9000]);
        assert_eq!(bench.errno(), Errno::EINVAL);
        bench.write(NO, 0, &vec![0x25; (32 << 20) + 1]);
        assert_eq!(bench.errno(), Errno::EINVAL);
        assert!(bench.input.is_empty());
        bench.request(Command::READ, NO, 0, 512);
        assert_eq!(
            bench.taken().op,
            Op::Read {
                offset_bytes: 0,
                len_bytes: 512
            }
        );
    }
}

#[test]
fn a_payload_without_end_closes() {
    let mut bench = Bench::new(ReplyMode::Extended);
    let header = bench.header(Command::WRITE, CommandFlags::PAYLOAD_LEN, 0, 1 << 40);
    assert_eq!(
        bench.receive(&header),
        Err(Error::PayloadTooLong {
            command: Command::WRITE,
            len_bytes: 1 << 40
        })
    );
}

#[test]
fn extended_writes_carry_data_also_when_the_flag_is_forgotten() {
    let mut bench = Bench::new(ReplyMode::Extended);
    let header = bench.header(Command::WRITE, NO, 0, 512);
    bench.receive(&[&header[..], &[7; 512]].concat()).unwrap();
    let data = Payload::from(vec![7; 512]);
    let write = Op::Write {
        offset_bytes: 0,
        data,
        fua: false,
    };
    assert_eq!(bench.taken().op, write);
}

#[test]
fn a_payload_on_another_command_is_consumed_and_refused() {
    let mut bench = Bench::new(ReplyMode::Extended);
    let header = bench.header(Command::READ, CommandFlags::PAYLOAD_LEN, 0, 600);
    bench
        .receive(&[&header[..], &[0xee; 600]].concat())
        .unwrap();
    assert_eq!(bench.errno(), Errno::EINVAL);
    assert!(bench.input.is_empty());
}

#[test]
fn a_wrong_magic_closes() {
    for mode in MODES {
        let mut bench = Bench::new(mode);
        assert!(matches!(bench.receive(&[0x12; 32]), Err(Error::Magic(_))));
    }
    let mut bench = Bench::new(ReplyMode::Extended);
    let compact = RequestHeader::parse_compact(&Bench::new(ReplyMode::Simple).header(
        Command::READ,
        NO,
        0,
        512,
    ))
    .unwrap()
    .emit_compact()
    .unwrap();
    assert!(bench.receive(&[&compact[..], &[0; 4]].concat()).is_err());
}

#[test]
fn nothing_is_answered_with_nothing() {
    for mode in MODES {
        for command in [Command::TRIM, Command::WRITE_ZEROES, Command::CACHE] {
            let mut bench = Bench::new(mode);
            bench.request(command, NO, SIZE, 0);
            assert!(bench.submitted.is_empty());
            assert_eq!(bench.answer(), Answer::Done);
        }
        let mut bench = Bench::new(mode);
        bench.write(NO, 0, &[]);
        assert_eq!(bench.answer(), Answer::Done);
        bench.request(Command::READ, NO, 0, 0);
        assert!(bench.submitted.is_empty());
        assert_eq!(bench.answers().len(), 1);
    }
}

#[test]
fn disc_ends_and_what_is_in_flight_is_still_answered() {
    let mut bench = Bench::new(ReplyMode::Structured);
    bench.write(NO, 0, &[1; 512]);
    let id = bench.taken().id;
    bench.request(Command::DISC, NO, 0, 0);
    assert!(bench.transmission.is_ended() && !bench.transmission.wants_input());
    bench.request(Command::FLUSH, NO, 0, 0);
    assert!(bench.submitted.is_empty(), "nothing is taken after DISC");
    assert_eq!(bench.transmission.in_flight(), 1);
    bench.complete(id, Ok(Output::Done));
    assert_eq!(bench.answer(), Answer::Done);
}

#[test]
fn replies_follow_completions_in_any_order() {
    let mut bench = Bench::new(ReplyMode::Structured);
    for offset in 0..3 {
        bench.request(Command::TRIM, NO, offset * 512, 512);
    }
    bench.request(Command::CACHE, NO, 0, 512);
    let ids: Vec<_> = bench.submitted.iter().map(|r| r.id).collect();
    bench.complete(ids[3], Ok(Output::Done));
    bench.complete(ids[0], Err(BlockError::NoSpace));
    bench.complete(ids[2], Ok(Output::Done));
    bench.complete(ids[1], Err(BlockError::Gone));
    let kinds: Vec<_> = bench
        .answers()
        .into_iter()
        .map(|(cookie, answer)| match answer {
            Answer::Error(errno, text) => {
                assert!(!text.is_empty());
                (cookie, errno)
            }
            _ => (cookie, Errno::OK),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            (0xc5, Errno::OK),
            (0xc4, Errno::ENOSPC),
            (0xc4, Errno::OK),
            (0xc4, Errno::ESHUTDOWN)
        ]
    );
}

#[test]
fn a_write_past_the_end_of_a_shrunk_device_is_enospc() {
    let mut bench = Bench::new(ReplyMode::Simple);
    bench.write(NO, 0, &[1; 512]);
    let id = bench.taken().id;
    bench.complete(id, Err(BlockError::OutOfRange));
    assert_eq!(bench.errno(), Errno::ENOSPC);
    bench.request(Command::READ, NO, 0, 512);
    let id = bench.taken().id;
    bench.complete(id, Err(BlockError::OutOfRange));
    assert_eq!(bench.errno(), Errno::EINVAL);
}

// proto.md, NBD_CMD_BLOCK_STATUS.
#[test]
fn block_status_in_both_widths() {
    for mode in [ReplyMode::Structured, ReplyMode::Extended] {
        let mut bench = Bench::new(mode);
        bench.request(Command::BLOCK_STATUS, NO, 0, 8192);
        let id = bench.taken().id;
        let extents = vec![
            Extent {
                len_bytes: 4096,
                hole: false,
                zero: false,
            },
            Extent {
                len_bytes: 1 << 20,
                hole: true,
                zero: true,
            },
        ];
        bench.complete(id, Ok(Output::Extents(extents.clone())));
        assert_eq!(
            bench.answer(),
            Answer::Status(vec![(4096, 0), (1 << 20, 3)])
        );
        bench.request(Command::BLOCK_STATUS, CommandFlags::REQ_ONE, 0, 8192);
        let id = bench.taken().id;
        bench.complete(id, Ok(Output::Extents(extents)));
        assert_eq!(bench.answer(), Answer::Status(vec![(4096, 0)]));
    }
}

#[test]
fn block_status_needs_a_context() {
    for mode in MODES {
        let mut bench = Bench::with(mode, false, geometry(SIZE), Limits::default());
        bench.request(Command::BLOCK_STATUS, NO, 0, 512);
        assert_eq!(bench.errno(), Errno::EINVAL);
    }
}

#[test]
fn status_that_cannot_be_told_is_data_and_misfortune_is_an_error() {
    let mut bench = Bench::new(ReplyMode::Structured);
    for (result, answer) in [
        (BlockError::NotSupported, Some(vec![(512, 0)])),
        (BlockError::Medium, Some(vec![(512, 0)])),
        (BlockError::Unavailable, None),
        (BlockError::Fenced, None),
    ] {
        bench.request(Command::BLOCK_STATUS, NO, 0, 512);
        let id = bench.taken().id;
        bench.complete(id, Err(result));
        match (answer, bench.answer()) {
            (Some(told), found) => assert_eq!(found, Answer::Status(told)),
            (None, found) => assert!(matches!(found, Answer::Error(..)), "{found:?}"),
        }
    }
}

// Extended headers: NBD_FLAG_BLOCK_STATUS_PAYLOAD.
#[test]
fn block_status_with_a_list_of_contexts() {
    let ask = |bench: &mut Bench, effect_len_bytes, context_ids: &[u32]| {
        let mut payload = Vec::new();
        StatusPayload {
            effect_len_bytes,
            context_ids: context_ids.to_vec(),
        }
        .emit(&mut payload);
        let len = payload.len() as u64;
        let flags = CommandFlags::PAYLOAD_LEN;
        let header = bench.header(Command::BLOCK_STATUS, flags, 4096, len);
        bench.receive(&[&header[..], &payload].concat()).unwrap();
    };
    let mut bench = Bench::new(ReplyMode::Extended);
    ask(&mut bench, 65536, &[BASE_ALLOCATION_ID]);
    assert_eq!(
        bench.taken().op,
        Op::BlockStatus {
            offset_bytes: 4096,
            len_bytes: 65536
        }
    );
    let twice = [BASE_ALLOCATION_ID, BASE_ALLOCATION_ID];
    for (len, ids) in [
        (65536, &[7][..]),
        (65536, &twice),
        (65536, &[]),
        (0, &[BASE_ALLOCATION_ID]),
        (SIZE, &[BASE_ALLOCATION_ID]),
        (u64::MAX, &[BASE_ALLOCATION_ID]),
    ] {
        ask(&mut bench, len, ids);
        assert_eq!(bench.errno(), Errno::EINVAL, "{len} {ids:?}");
    }
    assert!(bench.submitted.is_empty() && bench.input.is_empty());
    assert_eq!(
        bench.transmission.held_bytes,
        Limits::default().extents_max * EXTENT_BYTES
    );
}

#[test]
fn requests_in_flight_are_bounded() {
    let limits = Limits {
        requests_max: 4,
        ..Limits::default()
    };
    let mut bench = Bench::with(ReplyMode::Simple, false, geometry(SIZE), limits);
    let header = bench.header(Command::TRIM, NO, 0, 512);
    bench.receive(&header.repeat(10)).unwrap();
    assert_eq!(bench.submitted.len(), 4);
    assert!(!bench.transmission.wants_input());
    for taken in 5..=10 {
        let id = bench.submitted[taken - 5].id;
        bench.complete(id, Ok(Output::Done));
        bench.receive(&[]).unwrap();
        assert_eq!(bench.submitted.len(), taken);
    }
}

#[test]
fn bytes_in_flight_are_bounded_and_one_request_always_fits() {
    let limits = Limits {
        bytes_max: 8192,
        ..Limits::default()
    };
    let mut bench = Bench::with(ReplyMode::Simple, false, geometry(SIZE), limits);
    let header = bench.header(Command::READ, NO, 0, 4096);
    bench.receive(&header.repeat(3)).unwrap();
    assert_eq!(bench.submitted.len(), 2);
    // Completed is not sent: the data still counts.
    let id = bench.submitted[0].id;
    bench.complete(id, Ok(Output::Data(Payload::zeroes(4096))));
    bench.receive(&[]).unwrap();
    assert_eq!(bench.submitted.len(), 2);
    assert!(!bench.transmission.wants_input());
    bench.out.clear();
    bench.receive(&[]).unwrap();
    assert_eq!(bench.submitted.len(), 3);

    let mut bench = Bench::with(ReplyMode::Simple, false, geometry(SIZE), limits);
    bench.request(Command::READ, NO, 0, 32 << 20);
    assert_eq!(bench.submitted.len(), 1);
    bench.request(Command::READ, NO, 0, 1);
    assert_eq!(bench.submitted.len(), 1);
}

#[test]
fn ending_forgets_a_request_in_parts() {
    let mut bench = Bench::new(ReplyMode::Simple);
    let header = bench.header(Command::WRITE, NO, 0, 65536);
    bench.receive(&[&header[..], &[1; 9000]].concat()).unwrap();
    bench.transmission.end();
    bench.receive(&[1; 65536 - 9000]).unwrap();
    assert!(bench.submitted.is_empty());
    assert_eq!(bench.transmission.in_flight(), 0);
}

proptest! {
    /// Whatever a client sends, each request that is taken can be answered, and what is held returns
    /// to nothing.
    #[test]
    fn anything_is_survived_and_answered(
        mode in 0usize..3,
        requests in proptest::collection::vec(
            (0u16..10, 0u16..64, 0u64..1 << 21, 0u64..1 << 17, any::<bool>()), 0..20),
        chunk in 1usize..5000,
    ) {
        let limits = Limits { requests_max: 3, bytes_max: 1 << 16, ..Limits::default() };
        let mut bench = Bench::with(MODES[mode], true, geometry(1 << 20), limits);
        let mut sent = Vec::new();
        let mut expected = 0;
        for (command, flags, offset, len, small) in requests {
            let command = Command(command);
            let flags = CommandFlags::from_bits_retain(flags);
            let (offset, len) = if small { (offset & 0xffff, len & 0xfff) } else { (offset, len) };
            sent.extend(bench.header(command, flags, offset, len));
            let payload = match MODES[mode] {
                ReplyMode::Extended if flags.contains(CommandFlags::PAYLOAD_LEN) => true,
                _ => command == Command::WRITE,
            };
            if command == Command::DISC { break }
            expected += 1;
            if payload {
                sent.extend(std::iter::repeat_n(0xa5, usize::try_from(len).unwrap()));
            }
        }
        let mut answered = 0;
        let mut pieces = sent.chunks(chunk);
        loop {
            if bench.transmission.wants_input() {
                let Some(piece) = pieces.next() else { break };
                bench.receive(piece).unwrap();
            } else {
                bench.receive(&[]).unwrap();
            }
            prop_assert!(bench.transmission.in_flight() <= 3);
            if !bench.transmission.wants_input() || bench.submitted.len() > 1 {
                for request in std::mem::take(&mut bench.submitted) {
                    bench.complete(request.id, Err(BlockError::Medium));
                    answered += 1;
                }
                bench.out.clear();
            }
            if bench.transmission.is_ended() { break }
        }
        for request in std::mem::take(&mut bench.submitted) {
            bench.complete(request.id, Err(BlockError::Medium));
            answered += 1;
        }
        prop_assert!(answered <= expected);
        prop_assert_eq!(bench.transmission.in_flight(), 0);
        if bench.input.is_empty() && matches!(bench.transmission.state, State::Header) {
            prop_assert_eq!(bench.transmission.held_bytes, 0);
        }
    }

    #[test]
    fn garbage_never_panics(mode in 0usize..3, bytes: Vec<u8>) {
        let mut bench = Bench::new(MODES[mode]);
        let magic = if mode == 2 { [0x21, 0xe4, 0x1c, 0x71] } else { [0x25, 0x60, 0x95, 0x13] };
        let _ = bench.receive(&[&magic[..], &bytes].concat());
    }
}
