//! The initiator against a scripted target, rule by rule: each test names the section it proves.
//!
//! The initiator is the one of the product: `net::connect`, the session, its driver. The target is a script over
//! a wire in memory, and the clock is virtual, so that a test of a minute takes none.

mod client;
mod peer;
mod rig;
mod wire;

mod async_messages;
mod data_transfer;
mod digests;
mod login_and_reinstatement;
mod logout;
mod nop;
mod numbering;
mod reject;
mod responses_and_residuals;
mod sense_reactions;
mod task_management;

use std::time::Duration;

use berth_iobuf::Payload;
use berth_iscsi::error::{Error, Misbehaviour, RejectReason, Waiting};
use berth_iscsi::login::Offer;
use berth_iscsi::pdu::*;
use berth_iscsi::session::{
    AbortCause, CloseReason, Command, Event, LogoutCause, SessionOptions, TaskManagement,
    TaskOutcome, Transfer, Unfinished,
};
use berth_iscsi::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Ttt};

use client::Client;
use peer::Peer;
use rig::{Rig, run};

const SECOND: Duration = Duration::from_secs(1);
const GOOD: u8 = 0;
const CHECK_CONDITION: u8 = 2;

/// The LUN of all commands, unless a test says otherwise.
fn lun() -> Lun {
    Lun::from_number(1).expect("a small number")
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

/// GOOD, with this data and no residual.
fn completed(data: &[u8]) -> TaskOutcome {
    TaskOutcome::Completed {
        status: GOOD,
        status_qualifier: 0,
        sense: bytes::Bytes::new(),
        data: Payload::from(data.to_vec()),
        residual: Residual::None,
    }
}

fn aborted(cause: AbortCause) -> TaskOutcome {
    TaskOutcome::Aborted { cause, sent: true }
}
