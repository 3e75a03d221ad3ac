//! Fault plans for the target role: each switch that it has.

use std::time::Duration;

use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::LoginFaults;
use berth_iscsi::name::{Portal, TargetAddress};
use berth_iscsi::pdu::Stage;
use berth_iscsi::target::AsyncNotice;
use berth_iscsi::target::faults::{
    CommandFault, FaultPlan, Filter, LinkFault, LoginFault, Rule, SendFault,
};
use berth_iscsi::types::Lun;

use super::Dice;

/// iSCSI opcodes that a target sends in full feature phase.
const OPCODES: [u8; 7] = [0x20, 0x21, 0x22, 0x25, 0x26, 0x31, 0x3f];

/// A plan for one connection, and its kind.
pub(crate) fn plan(dice: &mut Dice, own: &Portal) -> (&'static str, FaultPlan) {
    match dice.below(8) {
        0 => login(dice, own),
        1 => link(dice),
        2..=4 => command(dice),
        5..=6 => send(dice),
        _ => ("no fault", FaultPlan::default()),
    }
}

fn login(dice: &mut Dice, own: &Portal) -> (&'static str, FaultPlan) {
    let machine = |faults| FaultPlan::login(LoginFault::Machine(faults));
    let none = LoginFaults::default;
    match dice.below(7) {
        0 => {
            let stage = [Stage::Security, Stage::Operational][dice.below(2) as usize];
            let class = 1 + dice.below(4) as u8;
            let detail = dice.below(16) as u8;
            let status = Some((stage, LoginStatus { class, detail }));
            ("login status", machine(LoginFaults { status, ..none() }))
        }
        1 => {
            let address = TargetAddress::parse(&format!("{own},1")).expect("an address");
            let redirect = Some((address, dice.below(2) == 0));
            ("redirect loop", machine(LoginFaults { redirect, ..none() }))
        }
        2 => {
            let never_ending = true;
            let faults = LoginFaults {
                never_ending,
                ..none()
            };
            ("never-ending login", machine(faults))
        }
        3 => {
            let pdu_text_bytes = Some(1 + dice.below(9) as usize);
            let faults = LoginFaults {
                pdu_text_bytes,
                ..none()
            };
            ("split login keys", machine(faults))
        }
        4 => {
            let key = String::from_utf8_lossy(&dice.bytes(20)).replace(['\0', '='], "?");
            let extra_pairs = vec![
                ("MaxBurstLength".into(), "-1".into()),
                (key, "0x".repeat(dice.below(3000) as usize)),
            ];
            let faults = LoginFaults {
                extra_pairs,
                ..none()
            };
            ("login keys of nonsense", machine(faults))
        }
        5 => ("silent login", FaultPlan::login(LoginFault::Silent)),
        _ => {
            let len = 1 + dice.below(5000) as usize;
            let bytes = dice.bytes(len);
            (
                "login of garbage",
                FaultPlan::login(LoginFault::Garbage(bytes)),
            )
        }
    }
}

fn link(dice: &mut Dice) -> (&'static str, FaultPlan) {
    let bytes = 1 + dice.below(6000);
    let (kind, link) = match dice.below(5) {
        0 => (
            "cut after sending",
            LinkFault {
                cut_after_sent_bytes: Some(bytes),
                ..LinkFault::default()
            },
        ),
        1 => (
            "cut after receiving",
            LinkFault {
                cut_after_received_bytes: Some(bytes),
                ..LinkFault::default()
            },
        ),
        2 => (
            "stops reading",
            LinkFault {
                stop_reading: true,
                ..LinkFault::default()
            },
        ),
        3 => (
            "stops writing",
            LinkFault {
                stop_writing: true,
                ..LinkFault::default()
            },
        ),
        _ => (
            "trickle",
            LinkFault {
                write_bytes_max: 1,
                ..LinkFault::default()
            },
        ),
    };
    let plan = FaultPlan {
        link,
        ..FaultPlan::default()
    };
    (kind, plan)
}

fn command(dice: &mut Dice) -> (&'static str, FaultPlan) {
    let byte = dice.next() as u8;
    let time = Duration::from_millis(dice.below(500));
    let (kind, fault) = match dice.below(11) {
        0 => ("status", CommandFault::Status(byte)),
        1 => {
            let sense = CommandFault::Sense {
                key: byte & 0xf,
                asc: dice.next() as u8,
                ascq: dice.next() as u8,
            };
            ("sense", sense)
        }
        2 => ("late execution", CommandFault::DelayExecution(time)),
        3 => ("no execution", CommandFault::HoldExecution),
        4 => ("late response", CommandFault::DelayResponse(time)),
        5 => ("no response", CommandFault::HoldResponse),
        6 => ("reject", CommandFault::Reject(byte % 0x10)),
        7 => ("response code", CommandFault::Response(byte)),
        8 => {
            let fault = CommandFault::ShortRead {
                missing_bytes: 1 + dice.below(600) as u32,
                residual: byte & 1 == 0,
            };
            ("short read", fault)
        }
        9 => ("cut at a command", CommandFault::Cut),
        _ => ("execution, then cut", CommandFault::ExecuteThenCut),
    };
    let rule = Rule::new(Filter::any(), 1 + dice.below(4) as u32, fault);
    let plan = FaultPlan {
        commands: vec![rule.after(dice.below(4) as u32)],
        ..FaultPlan::default()
    };
    (kind, plan)
}

fn send(dice: &mut Dice) -> (&'static str, FaultPlan) {
    let opcode = OPCODES[dice.below(OPCODES.len() as u64) as usize];
    let offset = dice.below(48) as u8;
    let (kind, fault) = match dice.below(9) {
        0 => ("omitted PDU", SendFault::Omit),
        1 => ("duplicate PDU", SendFault::Duplicate),
        2 => {
            let fault = SendFault::Corrupt {
                offset: dice.below(100) as i32 - 50,
                mask: 1 + dice.below(255) as u8,
            };
            ("flipped bits", fault)
        }
        3 => {
            let fault = SendFault::Field {
                offset: offset & 0x2c,
                len: 4,
                value: dice.next() as u32,
            };
            ("random field", fault)
        }
        4 => {
            // AHS and data lengths.
            let fault = SendFault::Field {
                offset: 4,
                len: 4,
                value: 0xffff_ffff,
            };
            ("absurd lengths", fault)
        }
        5 => {
            let wrong = [
                SendFault::data_sn(1),
                SendFault::stat_sn(5),
                SendFault::stat_sn(-1),
                SendFault::buffer_offset(0x7fff_ffff),
                SendFault::buffer_offset(-512),
                SendFault::itt(0xdead_beef),
                SendFault::ttt(0xffff_ffff),
            ];
            let which = dice.below(wrong.len() as u64) as usize;
            ("wrong number", wrong[which].clone())
        }
        6 => {
            let fault = SendFault::Add {
                offset: 28 + 4 * dice.below(2) as u8,
                delta: dice.next() as i32,
            };
            ("wrong window", fault)
        }
        7 => ("cut after a PDU", SendFault::CutAfter),
        _ => (
            "cut inside a PDU",
            SendFault::CutInside(1 + dice.below(60) as u32),
        ),
    };
    let rule = Rule::new(Filter::opcode(opcode), 1 + dice.below(3) as u32, fault);
    let plan = FaultPlan {
        sends: vec![rule.after(dice.below(3) as u32)],
        ..FaultPlan::default()
    };
    (kind, plan)
}

/// An asynchronous message of any kind.
pub(crate) fn notice(dice: &mut Dice) -> AsyncNotice {
    AsyncNotice {
        event: [0, 1, 2, 3, 4, 5, 99, 255][dice.below(8) as usize],
        lun: Lun::default(),
        parameters: [
            dice.below(2) as u16,
            dice.below(3) as u16,
            dice.below(2) as u16,
        ],
        sense: dice.bytes(18),
        enforce: dice.below(2) == 0,
    }
}
