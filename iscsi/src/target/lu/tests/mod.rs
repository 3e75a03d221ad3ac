//! One logical unit, several nexuses, commands as an initiator builds them.

mod blocks;
mod device;
mod reservations;

use berth_iobuf::Payload;

use super::super::disk::{RamDisk, WriteCache};
use super::super::executor::{Nexus, ScsiExecutor as _, ScsiReply};
use super::{LogicalUnit, LuConfig};
use crate::scsi::{Cdb, Code, ScsiStatus, Sense};
use crate::types::Isid;

/// 4096 blocks of 512 bytes.
pub(super) const BLOCKS: u64 = 4096;

pub(super) fn nexus(name: &str) -> Nexus {
    Nexus {
        initiator: format!("iqn.2026-11.example:{name}").into(),
        isid: Isid([0x80, 1, 2, 3, 0, 1]),
        target: "iqn.2026-11.example:target".into(),
        portal_group: 1,
    }
}

/// A unit and the nexuses `a`, `b` and `c`, whose first unit attention has been told.
pub(super) struct Rig {
    pub(super) unit: LogicalUnit,
    pub(super) a: Nexus,
    pub(super) b: Nexus,
    pub(super) c: Nexus,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(LuConfig::new("serial-1"))
    }

    pub(super) fn with(config: LuConfig) -> Self {
        let disk = WriteCache::new(RamDisk::new(BLOCKS * 512), 512);
        let mut rig = Self {
            unit: LogicalUnit::new(config, Box::new(disk)),
            a: nexus("a"),
            b: nexus("b"),
            c: nexus("c"),
        };
        for nexus in [rig.a.clone(), rig.b.clone(), rig.c.clone()] {
            rig.unit.nexus_begins(&nexus, false);
            assert_eq!(rig.tur(&nexus), Err(Code::POWER_ON_OR_RESET));
        }
        rig
    }

    pub(super) fn send(&mut self, nexus: &Nexus, cdb: &Cdb, data_out: &[u8]) -> ScsiReply {
        self.raw(nexus, cdb.as_bytes(), data_out)
    }

    pub(super) fn raw(&mut self, nexus: &Nexus, cdb: &[u8], data_out: &[u8]) -> ScsiReply {
        let data = Payload::from(data_out.to_vec());
        self.unit.execute(nexus, cdb, &data)
    }

    /// Sends from nexus `a`, expects GOOD and gives the data.
    pub(super) fn good(&mut self, cdb: &Cdb, data_out: &[u8]) -> Vec<u8> {
        let reply = self.send(&self.a.clone(), cdb, data_out);
        assert_eq!(reply.status, 0, "{cdb:?}: {:?}", sense_of(&reply));
        reply.data_in.to_bytes().to_vec()
    }

    /// Sends from nexus `a`, expects CHECK CONDITION and gives the sense.
    pub(super) fn bad(&mut self, cdb: &Cdb, data_out: &[u8]) -> Sense {
        sense_of(&self.send(&self.a.clone(), cdb, data_out)).expect("CHECK CONDITION")
    }

    /// Sends raw bytes from nexus `a` and gives the sense code, `None` for GOOD.
    pub(super) fn code(&mut self, cdb: &[u8], data_out: &[u8]) -> Option<Code> {
        let reply = self.raw(&self.a.clone(), cdb, data_out);
        sense_of(&reply).map(|sense| sense.code)
    }

    pub(super) fn tur(&mut self, nexus: &Nexus) -> Result<(), Code> {
        let reply = self.send(nexus, &Cdb::test_unit_ready(), &[]);
        match sense_of(&reply) {
            Some(sense) => Err(sense.code),
            None => Ok(()),
        }
    }
}

pub(super) fn sense_of(reply: &ScsiReply) -> Option<Sense> {
    (reply.status == ScsiStatus::CHECK_CONDITION.0)
        .then(|| Sense::parse(&reply.sense).expect("sense data"))
}
