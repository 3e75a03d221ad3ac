//! Arbitrary PDUs.

use berth_iobuf::Payload;
use bytes::Bytes;
use proptest::prelude::*;

use crate::pdu::*;
use crate::types::{Cid, CmdSn, Isid, Itt, Lun, StatSn, TargetSn, Tsih, Ttt};

pub(super) fn digests() -> impl Strategy<Value = Digests> {
    any::<(bool, bool)>().prop_map(|(header, data)| Digests { header, data })
}

/// Data of up to 20 kB in up to three slices.
fn payload() -> impl Strategy<Value = Payload> {
    let len = prop_oneof![
        3 => Just(0usize),
        5 => 1usize..70,
        2 => 70usize..2000,
        1 => 2000usize..20_000,
    ];
    (len, any::<u8>(), any::<[prop::sample::Index; 2]>()).prop_map(|(len, seed, cuts)| {
        let mut data = Bytes::from_iter((0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed));
        let mut payload = Payload::new();
        for cut in cuts {
            payload.push(data.split_to(cut.index(data.len() + 1)));
        }
        payload.push(data);
        payload
    })
}

fn itt() -> impl Strategy<Value = Itt> {
    any::<u32>().prop_map(Itt)
}

fn tags() -> impl Strategy<Value = (Lun, Itt, Ttt)> {
    let ttt = prop_oneof![Just(Ttt::NONE), any::<u32>().prop_map(Ttt)];
    (any::<[u8; 8]>().prop_map(Lun), itt(), ttt)
}

fn request_sn() -> impl Strategy<Value = (CmdSn, StatSn)> {
    any::<(u32, u32)>().prop_map(|(cmd_sn, stat_sn)| (CmdSn(cmd_sn), StatSn(stat_sn)))
}

fn target_sn() -> impl Strategy<Value = TargetSn> {
    any::<[u32; 3]>().prop_map(|[stat_sn, exp_cmd_sn, max_cmd_sn]| TargetSn {
        stat_sn: StatSn(stat_sn),
        exp_cmd_sn: CmdSn(exp_cmd_sn),
        max_cmd_sn: CmdSn(max_cmd_sn),
    })
}

fn residual() -> impl Strategy<Value = Residual> {
    prop_oneof![
        Just(Residual::None),
        any::<u32>().prop_map(Residual::Underflow),
        any::<u32>().prop_map(Residual::Overflow),
    ]
}

fn nops() -> BoxedStrategy<Pdu> {
    let nop_out = (any::<bool>(), tags(), request_sn(), payload()).prop_map(
        |(immediate, (lun, itt, ttt), (cmd_sn, exp_stat_sn), data)| {
            let pdu = NopOut {
                immediate,
                lun,
                itt,
                ttt,
                cmd_sn,
                exp_stat_sn,
                data,
            };
            Pdu::NopOut(pdu)
        },
    );
    let nop_in = (any::<bool>(), tags(), target_sn(), payload()).prop_map(
        |(ping, (lun, itt, ttt), sn, data)| {
            let (itt, ttt) = if ping {
                (Itt::NONE, ttt)
            } else {
                (itt, Ttt::NONE)
            };
            Pdu::NopIn(NopIn {
                lun,
                itt,
                ttt,
                sn,
                data,
            })
        },
    );
    prop_oneof![nop_out, nop_in].boxed()
}

fn commands() -> BoxedStrategy<Pdu> {
    let attribute = prop_oneof![
        Just(TaskAttribute::Untagged),
        Just(TaskAttribute::Simple),
        Just(TaskAttribute::Ordered),
        Just(TaskAttribute::HeadOfQueue),
        Just(TaskAttribute::Aca),
    ];
    let extended = prop_oneof![
        4 => Just(Vec::new()),
        1 => proptest::collection::vec(any::<u8>(), 1..=244),
    ];
    let bidi = proptest::option::weighted(0.2, any::<u32>());
    (
        any::<[bool; 4]>(),
        attribute,
        tags(),
        any::<u32>(),
        request_sn(),
        any::<[u8; 16]>(),
        (extended, bidi, payload()),
    )
        .prop_map(
            |(bits, attribute, (lun, itt, _), len, (cmd_sn, exp_stat_sn), cdb, long)| {
                let [immediate, final_, read, write] = bits;
                let (extended_cdb, bidi_read_len_bytes, data) = long;
                let data = if write { data } else { Payload::new() };
                let expected_len_bytes = if read || write { len } else { 0 };
                Pdu::ScsiCommand(ScsiCommand {
                    immediate,
                    final_: final_ || !write,
                    read,
                    write,
                    attribute,
                    lun,
                    itt,
                    expected_len_bytes: expected_len_bytes.max(data.len() as u32),
                    cmd_sn,
                    exp_stat_sn,
                    cdb,
                    extended_cdb: Bytes::from(extended_cdb),
                    bidi_read_len_bytes,
                    data,
                })
            },
        )
        .boxed()
}

fn scsi_responses() -> BoxedStrategy<Pdu> {
    (
        any::<(u8, u8, u16, u32, u32)>(),
        any::<bool>(),
        itt(),
        target_sn(),
        (residual(), residual()),
        payload(),
    )
        .prop_map(|(numbers, delivered, itt, sn, residuals, data)| {
            let (response, status, status_qualifier, snack_tag, exp_data_sn) = numbers;
            let response = if delivered { 0 } else { response };
            let (residual, bidi_read_residual) = if response == 0 {
                residuals
            } else {
                Default::default()
            };
            Pdu::ScsiResponse(ScsiResponse {
                response,
                status,
                status_qualifier,
                itt,
                snack_tag,
                sn,
                exp_data_sn,
                residual,
                bidi_read_residual,
                data,
            })
        })
        .boxed()
}

fn task_management() -> BoxedStrategy<Pdu> {
    let request = (any::<(bool, u8, u32, u32)>(), tags(), itt(), request_sn()).prop_map(
        |((immediate, function, ref_cmd_sn, exp_data_sn), (lun, itt, _), task, sn)| {
            Pdu::TaskManagementRequest(TaskManagementRequest {
                immediate,
                function: function & 0x7f,
                lun,
                itt,
                referenced_task: task,
                cmd_sn: sn.0,
                exp_stat_sn: sn.1,
                ref_cmd_sn: CmdSn(ref_cmd_sn),
                exp_data_sn,
            })
        },
    );
    let response = (any::<u8>(), itt(), target_sn()).prop_map(|(response, itt, sn)| {
        Pdu::TaskManagementResponse(TaskManagementResponse { response, itt, sn })
    });
    prop_oneof![request, response].boxed()
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        Just(Stage::Security),
        Just(Stage::Operational),
        Just(Stage::FullFeature)
    ]
}

fn logins() -> BoxedStrategy<Pdu> {
    (
        any::<[bool; 3]>(),
        (stage(), stage()),
        any::<([u8; 4], [u8; 6], [u16; 2])>(),
        itt(),
        request_sn(),
        target_sn(),
        payload(),
    )
        .prop_map(
            |(bits, (current_stage, next), numbers, itt, sn, target_sn, data)| {
                let [request, transit, continue_] = bits;
                let continue_ = continue_ && !transit;
                let next_stage = if transit { next } else { current_stage };
                let ([version_max, version, status_class, status_detail], isid, [tsih, cid]) =
                    numbers;
                if request {
                    Pdu::LoginRequest(LoginRequest {
                        transit,
                        continue_,
                        current_stage,
                        next_stage,
                        version_max,
                        version_min: version,
                        isid: Isid(isid),
                        tsih: Tsih(tsih),
                        itt,
                        cid: Cid(cid),
                        cmd_sn: sn.0,
                        exp_stat_sn: sn.1,
                        data,
                    })
                } else {
                    Pdu::LoginResponse(LoginResponse {
                        transit,
                        continue_,
                        current_stage,
                        next_stage,
                        version_max,
                        version_active: version,
                        isid: Isid(isid),
                        tsih: Tsih(tsih),
                        itt,
                        sn: target_sn,
                        status_class,
                        status_detail,
                        data,
                    })
                }
            },
        )
        .boxed()
}

fn texts() -> BoxedStrategy<Pdu> {
    (
        any::<[bool; 4]>(),
        tags(),
        request_sn(),
        target_sn(),
        payload(),
    )
        .prop_map(|(bits, (lun, itt, ttt), (cmd_sn, exp_stat_sn), sn, data)| {
            let [request, immediate, final_, continue_] = bits;
            let continue_ = continue_ && !final_;
            if request {
                Pdu::TextRequest(TextRequest {
                    immediate,
                    final_,
                    continue_,
                    lun,
                    itt,
                    ttt,
                    cmd_sn,
                    exp_stat_sn,
                    data,
                })
            } else {
                Pdu::TextResponse(TextResponse {
                    final_,
                    continue_,
                    lun,
                    itt,
                    ttt,
                    sn,
                    data,
                })
            }
        })
        .boxed()
}

fn data() -> BoxedStrategy<Pdu> {
    (
        any::<[bool; 3]>(),
        proptest::option::of(any::<u8>()),
        residual(),
        tags(),
        any::<[u32; 3]>(),
        target_sn(),
        payload(),
    )
        .prop_map(
            |(bits, status, residual, (lun, itt, ttt), numbers, mut sn, data)| {
                let [out, final_, acknowledge] = bits;
                let [exp_stat_sn, data_sn, offset] = numbers;
                let buffer_offset_bytes = offset.min(u32::MAX - data.len() as u32);
                if out {
                    return Pdu::DataOut(DataOut {
                        final_,
                        lun,
                        itt,
                        ttt,
                        exp_stat_sn: StatSn(exp_stat_sn),
                        data_sn,
                        buffer_offset_bytes,
                        data,
                    });
                }
                let status = if final_ { status } else { None };
                if status.is_none() {
                    sn.stat_sn = StatSn(0);
                }
                Pdu::DataIn(DataIn {
                    final_,
                    acknowledge,
                    status,
                    residual: if status.is_some() {
                        residual
                    } else {
                        Residual::None
                    },
                    lun,
                    itt,
                    ttt,
                    sn,
                    data_sn,
                    buffer_offset_bytes,
                    data,
                })
            },
        )
        .boxed()
}

fn others() -> BoxedStrategy<Pdu> {
    let r2t = (tags(), target_sn(), any::<[u32; 3]>()).prop_map(
        |((lun, itt, ttt), sn, [r2t_sn, offset, len])| {
            let offset = offset.min(u32::MAX - 1);
            Pdu::R2t(R2t {
                lun,
                itt,
                ttt: if ttt.is_none() { Ttt(0) } else { ttt },
                sn,
                r2t_sn,
                buffer_offset_bytes: offset,
                desired_len_bytes: len.clamp(1, u32::MAX - offset),
            })
        },
    );
    let logout = (any::<(bool, u8, u16)>(), itt(), request_sn()).prop_map(
        |((immediate, reason, cid), itt, (cmd_sn, exp_stat_sn))| {
            Pdu::LogoutRequest(LogoutRequest {
                immediate,
                reason: reason & 0x7f,
                itt,
                cid: Cid(cid),
                cmd_sn,
                exp_stat_sn,
            })
        },
    );
    let logged_out = (any::<(u8, u16, u16)>(), itt(), target_sn()).prop_map(
        |((response, time2wait_s, time2retain_s), itt, sn)| {
            let pdu = LogoutResponse {
                response,
                itt,
                sn,
                time2wait_s,
                time2retain_s,
            };
            Pdu::LogoutResponse(pdu)
        },
    );
    let snack = (0..16u8, tags(), any::<[u32; 3]>()).prop_map(
        |(kind, (lun, itt, ttt), [exp_stat_sn, beg_run, run_len])| {
            Pdu::Snack(Snack {
                kind,
                lun,
                itt,
                ttt_or_tag: ttt.0,
                exp_stat_sn: StatSn(exp_stat_sn),
                beg_run,
                run_len,
            })
        },
    );
    let message = (any::<([u8; 2], [u16; 3])>(), tags(), target_sn(), payload()).prop_map(
        |(([event, vendor_code], [parameter1, parameter2, parameter3]), (lun, ..), sn, data)| {
            Pdu::AsyncMessage(AsyncMessage {
                lun,
                sn,
                event,
                vendor_code,
                parameter1,
                parameter2,
                parameter3,
                data,
            })
        },
    );
    let reject =
        (any::<(u8, u32)>(), target_sn(), payload()).prop_map(|((reason, data_sn), sn, data)| {
            Pdu::Reject(Reject {
                reason,
                sn,
                data_sn,
                data,
            })
        });
    prop_oneof![r2t, logout, logged_out, snack, message, reject].boxed()
}

/// A PDU of any kind, each field free within what the wire can say.
pub(super) fn any_pdu() -> impl Strategy<Value = Pdu> {
    prop_oneof![
        2 => nops(),
        2 => commands(),
        1 => scsi_responses(),
        2 => task_management(),
        2 => logins(),
        2 => texts(),
        2 => data(),
        6 => others(),
    ]
}
