//! Persistent reservations (SPC-4 5.13) and RESERVE (6).

use super::*;
use crate::scsi::cdb::{Caching, PrInAction, PrOutAction};
use crate::scsi::reservation::{
    FullStatusReport, PrOutParameters, RegisterAndMove, RegisteredKeys, ReservationCapabilities,
    ReservationReport, ReservationType, TransportId,
};

const CONFLICT: u8 = 0x18;

impl Rig {
    fn pr_out(
        &mut self,
        nexus: &Nexus,
        action: PrOutAction,
        kind: u8,
        key: u64,
        action_key: u64,
    ) -> ScsiReply {
        let parameters = PrOutParameters {
            key,
            action_key,
            ..PrOutParameters::default()
        };
        let cdb = Cdb::persistent_reserve_out(action, kind, 24);
        self.send(nexus, &cdb, &parameters.emit())
    }

    fn register(&mut self, nexus: &Nexus, key: u64) {
        let action = PrOutAction::RegisterAndIgnoreExistingKey;
        assert_eq!(self.pr_out(nexus, action, 0, 0, key).status, 0);
    }

    fn reserve(&mut self, nexus: &Nexus, kind: ReservationType, key: u64) -> u8 {
        self.pr_out(nexus, PrOutAction::Reserve, kind as u8, key, 0)
            .status
    }

    fn keys(&mut self) -> Vec<u64> {
        let data = self.good(&Cdb::persistent_reserve_in(PrInAction::ReadKeys, 4096), &[]);
        RegisteredKeys::parse(&data).unwrap().keys
    }

    fn generation(&mut self) -> u32 {
        let data = self.good(&Cdb::persistent_reserve_in(PrInAction::ReadKeys, 8), &[]);
        RegisteredKeys::parse(&data).unwrap().generation
    }

    fn holder(&mut self) -> Option<(u64, Option<ReservationType>)> {
        let cdb = Cdb::persistent_reserve_in(PrInAction::ReadReservation, 4096);
        ReservationReport::parse(&self.good(&cdb, &[]))
            .unwrap()
            .reservation
    }

    fn can_read(&mut self, nexus: &Nexus) -> bool {
        self.send(nexus, &Cdb::read10(0, 1, Caching::NONE), &[])
            .status
            != CONFLICT
    }

    fn can_write(&mut self, nexus: &Nexus) -> bool {
        let cdb = Cdb::write10(0, 1, Caching::NONE);
        self.send(nexus, &cdb, &[0; 512]).status != CONFLICT
    }
}

/// SPC-4 tables 66 to 68, for every type: the holder, a registered nexus, and one that is not.
#[test]
fn who_may_read_and_write() {
    for kind in ReservationType::ALL {
        let mut rig = Rig::new();
        let (a, b, c) = (rig.a.clone(), rig.b.clone(), rig.c.clone());
        rig.register(&a, 1);
        rig.register(&b, 2);
        assert_eq!(rig.reserve(&a, kind, 1), 0);
        assert!(rig.can_read(&a) && rig.can_write(&a), "{kind:?}");
        let admits = kind.admits_registrants();
        assert_eq!(rig.can_read(&b), admits || kind.admits_reads(), "{kind:?}");
        assert_eq!(rig.can_write(&b), admits, "{kind:?}");
        assert_eq!(rig.can_read(&c), kind.admits_reads(), "{kind:?}");
        assert!(!rig.can_write(&c), "{kind:?}");
        // A flush is a write in this respect; questions are not.
        assert_eq!(
            rig.send(&c, &Cdb::synchronize_cache10(0, 0), &[]).status,
            CONFLICT
        );
        assert_eq!(rig.tur(&c), Ok(()));
        for cdb in [
            Cdb::inquiry(36),
            Cdb::read_capacity16(32),
            Cdb::persistent_reserve_in(PrInAction::ReadKeys, 8),
        ] {
            assert_eq!(rig.send(&c, &cdb, &[]).status, 0, "{cdb}");
        }
        let key = if kind.is_all_registrants() { 0 } else { 1 };
        assert_eq!(rig.holder(), Some((key, Some(kind))));
        // Nobody else can reserve or release it.
        assert_eq!(rig.reserve(&c, kind, 0), CONFLICT);
        let other = rig.reserve(&b, kind, 2);
        assert_eq!(
            other,
            if kind.is_all_registrants() {
                0
            } else {
                CONFLICT
            }
        );
    }
}

/// SPC-4 5.13.7, table 61.
#[test]
fn registration_needs_the_right_key() {
    let mut rig = Rig::new();
    let a = rig.a.clone();
    let register = PrOutAction::Register;
    assert_eq!(rig.pr_out(&a, register, 0, 5, 6).status, CONFLICT);
    assert_eq!(rig.pr_out(&a, register, 0, 0, 6).status, 0);
    assert_eq!(rig.pr_out(&a, register, 0, 0, 7).status, CONFLICT);
    assert_eq!(rig.pr_out(&a, register, 0, 6, 7).status, 0);
    assert_eq!((rig.keys(), rig.generation()), (vec![7], 2));
    assert_eq!(
        rig.pr_out(&a, PrOutAction::Reserve, 1, 6, 0).status,
        CONFLICT
    );
    assert_eq!(rig.pr_out(&a, register, 0, 7, 0).status, 0);
    assert_eq!(rig.keys(), []);
    assert_eq!(rig.unit.registered_key(&a), None);
}

#[test]
fn release_and_its_mistakes() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    let kind = ReservationType::WriteExclusiveRegistrantsOnly;
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.reserve(&a, kind, 1);
    // Not the holder: nothing happens.
    assert_eq!(
        rig.pr_out(&b, PrOutAction::Release, kind as u8, 2, 0)
            .status,
        0
    );
    assert!(rig.holder().is_some());
    let reply = rig.pr_out(&a, PrOutAction::Release, 1, 1, 0);
    assert_eq!(sense_of(&reply).unwrap().code, Code::INVALID_RELEASE);
    assert_eq!(
        rig.pr_out(&a, PrOutAction::Release, kind as u8, 1, 0)
            .status,
        0
    );
    assert_eq!(rig.holder(), None);
    assert_eq!(rig.tur(&b), Err(Code::RESERVATIONS_RELEASED));
    // Scope and type are looked at.
    for wrong in [0x15, 0x02, 0x00] {
        let reply = rig.raw(
            &a,
            &[0x5f, 1, wrong, 0, 0, 0, 0, 0, 24, 0],
            &PrOutParameters {
                key: 1,
                ..PrOutParameters::default()
            }
            .emit(),
        );
        assert_eq!(
            sense_of(&reply).unwrap().code,
            Code::INVALID_FIELD_IN_CDB,
            "{wrong:#x}"
        );
    }
}

/// The takeover of a dead node: SPC-4 5.13.11.4.
#[test]
fn preempt_takes_the_reservation_and_fences_the_other() {
    for action in [PrOutAction::Preempt, PrOutAction::PreemptAndAbort] {
        let mut rig = Rig::new();
        let (a, b) = (rig.a.clone(), rig.b.clone());
        let kind = ReservationType::WriteExclusiveRegistrantsOnly;
        rig.register(&a, 1);
        rig.reserve(&a, kind, 1);
        rig.register(&b, 2);
        let before = rig.generation();
        assert_eq!(rig.pr_out(&b, action, kind as u8, 2, 1).status, 0);
        assert_eq!(rig.tur(&a), Err(Code::REGISTRATIONS_PREEMPTED));
        assert!(!rig.can_write(&a) && rig.can_write(&b));
        assert_eq!(rig.keys(), [2]);
        assert_eq!(rig.holder(), Some((2, Some(kind))));
        assert_eq!(rig.generation(), before + 1);
        // The fenced one is not registered and can do nothing about it.
        assert_eq!(rig.pr_out(&a, action, kind as u8, 1, 2).status, CONFLICT);
    }
}

#[test]
fn preempt_of_a_registration_leaves_the_reservation() {
    let mut rig = Rig::new();
    let (a, b, c) = (rig.a.clone(), rig.b.clone(), rig.c.clone());
    let kind = ReservationType::ExclusiveAccess;
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.register(&c, 3);
    rig.reserve(&a, kind, 1);
    assert_eq!(rig.pr_out(&b, PrOutAction::Preempt, 1, 2, 3).status, 0);
    assert_eq!(rig.keys(), [1, 2]);
    assert_eq!(rig.holder(), Some((1, Some(kind))));
    assert_eq!(rig.tur(&c), Err(Code::REGISTRATIONS_PREEMPTED));
    // No such key, and key 0.
    assert_eq!(
        rig.pr_out(&b, PrOutAction::Preempt, 1, 2, 3).status,
        CONFLICT
    );
    let reply = rig.pr_out(&b, PrOutAction::Preempt, 1, 2, 0);
    assert_eq!(
        sense_of(&reply).unwrap().code,
        Code::INVALID_FIELD_IN_PARAMETER_LIST
    );
    assert_eq!(rig.keys(), [1, 2]);
}

#[test]
fn all_registrants_hold_until_the_last_is_gone() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    let kind = ReservationType::ExclusiveAccessAllRegistrants;
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.reserve(&a, kind, 1);
    rig.pr_out(&a, PrOutAction::Register, 0, 1, 0);
    assert_eq!(rig.holder(), Some((0, Some(kind))));
    assert!(!rig.can_read(&a) && rig.can_write(&b));
    rig.pr_out(&b, PrOutAction::Register, 0, 2, 0);
    assert_eq!(rig.holder(), None);
    // With key 0 one registrant removes all others.
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.reserve(&a, kind, 1);
    assert_eq!(rig.pr_out(&b, PrOutAction::Preempt, 1, 2, 0).status, 0);
    assert_eq!(rig.tur(&a), Err(Code::REGISTRATIONS_PREEMPTED));
    assert_eq!(rig.keys(), [2]);
    assert_eq!(
        rig.holder(),
        Some((2, Some(ReservationType::WriteExclusive)))
    );
}

#[test]
fn unregistering_the_holder_releases() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.reserve(&a, ReservationType::ExclusiveAccessRegistrantsOnly, 1);
    rig.pr_out(&a, PrOutAction::Register, 0, 1, 0);
    assert_eq!(rig.holder(), None);
    assert_eq!(rig.tur(&b), Err(Code::RESERVATIONS_RELEASED));
}

#[test]
fn clear_tells_everyone() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    rig.register(&a, 1);
    rig.register(&b, 2);
    rig.reserve(&a, ReservationType::WriteExclusive, 1);
    assert_eq!(rig.pr_out(&b, PrOutAction::Clear, 0, 2, 0).status, 0);
    assert_eq!(rig.tur(&a), Err(Code::RESERVATIONS_PREEMPTED));
    assert_eq!(rig.tur(&b), Ok(()));
    assert_eq!((rig.keys(), rig.holder()), (vec![], None));
}

#[test]
fn the_reservation_moves_to_a_named_nexus() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    rig.register(&a, 1);
    rig.reserve(&a, ReservationType::WriteExclusive, 1);
    let list = RegisterAndMove {
        key: 1,
        action_key: 9,
        unregister: true,
        persist_through_power_loss: false,
        relative_port: 1,
        initiator: TransportId {
            name: b.initiator.to_string(),
            isid: Some(b.isid),
        },
    };
    let data = list.emit();
    let cdb = Cdb::persistent_reserve_out(PrOutAction::RegisterAndMove, 1, data.len() as u32);
    assert_eq!(rig.send(&b, &cdb, &data).status, CONFLICT);
    assert_eq!(rig.send(&a, &cdb, &data).status, 0);
    assert_eq!(rig.keys(), [9]);
    assert!(rig.can_write(&b) && !rig.can_write(&a));
    let cdb = Cdb::persistent_reserve_in(PrInAction::ReadFullStatus, 4096);
    let full = FullStatusReport::parse(&rig.good(&cdb, &[])).unwrap();
    let entry = &full.registrations[0];
    assert_eq!(
        (entry.key, entry.holds),
        (9, Some(ReservationType::WriteExclusive))
    );
    assert_eq!(
        entry.initiator.as_ref().map(|id| id.isid),
        Some(Some(b.isid))
    );
}

#[test]
fn registrations_outlive_the_session_and_not_the_power() {
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    rig.register(&a, 1);
    rig.reserve(&a, ReservationType::WriteExclusive, 1);
    rig.unit.nexus_ends(&a);
    assert!(!rig.can_write(&b));
    rig.unit.nexus_begins(&a, true);
    assert_eq!(rig.tur(&a), Err(Code::NEXUS_LOSS));
    assert!(rig.can_write(&a));
    // The same initiator through another session is another nexus.
    let other = Nexus {
        isid: Isid([0x80, 1, 2, 3, 0, 2]),
        ..a.clone()
    };
    assert!(!rig.can_write(&other));
    rig.unit.reset();
    assert_eq!(rig.tur(&b), Err(Code::DEVICE_RESET));
    assert!(!rig.can_write(&b));
    rig.unit.power_cycle(&mut |_| true).unwrap();
    assert_eq!(rig.tur(&b), Err(Code::POWER_ON_OR_RESET));
    assert!(rig.can_write(&b));
}

#[test]
fn malformed_requests_change_nothing() {
    let mut rig = Rig::new();
    let a = rig.a.clone();
    let cdb = Cdb::persistent_reserve_out(PrOutAction::Register, 0, 23);
    let sense = sense_of(&rig.send(&a, &cdb, &[0; 23])).unwrap();
    assert_eq!(sense.code, Code::PARAMETER_LIST_LENGTH_ERROR);
    let mut parameters = PrOutParameters {
        action_key: 1,
        ..PrOutParameters::default()
    };
    parameters.persist_through_power_loss = true;
    let cdb = Cdb::persistent_reserve_out(PrOutAction::Register, 0, 24);
    let sense = sense_of(&rig.send(&a, &cdb, &parameters.emit())).unwrap();
    assert_eq!(sense.field(), Some((false, 20)));
    assert_eq!(rig.keys(), []);
    let cdb = Cdb::persistent_reserve_in(PrInAction::ReportCapabilities, 8);
    let capabilities = ReservationCapabilities::parse(&rig.good(&cdb, &[])).unwrap();
    assert!(!capabilities.power_loss_capable);
    assert!(
        ReservationType::ALL
            .into_iter()
            .all(|kind| capabilities.may_support(kind))
    );
}

/// SPC-2 7.21.
#[test]
fn reserve6_keeps_others_out_until_it_ends() {
    const RESERVE: [u8; 6] = [0x16, 0, 0, 0, 0, 0];
    const RELEASE: [u8; 6] = [0x17, 0, 0, 0, 0, 0];
    let mut rig = Rig::new();
    let (a, b) = (rig.a.clone(), rig.b.clone());
    for end in 0..3 {
        assert_eq!(rig.raw(&a, &RESERVE, &[]).status, 0);
        assert_eq!(rig.raw(&a, &RESERVE, &[]).status, 0);
        assert_eq!(rig.raw(&b, &RESERVE, &[]).status, CONFLICT);
        assert_eq!(rig.raw(&b, &RELEASE, &[]).status, 0);
        assert_eq!(
            rig.send(&b, &Cdb::mode_sense6(0x3f, 255), &[]).status,
            CONFLICT
        );
        assert_eq!(rig.send(&b, &Cdb::inquiry(36), &[]).status, 0);
        assert!(!rig.can_read(&b) && rig.can_write(&a));
        match end {
            0 => assert_eq!(rig.raw(&a, &RELEASE, &[]).status, 0),
            1 => rig.unit.nexus_ends(&a),
            _ => rig.unit.reset(),
        }
        let _ = rig.tur(&b);
        assert!(rig.can_read(&b), "{end}");
    }
    // Persistent registrations and RESERVE (6) exclude each other.
    rig.register(&a, 1);
    assert_eq!(rig.raw(&b, &RESERVE, &[]).status, CONFLICT);
}
