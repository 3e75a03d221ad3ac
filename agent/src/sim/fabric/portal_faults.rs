//! Faults of the iSCSI side as JSON: what `/sim/portals` and `/sim/volumes` take.

use std::time::Duration;

use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::LoginFaults;
use berth_iscsi::pdu::Stage;
use berth_iscsi::scsi::{Code, ScsiStatus, Sense, SenseKey};
use berth_iscsi::target::faults::{
    CommandFault, FaultPlan, Filter, LinkFault, LoginFault, Rule, SendFault,
};
use berth_iscsi::target::lu::LuFaults;
use berth_iscsi::types::Lun;
use serde::Deserialize;

/// Rules of each kind at a time.
const RULES_MAX: usize = 100;

/// What connections do wrong: those that are there and those to come.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ConnectionFaults {
    /// Of connections to come.
    login: Option<Login>,
    /// The first that fits a command acts on it.
    commands: Vec<CommandRule>,
    /// Every one that fits acts on a PDU that is sent.
    sends: Vec<SendRule>,
    link: Link,
    /// Only connections that are there, not those to come.
    once: bool,
}

/// Something wrong in a request.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Wrong(String);

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Login {
    /// Class and detail.
    Status(u8, u8),
    NeverEnding,
    /// Text bytes in a response.
    SplitKeys(usize),
    Silent,
    Garbage,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandRule {
    #[serde(default)]
    scsi_opcode: Option<u8>,
    /// First block of the command, from and to.
    #[serde(default)]
    lbas: Option<(u64, u64)>,
    #[serde(default)]
    lun: Option<u16>,
    #[serde(default)]
    skip: u32,
    #[serde(default)]
    times: Option<u32>,
    fault: Command,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Command {
    Status(u8),
    /// Sense key, ASC, ASCQ.
    Sense(u8, u8, u8),
    DelayMs(u64),
    Hold,
    DelayAnswerMs(u64),
    HoldAnswer,
    Reject(u8),
    Response(u8),
    ShortRead {
        missing_bytes: u32,
        residual: bool,
    },
    Cut,
    ExecuteThenCut,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SendRule {
    /// iSCSI opcode of the PDU that is sent.
    #[serde(default)]
    pdu: Option<u8>,
    #[serde(default)]
    scsi_opcode: Option<u8>,
    #[serde(default)]
    skip: u32,
    #[serde(default)]
    times: Option<u32>,
    fault: Send,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Send {
    Omit,
    Duplicate,
    Corrupt { offset: i32, mask: u8 },
    Field { offset: u8, len: u8, value: u32 },
    Add { offset: u8, delta: i32 },
    CutAfter,
    CutInside(u32),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Link {
    cut_after_sent_bytes: Option<u64>,
    cut_after_received_bytes: Option<u64>,
    stop_reading: bool,
    stop_writing: bool,
    write_bytes_max: usize,
}

fn rule<F>(filter: Filter, skip: u32, times: Option<u32>, fault: F) -> Rule<F> {
    Rule::new(filter, times.unwrap_or(Rule::<F>::ALWAYS), fault).after(skip)
}

impl ConnectionFaults {
    /// As the target role takes it; for connections that are there without what happens at login.
    pub(super) fn plans(self) -> Result<(FaultPlan, FaultPlan), Wrong> {
        if self.commands.len().max(self.sends.len()) > RULES_MAX {
            return Err(Wrong(format!("there may be {RULES_MAX} rules of a kind")));
        }
        let commands = self.commands.into_iter().map(CommandRule::rule);
        let now = FaultPlan {
            login: None,
            commands: commands.collect::<Result<_, _>>()?,
            sends: self
                .sends
                .into_iter()
                .map(SendRule::rule)
                .collect::<Result<_, _>>()?,
            link: LinkFault {
                cut_after_sent_bytes: self.link.cut_after_sent_bytes,
                cut_after_received_bytes: self.link.cut_after_received_bytes,
                stop_reading: self.link.stop_reading,
                stop_writing: self.link.stop_writing,
                write_bytes_max: self.link.write_bytes_max,
            },
        };
        let mut coming = FaultPlan::default();
        if !self.once {
            coming = FaultPlan {
                login: self.login.map(Login::fault),
                ..now.clone()
            };
        }
        Ok((now, coming))
    }
}

impl Login {
    fn fault(self) -> LoginFault {
        LoginFault::Machine(match self {
            Self::Status(class, detail) => LoginFaults {
                status: Some((Stage::Security, LoginStatus { class, detail })),
                ..LoginFaults::default()
            },
            Self::NeverEnding => LoginFaults {
                never_ending: true,
                ..LoginFaults::default()
            },
            Self::SplitKeys(bytes) => LoginFaults {
                pdu_text_bytes: Some(bytes.max(1)),
                ..LoginFaults::default()
            },
            Self::Silent => return LoginFault::Silent,
            Self::Garbage => return LoginFault::Garbage(vec![0x5a; 512]),
        })
    }
}

impl CommandRule {
    fn rule(self) -> Result<Rule<CommandFault>, Wrong> {
        let lun = match self.lun {
            None => None,
            Some(number) => Some(
                Lun::from_number(number)
                    .ok_or_else(|| Wrong(format!("LUN {number} is too large")))?,
            ),
        };
        let filter = Filter {
            scsi_opcode: self.scsi_opcode,
            lbas: self.lbas.map(|(from, to)| from..=to),
            lun,
            ..Filter::default()
        };
        let fault = match self.fault {
            Command::Status(status) => CommandFault::Status(status),
            Command::Sense(key, asc, ascq) => CommandFault::Sense { key, asc, ascq },
            Command::DelayMs(ms) => CommandFault::DelayExecution(Duration::from_millis(ms)),
            Command::Hold => CommandFault::HoldExecution,
            Command::DelayAnswerMs(ms) => CommandFault::DelayResponse(Duration::from_millis(ms)),
            Command::HoldAnswer => CommandFault::HoldResponse,
            Command::Reject(reason) => CommandFault::Reject(reason),
            Command::Response(value) => CommandFault::Response(value),
            Command::ShortRead {
                missing_bytes,
                residual,
            } => CommandFault::ShortRead {
                missing_bytes,
                residual,
            },
            Command::Cut => CommandFault::Cut,
            Command::ExecuteThenCut => CommandFault::ExecuteThenCut,
        };
        Ok(rule(filter, self.skip, self.times, fault))
    }
}

impl SendRule {
    fn rule(self) -> Result<Rule<SendFault>, Wrong> {
        let filter = Filter {
            opcode: self.pdu,
            scsi_opcode: self.scsi_opcode,
            ..Filter::default()
        };
        let fault = match self.fault {
            Send::Omit => SendFault::Omit,
            Send::Duplicate => SendFault::Duplicate,
            Send::Corrupt { offset, mask } => SendFault::Corrupt { offset, mask },
            Send::Field { offset, len, value } => {
                let inside = matches!(len, 1 | 2 | 4) && u16::from(offset) + u16::from(len) <= 48;
                if !inside {
                    return Err(Wrong(
                        "a field has 1, 2 or 4 of the header's 48 bytes".to_owned(),
                    ));
                }
                SendFault::Field { offset, len, value }
            }
            Send::Add { offset, delta } if offset <= 44 => SendFault::Add { offset, delta },
            Send::Add { .. } => {
                return Err(Wrong("a sum has four of the header's 48 bytes".to_owned()));
            }
            Send::CutAfter => SendFault::CutAfter,
            Send::CutInside(bytes) => SendFault::CutInside(bytes),
        };
        Ok(rule(filter, self.skip, self.times, fault))
    }
}

/// What one volume does wrong, for all its initiators.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VolumeFaults {
    /// SCSI status of so many commands.
    status: Option<(u8, u32)>,
    /// Sense key, ASC and ASCQ of the next commands, one each.
    senses: Vec<(u8, u8, u8)>,
    /// Blocks that cannot be read until they are written: from, and up to but not including.
    unreadable: Vec<(u64, u64)>,
    /// Blocks that cannot be written.
    unwritable: Vec<(u64, u64)>,
    /// What is not allocated cannot be written: the pool is full.
    space_full: bool,
}

impl VolumeFaults {
    /// As the target role takes it.
    pub(super) fn faults(self) -> Result<LuFaults, Wrong> {
        let lists = [
            self.senses.len(),
            self.unreadable.len(),
            self.unwritable.len(),
        ];
        if lists.into_iter().any(|len| len > RULES_MAX) {
            return Err(Wrong(format!("a list may have {RULES_MAX} elements")));
        }
        let ranges = |list: Vec<(u64, u64)>| list.into_iter().map(|(from, to)| from..to).collect();
        let sense = |(key, asc, ascq)| Sense::new(Code::new(SenseKey::from_bits(key), asc, ascq));
        Ok(LuFaults {
            status: self
                .status
                .map(|(status, times)| (ScsiStatus(status), times)),
            senses: self.senses.into_iter().map(sense).collect(),
            unreadable: ranges(self.unreadable),
            unwritable: ranges(self.unwritable),
            space_full: self.space_full,
        })
    }
}

/// An asynchronous message (RFC 7143 11.9).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Message {
    /// 1 asks for a logout, 2 drops the connection, 3 the session, 4 asks to negotiate.
    pub(super) event: u8,
    #[serde(default)]
    pub(super) parameters: [u16; 3],
}
