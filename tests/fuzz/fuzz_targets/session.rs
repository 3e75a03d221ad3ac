//! A hostile target in full feature phase: commands are submitted while it sends what it likes. Every command ends
//! exactly once, a read never gives more than was asked for, and what the session sends can be read.
//!
//! Byte 0 chooses what was negotiated. Then steps of a kind byte, an argument byte, and for a PDU of the target 48 bytes
//! of header (with opcode, tag and numbers put right as the argument says) and data.
#![no_main]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use berth_iscsi::login::{Authentication, Negotiated, Outcome, SessionKind};
use berth_iscsi::name::IscsiName;
use berth_iscsi::pdu::{BHS_LEN, Decoder, Digests, Pdu};
use berth_iscsi::session::{Command, Event, Session, SessionOptions, TaskOutcome, Transfer};
use berth_iscsi::types::{Cid, CmdSn, Isid, Lun, StatSn, Tsih};
use libfuzzer_sys::fuzz_target;

const OPCODES: [u8; 10] = [0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3f];
const COMMANDS_MAX: u64 = 64;

struct Rig {
    session: Session,
    now: Instant,
    input: ReceiveBuffer,
    wire: ReceiveBuffer,
    decoder: Decoder,
    /// Tags on the wire, to aim at.
    itts: Vec<u32>,
    stat_sn: u32,
    /// Read length of each command without an outcome.
    pending: HashMap<u64, usize>,
    next_tag: u64,
}

impl Rig {
    fn new(mode: u8) -> Self {
        let negotiated = Negotiated {
            initial_r2t: mode & 1 != 0,
            immediate_data: mode & 2 != 0,
            first_burst_bytes: 1024,
            max_burst_bytes: 4096,
            max_recv_data_segment_bytes: 4096,
            peer_max_recv_data_segment_bytes: 512,
            max_outstanding_r2t: 2,
            ..Negotiated::default()
        };
        let outcome = Outcome {
            negotiated,
            isid: Isid([0x80, 1, 2, 3, 4, 5]),
            tsih: Tsih(1),
            cid: Cid(0),
            cmd_sn: CmdSn(1),
            exp_cmd_sn: CmdSn(1),
            max_cmd_sn: CmdSn(8),
            exp_stat_sn: StatSn(1),
            authentication: Authentication::None,
        };
        let target_name = IscsiName::parse("iqn.2026-11.example:t").expect("a good name");
        let now = Instant::now();
        let kind = SessionKind::Normal { target_name };
        Self {
            session: Session::new(outcome, &kind, SessionOptions::default(), now),
            now,
            input: ReceiveBuffer::new(),
            wire: ReceiveBuffer::new(),
            decoder: Decoder::new(Digests::default(), 0xff_ffff),
            itts: Vec::new(),
            stat_sn: 1,
            pending: HashMap::new(),
            next_tag: 0,
        }
    }

    fn submit(&mut self, argument: u8) {
        if self.next_tag == COMMANDS_MAX {
            return;
        }
        let len = u32::from(argument >> 2) * 128;
        let (transfer, read) = match argument & 3 {
            0 => (Transfer::None, 0),
            1 => (Transfer::Read { len_bytes: len }, len as usize),
            _ => (Transfer::Write(Payload::zeroes(len as usize)), 0),
        };
        let tag = self.next_tag;
        if self
            .session
            .submit(Command::new(tag, Lun([0; 8]), [0; 16], transfer))
            .is_ok()
        {
            self.next_tag += 1;
            self.pending.insert(tag, read);
        }
    }

    fn transmit(&mut self) {
        loop {
            let mut out = SendQueue::new();
            self.session.poll_transmit(self.now, &mut out);
            if out.is_empty() {
                break;
            }
            self.wire.extend(&out.to_vec());
            while let Some(frame) = self.decoder.next(&mut self.wire).expect("we sent it") {
                if let Pdu::ScsiCommand(pdu) = Pdu::parse(frame).expect("we sent it") {
                    self.itts.push(pdu.itt.0);
                }
            }
            assert!(self.wire.is_empty(), "half a PDU was sent");
        }
    }

    /// A PDU of the target; with `argument` bits 0 to 2 its tag, StatSN and window are plausible.
    fn receive(&mut self, argument: u8, header: &[u8; BHS_LEN], data: &[u8]) {
        let mut bhs = *header;
        bhs[0] = OPCODES[usize::from(argument >> 3) % OPCODES.len()];
        bhs[4] = 0;
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        if argument & 1 != 0 && !self.itts.is_empty() {
            let itt = self.itts[usize::from(header[19]) % self.itts.len()];
            bhs[16..20].copy_from_slice(&itt.to_be_bytes());
        }
        if argument & 2 != 0 {
            bhs[24..28].copy_from_slice(&self.stat_sn.to_be_bytes());
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        if argument & 4 != 0 {
            bhs[28..32].copy_from_slice(&1_u32.to_be_bytes());
            bhs[32..36].copy_from_slice(&(u32::from(header[35]) + 1).to_be_bytes());
        }
        self.input.extend(&bhs);
        self.input.extend(data);
        self.input.extend(&[0; 3][..(4 - data.len() % 4) % 4]);
        if self
            .session
            .handle_input(self.now, &mut self.input)
            .is_err()
        {
            assert!(self.session.is_closed());
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.session.poll_event() {
            if let Event::TaskDone { tag, outcome } = event {
                let asked = self.pending.remove(&tag).expect("each command ends once");
                if let TaskOutcome::Completed { data, .. } = outcome {
                    assert!(
                        data.len() <= asked,
                        "{} bytes for a read of {asked}",
                        data.len()
                    );
                }
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let [mode, steps @ ..] = bytes else { return };
    let mut rest = steps;
    let mut rig = Rig::new(*mode);
    while let [kind, argument, tail @ ..] = rest {
        rest = tail;
        match kind % 8 {
            0 | 1 => rig.submit(*argument),
            2 => {
                rig.now += Duration::from_secs((*argument).into());
                rig.session.handle_timeout(rig.now);
            }
            3 => drop(rig.session.abort(rig.now, (*argument).into())),
            _ => {
                let Some((header, tail)) = rest.split_first_chunk::<BHS_LEN>() else {
                    break;
                };
                let (data, tail) = tail.split_at(tail.len().min(usize::from(header[7])));
                rest = tail;
                rig.receive(*argument, header, data);
            }
        }
        rig.transmit();
        rig.events();
    }
    for unfinished in rig.session.take_unfinished() {
        rig.pending
            .remove(&unfinished.command.tag)
            .expect("each command ends once");
    }
    rig.events();
    assert!(
        rig.pending.is_empty(),
        "a command got no outcome: {:?}",
        rig.pending
    );
});
