use super::*;
use berth_iobuf::SendQueue;
use proptest::prelude::*;

fn chunk(cookie: u64, done: bool, chunk_type: ChunkType, payload: &[u8]) -> Vec<u8> {
    let mut out = SendQueue::new();
    ChunkHeader {
        flags: if done {
            ChunkFlags::DONE
        } else {
            ChunkFlags::empty()
        },
        chunk_type,
        cookie,
        offset_bytes: 0,
        len_bytes: payload.len() as u64,
    }
    .emit_structured(&mut out);
    out.put(payload);
    out.to_vec()
}

fn data(cookie: u64, done: bool, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let payload = [&offset.to_be_bytes(), bytes].concat();
    chunk(cookie, done, ChunkType::OFFSET_DATA, &payload)
}

fn hole(cookie: u64, offset_bytes: u64, len_bytes: u32) -> Vec<u8> {
    let hole = Hole {
        offset_bytes,
        len_bytes,
    };
    chunk(cookie, false, ChunkType::OFFSET_HOLE, &hole.emit())
}

fn done(cookie: u64) -> Vec<u8> {
    chunk(cookie, true, ChunkType::NONE, &[])
}

fn feed(replies: &mut Replies, bytes: &[u8]) -> Result<Vec<Completed>, ClientError> {
    let mut input = ReceiveBuffer::new();
    input.extend(bytes);
    let mut completed = Vec::new();
    replies.handle_input(&mut input, |one| completed.push(one))?;
    Ok(completed)
}

fn reading(len_bytes: u32) -> (Replies, u64) {
    let mut replies = Replies::new(ReplyMode::Structured);
    let cookie = replies.expect(1000, Expect::Data { len_bytes });
    (replies, cookie)
}

// proto.md, Structured reply chunk types: content chunks in any order, then DONE.
#[test]
fn chunks_are_put_in_order() {
    let (mut replies, cookie) = reading(12);
    let bytes = [
        data(cookie, false, 1008, &[3, 3, 3, 3]),
        hole(cookie, 1004, 4),
        data(cookie, false, 1000, &[1, 1, 1, 1]),
        done(cookie),
    ];
    let completed = feed(&mut replies, &bytes.concat()).unwrap();
    let Ok(Output::Data(data)) = &completed[0].result else {
        panic!("{completed:?}")
    };
    assert_eq!(data.to_bytes(), &[1, 1, 1, 1, 0, 0, 0, 0, 3, 3, 3, 3][..]);
    assert_eq!(replies.in_flight(), 0);
}

#[test]
fn an_error_after_data_fails_the_request_only() {
    let (mut replies, cookie) = reading(4);
    let mut payload = Vec::new();
    crate::nbd::wire::chunk::emit_error(Errno::EIO, "lost", &mut payload);
    let bytes = [
        data(cookie, false, 1000, &[1, 1, 1, 1]),
        chunk(cookie, true, ChunkType::ERROR, &payload),
    ];
    let completed = feed(&mut replies, &bytes.concat()).unwrap();
    let error = completed[0].result.as_ref().unwrap_err();
    assert_eq!((error.errno, error.message.as_str()), (Errno::EIO, "lost"));
}

#[test]
fn what_a_server_must_not_do_is_an_error() {
    let (_, cookie) = reading(4);
    let simple = SimpleReply {
        errno: Errno::OK,
        cookie,
    }
    .emit()
    .to_vec();
    for (what, bytes) in [
        (
            "gap",
            [data(cookie, false, 1001, &[1, 1, 1]), done(cookie)].concat(),
        ),
        (
            "overlap",
            [
                data(cookie, false, 1000, &[1; 4]),
                data(cookie, true, 1000, &[1]),
            ]
            .concat(),
        ),
        ("outside", data(cookie, true, 1001, &[1; 4])),
        ("before", data(cookie, true, 999, &[1])),
        ("too little", data(cookie, true, 1000, &[1; 3])),
        ("empty data", data(cookie, true, 1000, &[])),
        ("hole outside", hole(cookie, 1000, 5)),
        ("other cookie", done(cookie + 1)),
        ("other generation", done(cookie + (1 << 32))),
        (
            "none without done",
            chunk(cookie, false, ChunkType::NONE, &[]),
        ),
        ("unknown type", chunk(cookie, true, ChunkType(77), &[])),
        (
            "status",
            chunk(cookie, true, ChunkType::BLOCK_STATUS, &[0; 12]),
        ),
        ("simple", simple),
        (
            "long hole",
            chunk(cookie, true, ChunkType::OFFSET_HOLE, &[1; 13]),
        ),
        ("magic", vec![7; 32]),
    ] {
        let (mut replies, _) = reading(4);
        assert!(feed(&mut replies, &bytes).is_err(), "{what}");
    }
}

#[test]
fn a_reply_that_comes_twice_is_noticed() {
    let mut replies = Replies::new(ReplyMode::Simple);
    let first = replies.expect(0, Expect::Nothing);
    let reply = SimpleReply {
        errno: Errno::OK,
        cookie: first,
    }
    .emit();
    assert_eq!(feed(&mut replies, &reply).unwrap().len(), 1);
    replies.expect(0, Expect::Nothing);
    assert!(feed(&mut replies, &reply).is_err());
}

proptest! {
    #[test]
    fn any_cut_gives_the_same(cuts in proptest::collection::vec(1usize..9000, 1..20)) {
        let mut bytes = Vec::new();
        let mut replies = Replies::new(ReplyMode::Structured);
        let mut cookies = Vec::new();
        for i in 0..4u64 {
            let cookie = replies.expect(i * 10_000, Expect::Data { len_bytes: 10_000 });
            bytes.extend(data(cookie, false, i * 10_000 + 5000, &[i as u8; 5000]));
            bytes.extend(hole(cookie, i * 10_000, 5000));
            bytes.extend(done(cookie));
            cookies.push(cookie);
        }
        let mut input = ReceiveBuffer::new();
        let mut completed = Vec::new();
        let mut rest = &bytes[..];
        for cut in cuts.into_iter().cycle() {
            if rest.is_empty() { break }
            let (now, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            input.extend(now);
            replies.handle_input(&mut input, |one| completed.push(one)).unwrap();
        }
        prop_assert_eq!(completed.len(), 4);
        for (i, one) in completed.iter().enumerate() {
            prop_assert_eq!(one.token, Token(cookies[i]));
            let Ok(Output::Data(data)) = &one.result else { panic!() };
            let expected = [vec![0; 5000], vec![i as u8; 5000]].concat();
            prop_assert_eq!(data.to_bytes(), expected);
        }
    }

    #[test]
    fn garbage_never_panics(mode in 0usize..3, mut bytes: Vec<u8>) {
        let modes = [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended];
        let mut replies = Replies::new(modes[mode]);
        let cookie = replies.expect(0, Expect::Data { len_bytes: 64 });
        let magics = [0x6744_6698u32, 0x668e_33ef, 0x6e8a_278c];
        for (at, byte) in magics[mode].to_be_bytes().into_iter().enumerate() {
            if let Some(to) = bytes.get_mut(at) { *to = byte }
        }
        if let Some(to) = bytes.get_mut(8..16) { to.copy_from_slice(&cookie.to_be_bytes()) }
        let _ = feed(&mut replies, &bytes);
    }
}
