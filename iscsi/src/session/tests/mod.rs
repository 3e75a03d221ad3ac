//! A session against a scripted target in memory.

mod deadlines;
mod escalation;
mod hostile;
mod logout;
mod management;
mod model;
mod nop;
mod numbers;
#[cfg(feature = "target")]
mod pair;
mod read;
mod recovery;
mod reject;
mod text;
mod window;
mod write;

use std::time::{Duration, Instant};

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use bytes::Bytes;

use super::*;
use crate::error::Misbehaviour;
use crate::login::{Authentication, Negotiated};
use crate::pdu::*;
use crate::types::{Cid, CmdSn, Isid, Lun, StatSn, TargetSn, Tsih, Ttt};

const FIRST_CMD_SN: u32 = 0x0100;
const FIRST_STAT_SN: u32 = 0x0200;
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;

/// A session and the other end of its wire.
struct Rig {
    session: Session,
    now: Instant,
    input: ReceiveBuffer,
    out: SendQueue,
    wire: ReceiveBuffer,
    decoder: Decoder,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// CmdSN behind the last command that was seen on the wire.
    next_cmd_sn: u32,
    digests: Digests,
}

fn rig() -> Rig {
    Rig::new(|_| {}, |_| {})
}

impl Rig {
    fn new(keys: impl FnOnce(&mut Negotiated), options: impl FnOnce(&mut SessionOptions)) -> Self {
        Self::of_kind(&normal(), FIRST_CMD_SN, keys, options)
    }

    fn of_kind(
        kind: &SessionKind,
        cmd_sn: u32,
        keys: impl FnOnce(&mut Negotiated),
        options: impl FnOnce(&mut SessionOptions),
    ) -> Self {
        let mut negotiated = Negotiated {
            max_recv_data_segment_bytes: 262_144,
            ..Negotiated::default()
        };
        keys(&mut negotiated);
        let mut session_options = SessionOptions::default();
        options(&mut session_options);
        let digests = Digests {
            header: negotiated.header_digest,
            data: negotiated.data_digest,
        };
        let max_cmd_sn = cmd_sn.wrapping_add(127);
        let login = Outcome {
            isid: Isid::random([1, 2, 3], 4),
            tsih: Tsih(5),
            cid: Cid(0),
            cmd_sn: CmdSn(cmd_sn),
            exp_cmd_sn: CmdSn(cmd_sn),
            max_cmd_sn: CmdSn(max_cmd_sn),
            exp_stat_sn: StatSn(FIRST_STAT_SN),
            authentication: Authentication::None,
            negotiated,
        };
        let now = Instant::now();
        let decoder = Decoder::new(digests, 0xff_ffff);
        Self {
            session: Session::new(login, kind, session_options, now),
            now,
            input: ReceiveBuffer::new(),
            out: SendQueue::new(),
            wire: ReceiveBuffer::new(),
            decoder,
            stat_sn: FIRST_STAT_SN,
            exp_cmd_sn: cmd_sn,
            max_cmd_sn,
            next_cmd_sn: cmd_sn,
            digests,
        }
    }

    /// Lets the session send all it wants.
    fn sent(&mut self) -> Vec<Pdu> {
        loop {
            self.session.poll_transmit(self.now, &mut self.out);
            if self.out.is_empty() {
                break;
            }
            let bytes = self.out.to_vec();
            self.out.clear();
            self.wire.extend(&bytes);
        }
        let mut pdus = Vec::new();
        while let Some(frame) = self.decoder.next(&mut self.wire).unwrap() {
            let pdu = Pdu::parse(frame).unwrap();
            if let Pdu::ScsiCommand(command) = &pdu
                && !command.immediate
            {
                self.next_cmd_sn = command.cmd_sn.next().0;
            }
            pdus.push(pdu);
        }
        assert!(self.wire.is_empty(), "half a PDU was sent");
        pdus
    }

    /// Lets the session send, and expects one PDU.
    fn sent_one(&mut self) -> Pdu {
        let mut pdus = self.sent();
        assert_eq!(pdus.len(), 1, "{pdus:?}");
        pdus.remove(0)
    }

    fn sent_command(&mut self) -> ScsiCommand {
        match self.sent_one() {
            Pdu::ScsiCommand(pdu) => pdu,
            other => panic!("{other:?}"),
        }
    }

    /// Hands the session a PDU of the target.
    fn give(&mut self, pdu: &Pdu) -> Result<(), Error> {
        let mut queue = SendQueue::new();
        pdu.emit(&mut queue, self.digests);
        self.input.extend(&queue.to_vec());
        self.session.handle_input(self.now, &mut self.input)
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn event(&mut self) -> Event {
        let mut events = self.events();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    fn outcome(&mut self) -> TaskOutcome {
        match self.event() {
            Event::TaskDone { outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    /// Expects that the session ended with this error, and says so once.
    fn closed_with(&mut self, result: Result<(), Error>) -> Error {
        let error = result.expect_err("the session must end");
        let events = self.events();
        assert_eq!(
            events.last(),
            Some(&Event::Closed(CloseReason::Failed(error.clone())))
        );
        assert!(self.session.is_closed());
        self.is_dead();
        error
    }

    /// Nothing goes in or out any more.
    fn is_dead(&mut self) {
        assert!(self.session.is_closed());
        assert_eq!(self.sent(), []);
        assert_eq!(self.session.poll_timeout(), None);
        assert_eq!(self.session.submit(read(99, 512)), Err(Misuse::Closed));
        let nop = self.nop_in(Itt::NONE, Ttt(1));
        assert_eq!(self.give(&nop), Ok(()));
        assert!(self.input.is_empty());
        assert_eq!(self.events(), []);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        if self.session.poll_timeout().is_some_and(|t| t <= self.now) {
            self.session.handle_timeout(self.now);
        }
    }

    /// Numbers of a PDU that takes a StatSN.
    fn sn(&mut self) -> TargetSn {
        let sn = self.sn_next();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        sn
    }

    /// Numbers of a PDU that only shows the next StatSN.
    fn sn_next(&self) -> TargetSn {
        TargetSn {
            stat_sn: StatSn(self.stat_sn),
            exp_cmd_sn: CmdSn(self.exp_cmd_sn),
            max_cmd_sn: CmdSn(self.max_cmd_sn),
        }
    }

    fn response(&mut self, itt: Itt, status: u8, residual: Residual) -> ScsiResponse {
        ScsiResponse {
            response: 0,
            status,
            status_qualifier: 0,
            itt,
            snack_tag: 0,
            sn: self.sn(),
            exp_data_sn: 0,
            residual,
            bidi_read_residual: Residual::None,
            data: Payload::new(),
        }
    }

    fn good(&mut self, itt: Itt) -> Pdu {
        Pdu::ScsiResponse(self.response(itt, GOOD, Residual::None))
    }

    fn data_in(&self, itt: Itt, data_sn: u32, offset: u32, data: &[u8]) -> DataIn {
        DataIn {
            final_: false,
            acknowledge: false,
            status: None,
            residual: Residual::None,
            lun: Lun::default(),
            itt,
            ttt: Ttt::NONE,
            sn: TargetSn {
                stat_sn: StatSn(0),
                ..self.sn_next()
            },
            data_sn,
            buffer_offset_bytes: offset,
            data: Payload::from(data.to_vec()),
        }
    }

    /// Data-In with status.
    fn last_data_in(
        &mut self,
        itt: Itt,
        data_sn: u32,
        offset: u32,
        data: &[u8],
        residual: Residual,
    ) -> Pdu {
        let sn = self.sn();
        Pdu::DataIn(DataIn {
            final_: true,
            status: Some(GOOD),
            residual,
            sn,
            ..self.data_in(itt, data_sn, offset, data)
        })
    }

    fn r2t(&self, itt: Itt, ttt: u32, r2t_sn: u32, offset: u32, len: u32) -> R2t {
        R2t {
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 0]),
            itt,
            ttt: Ttt(ttt),
            sn: self.sn_next(),
            r2t_sn,
            buffer_offset_bytes: offset,
            desired_len_bytes: len,
        }
    }

    /// A NOP-In; it takes a StatSN if it answers a ping.
    fn nop_in(&mut self, itt: Itt, ttt: Ttt) -> Pdu {
        let sn = if itt.is_none() {
            self.sn_next()
        } else {
            self.sn()
        };
        Pdu::NopIn(NopIn {
            lun: Lun([0, 7, 0, 0, 0, 0, 0, 9]),
            itt,
            ttt,
            sn,
            data: Payload::new(),
        })
    }

    fn async_message(&mut self, event: u8, parameters: [u16; 3], data: &[u8]) -> Pdu {
        Pdu::AsyncMessage(AsyncMessage {
            lun: lun(),
            sn: self.sn(),
            event,
            vendor_code: 0,
            parameter1: parameters[0],
            parameter2: parameters[1],
            parameter3: parameters[2],
            data: Payload::from(data.to_vec()),
        })
    }

    /// The answer to a task management request, of a target that has received every command.
    fn management_response(&mut self, itt: Itt, response: u8) -> Pdu {
        self.exp_cmd_sn = self.next_cmd_sn;
        Pdu::TaskManagementResponse(TaskManagementResponse {
            response,
            itt,
            sn: self.sn(),
        })
    }

    fn reject(&mut self, reason: u8, refused: &Pdu) -> Pdu {
        let mut queue = SendQueue::new();
        refused.emit(&mut queue, Digests::NONE);
        Pdu::Reject(Reject {
            reason,
            sn: self.sn(),
            data_sn: 0,
            data: Payload::from(queue.to_vec()[..48].to_vec()),
        })
    }

    /// Submits a read, lets it leave, and gives its command.
    fn start_read(&mut self, tag: u64, len: u32) -> ScsiCommand {
        self.session.submit(read(tag, len)).unwrap();
        self.sent_command()
    }
}

fn normal() -> SessionKind {
    SessionKind::Normal {
        target_name: crate::name::IscsiName::parse("iqn.2026-11.example:t").unwrap(),
    }
}

fn lun() -> Lun {
    Lun::from_number(1).unwrap()
}

fn read(tag: u64, len_bytes: u32) -> Command {
    Command::new(tag, lun(), [0x88; 16], Transfer::Read { len_bytes })
}

fn write(tag: u64, data: &[u8]) -> Command {
    Command::new(
        tag,
        lun(),
        [0x8a; 16],
        Transfer::Write(Payload::from(data.to_vec())),
    )
}

fn no_data(tag: u64) -> Command {
    Command::new(tag, lun(), [0; 16], Transfer::None)
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i >> 8) as u8).collect()
}

fn completed(data: &[u8]) -> TaskOutcome {
    TaskOutcome::Completed {
        status: GOOD,
        status_qualifier: 0,
        sense: Bytes::new(),
        data: Payload::from(data.to_vec()),
        residual: Residual::None,
    }
}
