//! Makes the planned faults happen.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::LoginFaults;
use berth_iscsi::name::TargetAddress;
use berth_iscsi::pdu::Stage;
use berth_iscsi::scsi::alua::AccessState;
use berth_iscsi::scsi::{Code, ScsiStatus, Sense, SenseKey};
use berth_iscsi::target::faults::{self, FaultPlan, Filter, Rule};
use berth_iscsi::target::{AsyncNotice, ConnectionId};
use berth_iscsi::types::Lun;
use tokio::time::{Instant, sleep};

use super::array::{Array, LUN, Mapping};
use super::history::History;
use super::net::{Admission, Net, portal_name};
use super::node::Node;
use super::plan::{CommandFault, Fault, LoginFault, Plan, PlannedFault, SendFault};
use super::rng::Rng;
use super::trace;
use crate::event;

/// Response of a task management function: it is not supported (RFC 7143 11.6.1).
const NOT_SUPPORTED: u8 = 5;

/// Everything that faults act on.
#[derive(Clone)]
pub struct World {
    /// What was planned.
    pub plan: Rc<Plan>,
    /// The network.
    pub net: Net,
    /// The array.
    pub array: Array,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// What clients saw.
    pub history: Rc<RefCell<History>>,
}

impl World {
    /// Makes one fault happen, and ends it when its time is over.
    pub async fn inflict(self, planned: PlannedFault, begin: Instant) {
        tokio::time::sleep_until(begin + planned.at).await;
        let fault = planned.fault;
        event!("fault", "number {}", planned.number);
        trace::line(format_args!("fault {}: {fault:?}", planned.number));
        if self.act(fault, planned.number).await {
            if !fault.happens_later() {
                trace::count(fault.name());
            }
        } else {
            trace::line(format_args!("fault {} found nothing to do", planned.number));
        }
    }

    /// Whether the fault found something to act on.
    async fn act(&self, fault: Fault, number: usize) -> bool {
        let ms = Duration::from_millis;
        match fault {
            Fault::Cut {
                portal,
                side,
                late_ms,
            } => {
                let live = self.net.live(None, Some(portal));
                live.iter()
                    .for_each(|id| self.net.cut(*id, side, ms(late_ms)));
                !live.is_empty()
            }
            Fault::CutAtByte {
                portal,
                side,
                bytes,
            } => {
                let live = self.net.live(None, Some(portal));
                live.iter()
                    .for_each(|id| self.net.cut_after(*id, side, bytes));
                !live.is_empty()
            }
            Fault::HalfOpen { portal, both } => {
                let live = self.net.live(None, Some(portal));
                for id in &live {
                    self.net.black_hole(*id, 1);
                    if both {
                        self.net.black_hole(*id, 0);
                    }
                }
                !live.is_empty()
            }
            Fault::Partition { portal, ms: long } => {
                self.net.stall(None, portal, Instant::now() + ms(long));
                true
            }
            Fault::Refuse { portal, ms: long } => {
                self.admit(portal, Admission::Refuse, ms(long)).await;
                true
            }
            Fault::Ignore { portal, ms: long } => {
                self.admit(portal, Admission::Ignore, ms(long)).await;
                true
            }
            Fault::Throttle {
                portal,
                ms: long,
                rate,
            } => {
                self.net
                    .with_links(None, Some(portal), |link| link.rate = rate);
                sleep(ms(long)).await;
                self.net
                    .with_links(None, Some(portal), |link| link.rate = 0);
                true
            }
            Fault::Delay {
                portal,
                ms: long,
                by_ms,
            } => {
                self.net
                    .with_links(None, Some(portal), |link| link.latency += ms(by_ms));
                sleep(ms(long)).await;
                self.net
                    .with_links(None, Some(portal), |link| link.latency -= ms(by_ms));
                true
            }
            Fault::Restart { ms: long } => {
                self.array.stop(None);
                self.come_back(ms(long)).await;
                true
            }
            Fault::PowerCycle {
                ms: long,
                survive_percent,
            } => {
                let mut rng = Rng::new(self.plan.seed, 100 + number as u64);
                self.array.stop(Some((&mut rng, survive_percent)));
                if self.plan.array.write_cache {
                    let at = trace::tick();
                    self.history.borrow_mut().power_cuts.push(at);
                }
                self.come_back(ms(long)).await;
                true
            }
            Fault::Alua {
                group,
                state,
                ms: long,
            } => {
                let set = |state| {
                    self.array
                        .with_unit(|unit| unit.set_access_state(group, state))
                };
                let there = set(AccessState::from_bits(state));
                sleep(ms(long)).await;
                set(if group == 1 {
                    AccessState::ActiveOptimized
                } else {
                    AccessState::ActiveNonOptimized
                });
                there
            }
            Fault::Remap { ms: long } => self.map(Mapping::Decoy, ms(long)).await,
            Fault::Unmap { ms: long } => self.map(Mapping::Nothing, ms(long)).await,
            Fault::Resize { blocks } => self.array.with_unit(|unit| {
                let size = (unit.blocks() + blocks) * u64::from(unit.config().block_bytes);
                unit.resize(size).is_ok()
            }),
            Fault::Status { status, times } => {
                self.array
                    .with_unit(|unit| unit.faults().status(ScsiStatus(status), times));
                true
            }
            Fault::Sense { key, asc, ascq } => {
                let code = Code::new(SenseKey::from_bits(key), asc, ascq);
                self.array
                    .with_unit(|unit| unit.faults().senses.push_back(Sense::new(code)));
                true
            }
            Fault::Full { ms: long } => {
                self.array.with_unit(|unit| unit.faults().space_full = true);
                sleep(ms(long)).await;
                self.array
                    .with_unit(|unit| unit.faults().space_full = false);
                true
            }
            Fault::Command {
                portal,
                which,
                skip,
            } => {
                let filter = match which {
                    CommandFault::ShortRead { .. } => Filter::any(),
                    _ => Filter::opcode(0x01),
                };
                let rule = Rule::new(filter, 1, command_fault(which)).after(skip);
                self.on_connections(portal, |plan| plan.commands.insert(0, rule.clone()))
            }
            Fault::NoAbort {
                portal,
                answered,
                times,
            } => {
                let command = faults::CommandFault::HoldExecution;
                let command = Rule::new(Filter::opcode(0x01), 1, command);
                let answer = if answered {
                    faults::SendFault::Field {
                        offset: 2,
                        len: 1,
                        value: NOT_SUPPORTED.into(),
                    }
                } else {
                    faults::SendFault::Omit
                };
                let answer = Rule::new(Filter::opcode(0x22), times, answer);
                self.on_connections(portal, |plan| {
                    plan.commands.insert(0, command.clone());
                    plan.sends.push(answer.clone());
                })
            }
            Fault::Send {
                portal,
                which,
                opcode,
                skip,
            } => {
                let filter = Filter::opcode(opcode);
                let rule = Rule::new(filter, 1, send_fault(which)).after(skip);
                self.on_connections(portal, |plan| plan.sends.push(rule.clone()))
            }
            Fault::Login { which } => {
                self.array.spoil_login(fault.name(), login_fault(which));
                true
            }
            Fault::Async { portal, event } => self.send_async(portal, event),
            Fault::Freeze { portal, ms: long } => {
                let ids = self.connections(portal);
                let now = ids.len();
                let freeze = |frozen| {
                    self.array.with(|portal| {
                        for id in &ids {
                            portal.freeze_window(*id, frozen);
                        }
                    });
                };
                freeze(true);
                sleep(ms(long)).await;
                freeze(false);
                now > 0
            }
            Fault::Crash {
                node,
                ms: long,
                late_ms,
            } => {
                if !self.nodes[node].is_running() {
                    return false;
                }
                self.nodes[node].count_recovery().await;
                self.net.linger(node, ms(late_ms));
                self.nodes[node].crash().await;
                sleep(ms(long)).await;
                self.nodes[node].start();
                true
            }
        }
    }

    async fn admit(&self, portal: Option<usize>, admission: Admission, time: Duration) {
        self.net
            .with_links(None, portal, |link| link.admission = admission);
        sleep(time).await;
        self.net
            .with_links(None, portal, |link| link.admission = Admission::Open);
    }

    async fn come_back(&self, after: Duration) {
        self.admit(None, Admission::Refuse, after).await;
        self.array.start_again();
    }

    async fn map(&self, to: Mapping, time: Duration) -> bool {
        // Not under running commands: of a batch that is under way only the first would be told by a unit
        // attention, and nobody could keep the others from the wrong unit. So sessions end with it.
        self.array.hang_up();
        self.array.map(to);
        sleep(time).await;
        self.array.hang_up();
        self.array.map(Mapping::Volume);
        true
    }

    /// Connections of the array over this portal that are alive.
    fn connections(&self, portal: usize) -> Vec<ConnectionId> {
        let live = self.net.live(None, Some(portal));
        live.iter()
            .filter_map(|wire| self.array.connection_of(*wire))
            .collect()
    }

    fn on_connections(&self, portal: usize, add: impl Fn(&mut FaultPlan)) -> bool {
        let ids = self.connections(portal);
        self.array.with(|portal| {
            for id in &ids {
                let mut plan = slowness(self.plan.slow);
                add(&mut plan);
                portal.set_faults(*id, plan);
            }
        });
        !ids.is_empty()
    }

    fn send_async(&self, portal: usize, event: u8) -> bool {
        let ids = self.connections(portal);
        let mut notice = AsyncNotice::new(
            event,
            match event {
                1 => [0, 0, 2],
                2 => [0, 1, 3],
                3 => [0, 1, 3],
                4 => [0, 0, 2],
                _ => [0, 0, 0],
            },
        );
        if event == 0 {
            notice.lun = Lun::from_number(LUN).expect("it is a small number");
            let code = Code::new(SenseKey::from_bits(6), 0x2a, 0x01);
            notice.sense = Sense::new(code).emit(berth_iscsi::scsi::sense::SenseFormat::Fixed);
        }
        let now = Instant::now().into_std();
        self.array.with(|portal| {
            for id in &ids {
                portal.send_async(*id, now, &notice);
            }
        });
        !ids.is_empty()
    }

    /// Everything is well again, for good.
    pub fn heal(&self) {
        event!("heal", "");
        self.net.with_links(None, None, |link| {
            link.rate = 0;
            link.admission = Admission::Open;
            link.stalled_until = Instant::now();
        });
        self.array.start_again();
        self.array.map(Mapping::Volume);
        self.array.clear_login_faults();
        self.array
            .with_unit(|unit| *unit.faults() = Default::default());
        let ids: Vec<_> = self.array.with(|portal| portal.connections().collect());
        self.array.with(|portal| {
            portal.set_default_faults(FaultPlan::default());
            let now = Instant::now().into_std();
            for id in ids {
                portal.set_faults(id, FaultPlan::default());
                portal.release(id, now);
                portal.freeze_window(id, false);
            }
        });
        if self.plan.array.alua {
            self.array.with_unit(|unit| {
                unit.set_access_state(1, AccessState::ActiveOptimized);
                unit.set_access_state(2, AccessState::ActiveNonOptimized);
            });
        }
    }
}

/// What makes every command take its time.
#[must_use]
pub fn slowness(time: Option<Duration>) -> FaultPlan {
    let Some(time) = time else {
        return FaultPlan::default();
    };
    let fault = faults::CommandFault::DelayExecution(time);
    FaultPlan::command(Filter::opcode(0x01), Rule::<()>::ALWAYS, fault)
}

fn command_fault(which: CommandFault) -> faults::CommandFault {
    use faults::CommandFault as Real;
    let ms = Duration::from_millis;
    match which {
        CommandFault::DelayExecution(time) => Real::DelayExecution(ms(time)),
        CommandFault::DelayResponse(time) => Real::DelayResponse(ms(time)),
        CommandFault::HoldExecution => Real::HoldExecution,
        CommandFault::HoldResponse => Real::HoldResponse,
        CommandFault::Reject(reason) => Real::Reject(reason),
        CommandFault::Response(response) => Real::Response(response),
        CommandFault::ShortRead { admitted } => Real::ShortRead {
            missing_bytes: 512,
            residual: admitted,
        },
        CommandFault::Cut => Real::Cut,
        CommandFault::ExecuteThenCut => Real::ExecuteThenCut,
    }
}

fn send_fault(which: SendFault) -> faults::SendFault {
    use faults::SendFault as Real;
    match which {
        SendFault::Omit => Real::Omit,
        SendFault::Duplicate => Real::Duplicate,
        SendFault::Corrupt { offset } => Real::Corrupt { offset, mask: 0x40 },
        SendFault::DataSn => Real::data_sn(1),
        SendFault::StatSn => Real::stat_sn(1),
        SendFault::BufferOffset => Real::buffer_offset(512),
        SendFault::Itt => Real::itt(0x7654_3210),
        SendFault::Ttt => Real::ttt(0x7654_3210),
        SendFault::CutAfter => Real::CutAfter,
        SendFault::CutInside(bytes) => Real::CutInside(bytes),
    }
}

fn login_fault(which: LoginFault) -> FaultPlan {
    let machine = |faults| FaultPlan::login(faults::LoginFault::Machine(faults));
    match which {
        LoginFault::Refused(class, detail) => machine(LoginFaults {
            status: Some((Stage::Security, LoginStatus { class, detail })),
            ..LoginFaults::default()
        }),
        LoginFault::Silent => FaultPlan::login(faults::LoginFault::Silent),
        LoginFault::Garbage => FaultPlan::login(faults::LoginFault::Garbage(vec![0xff; 96])),
        LoginFault::Redirect { portal, permanent } => {
            let address = TargetAddress {
                portal: portal_name(portal),
                tpgt: None,
            };
            machine(LoginFaults {
                redirect: Some((address, permanent)),
                ..LoginFaults::default()
            })
        }
    }
}
