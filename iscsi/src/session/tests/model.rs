//! Writes and reads under every combination of negotiated values, against a target that follows
//! RFC 7143 to the letter and checks that the initiator does (4.2.5, 11.3, 11.7, 11.8, 13.10 to 13.17).

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Keys {
    initial_r2t: bool,
    immediate_data: bool,
    first_burst: u32,
    max_burst: u32,
    target_recv: u32,
    outstanding: u16,
    header_digest: bool,
    data_digest: bool,
    window: u32,
}

fn keys() -> impl Strategy<Value = Keys> {
    (
        any::<(bool, bool, bool, bool)>(),
        512u32..5000,
        512u32..5000,
        512u32..3000,
        1u16..5,
        1u32..6,
    )
        .prop_map(
            |(bits, burst, other, target_recv, outstanding, window)| Keys {
                initial_r2t: bits.0,
                immediate_data: bits.1,
                first_burst: burst.min(other),
                max_burst: burst.max(other),
                target_recv,
                outstanding,
                header_digest: bits.2,
                data_digest: bits.3,
                window,
            },
        )
}

/// One write as the target sees it.
#[derive(Debug)]
struct Received {
    tag: u64,
    itt: Itt,
    lun: Lun,
    data: Vec<u8>,
    expected: usize,
    /// End of the unsolicited data that the command announced, and its next DataSN.
    unsolicited: Option<(usize, u32)>,
    /// Open R2Ts: tag, next offset, end, next DataSN.
    open: Vec<(u32, usize, usize, u32)>,
    granted: usize,
    r2t_sn: u32,
}

struct Model {
    rig: Rig,
    keys: Keys,
    writes: Vec<Received>,
    next_ttt: u32,
    done: Vec<(u64, Vec<u8>)>,
    /// How often the target answers before it grants, to vary the order.
    choices: Vec<u8>,
    step: usize,
}

impl Model {
    fn choose(&mut self, n: usize) -> usize {
        self.step += 1;
        usize::from(self.choices[self.step % self.choices.len()]) % n
    }

    fn on_command(&mut self, pdu: &ScsiCommand) {
        assert_eq!(pdu.cmd_sn, CmdSn(self.rig.exp_cmd_sn), "commands in order");
        assert!(
            !CmdSn(self.rig.max_cmd_sn).is_before(pdu.cmd_sn),
            "outside the window"
        );
        self.rig.exp_cmd_sn = self.rig.exp_cmd_sn.wrapping_add(1);
        for write in &self.writes {
            assert!(
                write.unsolicited.is_none(),
                "a command before the unsolicited data of the last"
            );
        }
        let expected = pdu.expected_len_bytes as usize;
        let first_burst = expected.min(self.keys.first_burst as usize);
        let immediate = pdu.data.len();
        assert!(immediate == 0 || self.keys.immediate_data);
        assert!(immediate <= first_burst && immediate <= self.keys.target_recv as usize);
        assert!(
            pdu.final_ || !self.keys.initial_r2t,
            "F=0 means unsolicited data"
        );
        assert!(pdu.final_ || immediate < expected);
        let unsolicited = (!pdu.final_).then_some((first_burst, 0));
        self.writes.push(Received {
            tag: u64::from(pdu.cdb[0]),
            itt: pdu.itt,
            lun: pdu.lun,
            data: pdu.data.to_bytes().to_vec(),
            expected,
            unsolicited,
            open: Vec::new(),
            granted: if pdu.final_ { immediate } else { first_burst },
            r2t_sn: 0,
        });
    }

    fn on_data_out(&mut self, pdu: &DataOut) {
        let write = self
            .writes
            .iter_mut()
            .find(|write| write.itt == pdu.itt)
            .expect("data for a known task");
        assert!(pdu.data.len() <= self.keys.target_recv as usize);
        assert!(!pdu.data.is_empty());
        assert_eq!(
            pdu.buffer_offset_bytes as usize,
            write.data.len(),
            "in order"
        );
        let (end, data_sn) = if pdu.ttt.is_none() {
            let (end, data_sn) = write.unsolicited.as_mut().expect("announced");
            let now = *data_sn;
            *data_sn += 1;
            (*end, now)
        } else {
            assert_eq!(pdu.lun, write.lun, "the LUN of the R2T is echoed");
            let (ttt, next, end, data_sn) = write.open.first_mut().expect("asked for");
            assert_eq!((pdu.ttt, write.data.len()), (Ttt(*ttt), *next));
            *next += pdu.data.len();
            let now = *data_sn;
            *data_sn += 1;
            (*end, now)
        };
        assert_eq!(pdu.data_sn, data_sn);
        write.data.extend_from_slice(&pdu.data.to_bytes());
        assert!(write.data.len() <= end);
        assert_eq!(pdu.final_, write.data.len() == end, "F ends the sequence");
        assert!(pdu.final_ || pdu.data.len().is_multiple_of(4));
        if pdu.final_ {
            if pdu.ttt.is_none() {
                write.unsolicited = None;
            } else {
                write.open.remove(0);
            }
        }
    }

    /// The target asks for data or answers.
    fn act(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.choose(self.writes.len());
        let len = 1 + self.choose(self.keys.max_burst as usize);
        let write = &mut self.writes[at];
        if write.data.len() == write.expected {
            let write = self.writes.remove(at);
            self.rig.max_cmd_sn = self.rig.exp_cmd_sn.wrapping_add(self.keys.window - 1);
            let good = self.rig.good(write.itt);
            self.rig.give(&good).unwrap();
            self.done.push((write.tag, write.data));
            return;
        }
        if write.granted < write.expected && write.open.len() < usize::from(self.keys.outstanding) {
            let len = len.min(write.expected - write.granted);
            let ttt = self.next_ttt;
            self.next_ttt += 1;
            let (itt, offset) = (write.itt, write.granted);
            write.open.push((ttt, offset, offset + len, 0));
            write.granted += len;
            let r2t_sn = write.r2t_sn;
            write.r2t_sn += 1;
            let lun = write.lun;
            let pdu = R2t {
                lun,
                ..self.rig.r2t(itt, ttt, r2t_sn, offset as u32, len as u32)
            };
            self.rig.give(&Pdu::R2t(pdu)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn writes_arrive_whole_under_every_combination(
        keys in keys(),
        lens in proptest::collection::vec(0usize..20_000, 1..8),
        choices in proptest::collection::vec(any::<u8>(), 1..50),
        queue_bytes in 1usize..20_000,
    ) {
        let mut rig = Rig::new(
            |negotiated| {
                negotiated.initial_r2t = keys.initial_r2t;
                negotiated.immediate_data = keys.immediate_data;
                negotiated.first_burst_bytes = keys.first_burst;
                negotiated.max_burst_bytes = keys.max_burst;
                negotiated.peer_max_recv_data_segment_bytes = keys.target_recv;
                negotiated.max_outstanding_r2t = keys.outstanding;
                negotiated.header_digest = keys.header_digest;
                negotiated.data_digest = keys.data_digest;
            },
            |options| options.transmit_queue_bytes = queue_bytes,
        );
        let wanted: Vec<Vec<u8>> = lens
            .iter()
            .enumerate()
            .map(|(tag, len)| pattern(len + tag)[tag..].to_vec())
            .collect();
        for (tag, data) in wanted.iter().enumerate() {
            let mut cdb = [0; 16];
            cdb[0] = tag as u8;
            // In several slices, as data arrives from a socket.
            let payload: Payload = data.chunks(1000 + tag).map(Bytes::copy_from_slice).collect();
            rig.session
                .submit(Command::new(tag as u64, lun(), cdb, Transfer::Write(payload)))
                .unwrap();
        }
        let mut model = Model {
            rig, keys, choices,
            writes: Vec::new(), next_ttt: 1, done: Vec::new(), step: 0,
        };
        let mut rounds = 0;
        while model.done.len() < wanted.len() {
            for pdu in model.rig.sent() {
                match pdu {
                    Pdu::ScsiCommand(pdu) => model.on_command(&pdu),
                    Pdu::DataOut(pdu) => model.on_data_out(&pdu),
                    other => panic!("{other:?}"),
                }
            }
            model.act();
            rounds += 1;
            prop_assert!(rounds < 1_000_000, "it hangs");
        }
        for (tag, data) in &model.done {
            prop_assert!(*data == wanted[*tag as usize]);
        }
        let events = model.rig.events();
        prop_assert_eq!(events.len(), wanted.len());
        for event in events {
            let Event::TaskDone { outcome, .. } = event else { panic!("{event:?}") };
            prop_assert_eq!(outcome, completed(&[]));
        }
        prop_assert_eq!(model.rig.session.table.len(), 0);
        prop_assert_eq!(model.rig.session.task_bytes, 0);
    }

    #[test]
    fn reads_arrive_whole_however_they_are_cut(
        lens in proptest::collection::vec(1usize..20_000, 1..6),
        cuts in proptest::collection::vec(0usize..5000, 1..50),
        piece in 1usize..10_000,
        bits: (bool, bool, bool),
    ) {
        let (header_digest, data_digest, collapse) = bits;
        let mut rig = Rig::new(
            |negotiated| {
                negotiated.header_digest = header_digest;
                negotiated.data_digest = data_digest;
            },
            |_| {},
        );
        for (tag, len) in lens.iter().enumerate() {
            rig.session.submit(read(tag as u64, *len as u32)).unwrap();
        }
        let mut open: Vec<(usize, Itt, usize, u32)> = rig
            .sent()
            .into_iter()
            .enumerate()
            .map(|(tag, pdu)| match pdu {
                Pdu::ScsiCommand(pdu) => (tag, pdu.itt, 0, 0),
                other => panic!("{other:?}"),
            })
            .collect();
        rig.exp_cmd_sn += lens.len() as u32;
        let wanted: Vec<Vec<u8>> = lens.iter().map(|len| pattern(*len)).collect();
        let mut queue = SendQueue::new();
        let digests = rig.digests;
        let mut step = 0;
        while !open.is_empty() {
            let turn = step % open.len();
            let (tag, itt, at, data_sn) = open[turn];
            let all = &wanted[tag];
            let end = all.len().min(at + cuts[step % cuts.len()].max(step % 2));
            step += 1;
            let last = end == all.len();
            let part = &all[at..end];
            if last && collapse {
                rig.last_data_in(itt, data_sn, at as u32, part, Residual::None).emit(&mut queue, digests);
            } else {
                let pdu = rig.data_in(itt, data_sn, at as u32, part);
                DataIn { final_: last, ..pdu }.emit(&mut queue, digests);
                if last {
                    rig.good(itt).emit(&mut queue, digests);
                }
            }
            if last {
                open.remove(turn);
            } else {
                open[turn] = (tag, itt, end, data_sn + 1);
            }
        }
        for part in queue.to_vec().chunks(piece) {
            rig.input.extend(part);
            rig.session.handle_input(rig.now, &mut rig.input).unwrap();
        }
        let events = rig.events();
        prop_assert_eq!(events.len(), lens.len());
        for event in events {
            let Event::TaskDone { tag, outcome } = event else { panic!("{event:?}") };
            prop_assert_eq!(outcome, completed(&wanted[tag as usize]));
        }
        prop_assert!(rig.input.is_empty());
    }
}
