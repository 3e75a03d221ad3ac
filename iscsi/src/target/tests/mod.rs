//! The target against a scripted initiator in memory; every test names the rule it proves.

mod data;
mod faults;
mod hostile;
mod limits;
mod login;
mod management;
mod numbering;
mod pair;
mod text;

use std::time::{Duration, Instant};

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};

use super::testing::{BLOCK_BYTES, RamUnit};
use super::{ConnectionId, Portal, PortalSettings, TargetConfig, UnitId};
use crate::login::{
    InitiatorAuth, InitiatorLogin, LoginConfig, Negotiated, Offer, SessionKind, Step,
};
use crate::name::IscsiName;
use crate::pdu::{
    DataIn, DataOut, Decoder, Digests, LogoutRequest, NopOut, Pdu, R2t, ScsiCommand, ScsiResponse,
    TaskAttribute, TaskManagementRequest, TextRequest,
};
use crate::types::{Cid, CmdSn, Isid, Itt, Lun, StatSn, Ttt};

const TARGET: &str = "iqn.2026-11.io.berth:t1";
const INITIATOR: &str = "iqn.2026-11.io.berth:i1";
const BLOCKS: usize = 4096;

fn name(text: &str) -> IscsiName {
    IscsiName::parse(text).unwrap()
}

/// A portal with one target, one RAM unit at LUN 0, and a clock.
struct World {
    portal: Portal,
    unit: UnitId,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self::with(PortalSettings::default())
    }

    fn with(settings: PortalSettings) -> Self {
        let mut portal = Portal::new(settings);
        let unit = portal.add_unit(Box::new(RamUnit::new(BLOCKS)));
        portal
            .add_target(TargetConfig::new(name(TARGET)).with_lun(0, unit))
            .unwrap();
        Self {
            portal,
            unit,
            now: Instant::now(),
        }
    }

    fn unit(&mut self) -> &mut RamUnit {
        self.portal.unit_mut(self.unit).unwrap()
    }

    fn connect(&mut self) -> Wire {
        let id = self.portal.accept(self.now, "127.0.0.1:3260", 1).unwrap();
        Wire::new(id)
    }

    /// A logged-in initiator with this offer.
    fn login(&mut self, offer: Offer) -> Client {
        self.login_as(offer, Isid::random([1, 2, 3], 1))
    }

    fn login_as(&mut self, offer: Offer, isid: Isid) -> Client {
        let kind = SessionKind::Normal {
            target_name: name(TARGET),
        };
        let mut config = LoginConfig::new(name(INITIATOR), kind, isid);
        config.offer = offer;
        self.try_login(config).unwrap()
    }

    /// Logs in; the error is what the initiator's machine says.
    fn try_login(&mut self, config: LoginConfig) -> Result<Client, crate::Error> {
        let mut wire = self.connect();
        let isid = config.isid;
        let mut machine = InitiatorLogin::new(config)?;
        loop {
            if let Some(request) = machine.poll_transmit() {
                wire.send(self, &Pdu::LoginRequest(request));
            }
            let response = match wire.recv(self) {
                Some(Pdu::LoginResponse(response)) => response,
                other => panic!("no login response: {other:?}"),
            };
            match machine.on_response(&response)? {
                Step::Continue => {}
                Step::Done(outcome) => {
                    let negotiated = outcome.negotiated.clone();
                    let digests = Digests {
                        header: negotiated.header_digest,
                        data: negotiated.data_digest,
                    };
                    wire.digests = digests;
                    wire.decoder
                        .configure(digests, negotiated.max_recv_data_segment_bytes);
                    return Ok(Client {
                        wire,
                        cmd_sn: outcome.cmd_sn,
                        exp_stat_sn: outcome.exp_stat_sn,
                        max_cmd_sn: outcome.max_cmd_sn,
                        next_itt: 0x100,
                        negotiated,
                        isid,
                    });
                }
                Step::Redirect(redirect) => panic!("redirected to {redirect:?}"),
            }
        }
    }

    fn advance(&mut self, id: ConnectionId, time: Duration) {
        self.now += time;
        self.portal.handle_timeout(id, self.now);
    }
}

/// One connection as bytes.
struct Wire {
    id: ConnectionId,
    to_target: ReceiveBuffer,
    decoder: Decoder,
    received: ReceiveBuffer,
    digests: Digests,
}

impl Wire {
    fn new(id: ConnectionId) -> Self {
        Self {
            id,
            to_target: ReceiveBuffer::new(),
            decoder: Decoder::default(),
            received: ReceiveBuffer::new(),
            digests: Digests::NONE,
        }
    }

    fn send(&mut self, world: &mut World, pdu: &Pdu) {
        let mut queue = SendQueue::new();
        pdu.emit(&mut queue, self.digests);
        self.send_bytes(world, &queue.to_vec());
    }

    fn send_bytes(&mut self, world: &mut World, bytes: &[u8]) {
        self.to_target.extend(bytes);
        world
            .portal
            .handle_input(self.id, world.now, &mut self.to_target);
    }

    /// Everything the target has to say now, as bytes.
    fn drain(&mut self, world: &mut World) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            let mut tx = SendQueue::new();
            world
                .portal
                .handle_input(self.id, world.now, &mut self.to_target);
            world.portal.poll_transmit(self.id, &mut tx);
            if tx.is_empty() {
                return out;
            }
            out.extend(tx.to_vec());
        }
    }

    fn try_recv(&mut self, world: &mut World) -> Result<Option<Pdu>, crate::Error> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.received)? {
                return Pdu::parse(frame).map(Some);
            }
            let mut tx = SendQueue::new();
            world.portal.poll_transmit(self.id, &mut tx);
            world
                .portal
                .handle_input(self.id, world.now, &mut self.to_target);
            world.portal.poll_transmit(self.id, &mut tx);
            if tx.is_empty() {
                return Ok(None);
            }
            self.received.extend(&tx.to_vec());
        }
    }

    fn recv(&mut self, world: &mut World) -> Option<Pdu> {
        self.try_recv(world).unwrap()
    }
}

/// A logged-in initiator that does exactly what it is told.
struct Client {
    wire: Wire,
    cmd_sn: CmdSn,
    exp_stat_sn: StatSn,
    max_cmd_sn: CmdSn,
    next_itt: u32,
    negotiated: Negotiated,
    isid: Isid,
}

impl Client {
    fn id(&self) -> ConnectionId {
        self.wire.id
    }

    fn itt(&mut self) -> Itt {
        self.next_itt += 1;
        Itt(self.next_itt)
    }

    /// A command without data that takes the next CmdSN.
    fn command(&mut self, cdb: &[u8]) -> ScsiCommand {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let cmd_sn = self.cmd_sn;
        self.cmd_sn = cmd_sn.next();
        ScsiCommand {
            immediate: false,
            final_: true,
            read: false,
            write: false,
            attribute: TaskAttribute::Simple,
            lun: Lun::default(),
            itt: self.itt(),
            expected_len_bytes: 0,
            cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            cdb: padded,
            extended_cdb: bytes::Bytes::new(),
            bidi_read_len_bytes: None,
            data: Payload::new(),
        }
    }

    fn read(&mut self, lba: u32, blocks: u16) -> ScsiCommand {
        let cdb = crate::scsi::Cdb::read10(lba, blocks, crate::scsi::cdb::Caching::NONE);
        ScsiCommand {
            read: true,
            expected_len_bytes: u32::from(blocks) * BLOCK_BYTES as u32,
            ..self.command(cdb.as_bytes())
        }
    }

    /// WRITE (10) without any data yet.
    fn write(&mut self, lba: u32, blocks: u16) -> ScsiCommand {
        let cdb = crate::scsi::Cdb::write10(lba, blocks, crate::scsi::cdb::Caching::NONE);
        ScsiCommand {
            write: true,
            expected_len_bytes: u32::from(blocks) * BLOCK_BYTES as u32,
            ..self.command(cdb.as_bytes())
        }
    }

    fn data_out(
        &self,
        itt: Itt,
        ttt: Ttt,
        sn: u32,
        offset: u32,
        data: Vec<u8>,
        final_: bool,
    ) -> Pdu {
        Pdu::DataOut(DataOut {
            final_,
            lun: Lun::default(),
            itt,
            ttt,
            exp_stat_sn: self.exp_stat_sn,
            data_sn: sn,
            buffer_offset_bytes: offset,
            data: Payload::from(data),
        })
    }

    fn management(&mut self, function: u8, referenced: Option<(Itt, CmdSn)>) -> Pdu {
        let (referenced_task, ref_cmd_sn) = referenced.unwrap_or((Itt::NONE, CmdSn(0)));
        Pdu::TaskManagementRequest(TaskManagementRequest {
            immediate: true,
            function,
            lun: Lun::default(),
            itt: self.itt(),
            referenced_task,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            ref_cmd_sn,
            exp_data_sn: 0,
        })
    }

    fn ping(&mut self, data: &[u8]) -> Pdu {
        Pdu::NopOut(NopOut {
            immediate: true,
            lun: Lun::default(),
            itt: self.itt(),
            ttt: Ttt::NONE,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            data: Payload::from(data.to_vec()),
        })
    }

    fn text(&mut self, ttt: Ttt, itt: Itt, keys: &[u8]) -> TextRequest {
        TextRequest {
            immediate: true,
            final_: true,
            continue_: false,
            lun: Lun::default(),
            itt,
            ttt,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
            data: Payload::from(keys.to_vec()),
        }
    }

    fn logout(&mut self, reason: u8) -> Pdu {
        Pdu::LogoutRequest(LogoutRequest {
            immediate: true,
            reason,
            itt: self.itt(),
            cid: Cid(0),
            cmd_sn: self.cmd_sn,
            exp_stat_sn: self.exp_stat_sn,
        })
    }

    fn send(&mut self, world: &mut World, pdu: impl Into<Pdu>) {
        self.wire.send(world, &pdu.into());
    }

    /// The next PDU, with its StatSN checked (RFC 7143 4.2.2.2).
    fn recv(&mut self, world: &mut World) -> Option<Pdu> {
        let pdu = self.wire.recv(world)?;
        let (sn, consumes) = match &pdu {
            Pdu::ScsiResponse(p) => (p.sn, true),
            Pdu::DataIn(p) if p.status.is_none() => {
                self.max_cmd_sn = p.sn.max_cmd_sn;
                return Some(pdu);
            }
            Pdu::DataIn(p) => (p.sn, true),
            Pdu::R2t(p) => (p.sn, false),
            Pdu::NopIn(p) => (p.sn, !p.itt.is_none()),
            Pdu::TaskManagementResponse(p) => (p.sn, true),
            Pdu::TextResponse(p) => (p.sn, true),
            Pdu::LogoutResponse(p) => (p.sn, true),
            Pdu::AsyncMessage(p) => (p.sn, true),
            Pdu::Reject(p) => (p.sn, true),
            other => panic!("a target does not send {other:?}"),
        };
        assert_eq!(sn.stat_sn, self.exp_stat_sn, "{pdu:?}");
        if consumes {
            self.exp_stat_sn = self.exp_stat_sn.next();
        }
        assert!(
            !sn.max_cmd_sn.is_before(self.max_cmd_sn),
            "MaxCmdSN went back"
        );
        self.max_cmd_sn = sn.max_cmd_sn;
        Some(pdu)
    }

    fn recv_response(&mut self, world: &mut World) -> ScsiResponse {
        match self.recv(world) {
            Some(Pdu::ScsiResponse(response)) => response,
            other => panic!("no SCSI response: {other:?}"),
        }
    }

    fn recv_r2t(&mut self, world: &mut World) -> R2t {
        match self.recv(world) {
            Some(Pdu::R2t(r2t)) => r2t,
            other => panic!("no R2T: {other:?}"),
        }
    }

    fn recv_data(&mut self, world: &mut World) -> DataIn {
        match self.recv(world) {
            Some(Pdu::DataIn(data)) => data,
            other => panic!("no Data-In: {other:?}"),
        }
    }

    /// Answers the R2T with PDUs of the negotiated size.
    fn serve(&mut self, world: &mut World, r2t: &R2t, data: &[u8]) {
        let segment = self.negotiated.peer_max_recv_data_segment_bytes as usize;
        let start = r2t.buffer_offset_bytes as usize;
        let range = &data[start..start + r2t.desired_len_bytes as usize];
        let count = range.chunks(segment).count();
        for (i, chunk) in range.chunks(segment).enumerate() {
            let offset = (start + i * segment) as u32;
            let last = i + 1 == count;
            let pdu = self.data_out(r2t.itt, r2t.ttt, i as u32, offset, chunk.to_vec(), last);
            self.send(world, pdu);
        }
    }

    /// Whether the target closes the connection.
    fn is_closed(&mut self, world: &mut World) -> bool {
        let id = self.id();
        self.wire.drain(world);
        world.portal.is_over(id)
    }
}

/// Sense key, ASC and ASCQ of a CHECK CONDITION.
fn sense(response: &ScsiResponse) -> (u8, u8, u8) {
    assert_eq!(response.status, 2, "{response:?}");
    let data = response.data.to_bytes();
    assert_eq!(data[..2], [0, 18]);
    (data[2 + 2], data[2 + 12], data[2 + 13])
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31) ^ seed)
        .collect()
}
