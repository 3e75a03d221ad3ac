//! Login matrix, access, credentials, digests (RFC 7143 6.3).

use std::time::Duration;

use super::*;
use crate::error::{Error, LoginStatus};
use crate::login::{
    Account, ChapAlgorithm, ChapConfig, DigestPolicy, MutualChap, Secret, TargetAuth,
};
use crate::target::{Access, CloseReason};
use crate::types::Tsih;

fn config() -> LoginConfig {
    let kind = SessionKind::Normal {
        target_name: name(TARGET),
    };
    LoginConfig::new(name(INITIATOR), kind, Isid::random([1, 2, 3], 1))
}

fn status(result: Result<Client, Error>) -> LoginStatus {
    match result {
        Err(Error::LoginRejected(status)) => status,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("login was admitted"),
    }
}

#[test]
fn digests_start_after_the_final_response_in_both_directions() {
    for (header, data) in [(true, true), (true, false), (false, true)] {
        let policy = |on| {
            if on {
                DigestPolicy::Require
            } else {
                DigestPolicy::Off
            }
        };
        let offer = Offer {
            header_digest: policy(header),
            data_digest: policy(data),
            ..Offer::default()
        };
        let mut world = World::with(PortalSettings {
            offer: offer.clone(),
            ..PortalSettings::default()
        });
        let mut client = world.login(offer);
        assert_eq!(client.wire.digests, Digests { header, data });
        let read = client.read(5, 2);
        client.send(&mut world, read);
        let data = client.recv_data(&mut world);
        assert_eq!(data.data.to_bytes(), world.unit().bytes[5 * 512..7 * 512]);
    }
}

#[test]
fn what_is_not_built_is_negotiated_down() {
    let mut world = World::new();
    let client = world.login(Offer {
        max_connections: 8,
        error_recovery_level: 2,
        data_pdu_in_order: false,
        data_sequence_in_order: false,
        ..Offer::default()
    });
    assert_eq!(client.negotiated.max_connections, 1);
    assert_eq!(client.negotiated.error_recovery_level, 0);
    assert!(client.negotiated.data_pdu_in_order && client.negotiated.data_sequence_in_order);
}

/// RFC 7143 6.3.5: the same ISID with TSIH 0 ends the old session and its tasks before the new one is up.
#[test]
fn the_same_isid_reinstates_the_session() {
    let mut world = World::new();
    let mut old = world.login(Offer {
        initial_r2t: true,
        immediate_data: false,
        ..Offer::default()
    });
    let write = old.write(1, 1);
    let itt = write.itt;
    old.send(&mut world, write);
    let r2t = old.recv_r2t(&mut world);
    let mut new = world.login_as(Offer::default(), old.isid);
    assert_eq!(
        world.portal.close_reason(old.id()),
        Some(&CloseReason::Reinstated)
    );
    assert_eq!(world.portal.poll_wake(), Some(old.id()));
    assert_eq!(world.portal.sessions().len(), 1);
    // Data that is still on its way does nothing.
    let data = old.data_out(itt, r2t.ttt, 0, 0, vec![1; 512], true);
    old.send(&mut world, data);
    assert!(old.is_closed(&mut world));
    assert!(world.unit().writes.is_empty());
    let begun: Vec<bool> = world.unit().begun.iter().map(|(_, again)| *again).collect();
    assert_eq!((begun, world.unit().ended), (vec![false, true], 1));
    // The new one works; the old socket going away does not disturb it.
    world.portal.remove(old.id());
    let read = new.read(0, 1);
    new.send(&mut world, read);
    assert_eq!(new.recv_data(&mut world).status, Some(0));
    assert_eq!(world.portal.sessions().len(), 1);
}

#[test]
fn another_isid_is_another_session() {
    let mut world = World::new();
    let mut a = world.login(Offer::default());
    let b = world.login_as(Offer::default(), Isid::random([1, 2, 3], 2));
    let sessions = world.portal.sessions();
    assert_eq!(sessions.len(), 2);
    assert_ne!(sessions[0].tsih, sessions[1].tsih);
    assert!(!a.is_closed(&mut world));
    world.portal.remove(b.id());
    assert_eq!(world.portal.sessions().len(), 1);
}

/// RFC 7143 6.3.1: TSIH not 0 means a session that is there.
#[test]
fn tsih_rows_of_the_login_matrix() {
    let mut world = World::new();
    let stale = LoginConfig {
        tsih: Tsih(77),
        ..config()
    };
    assert_eq!(
        status(world.try_login(stale)),
        LoginStatus::SESSION_DOES_NOT_EXIST
    );
    let first = world.login(Offer::default());
    let tsih = world.portal.sessions()[0].tsih;
    let second_connection = LoginConfig {
        tsih,
        cid: Cid(1),
        ..config()
    };
    assert_eq!(
        status(world.try_login(second_connection)),
        LoginStatus::TOO_MANY_CONNECTIONS
    );
    // The same CID: the connection is reinstated, the session keeps its handle.
    let again = LoginConfig { tsih, ..config() };
    world.try_login(again).unwrap();
    assert_eq!(
        world.portal.close_reason(first.id()),
        Some(&CloseReason::Reinstated)
    );
    assert_eq!(world.portal.sessions()[0].tsih, tsih);
}

#[test]
fn unknown_targets_and_strangers_are_refused() {
    let mut world = World::new();
    let unknown = LoginConfig {
        session: SessionKind::Normal {
            target_name: name("iqn.2026-11.io.berth:nobody"),
        },
        ..config()
    };
    assert_eq!(status(world.try_login(unknown)), LoginStatus::NOT_FOUND);
    let target = world.portal.target_mut(&name(TARGET)).unwrap();
    target.access = Access::Only(vec![name("iqn.2026-11.io.berth:other")]);
    assert_eq!(
        status(world.try_login(config())),
        LoginStatus::AUTHORIZATION_FAILURE
    );
    let target = world.portal.target_mut(&name(TARGET)).unwrap();
    target.access = Access::Anyone;
    target.groups = vec![2];
    assert_eq!(
        status(world.try_login(config())),
        LoginStatus::NOT_FOUND,
        "not reachable through this portal group"
    );
}

#[test]
fn chap_both_ways() {
    let account = |user: &str, secret: &str| Account {
        user: user.into(),
        secret: Secret::new(secret.as_bytes()),
    };
    let mut world = World::new();
    world.portal.target_mut(&name(TARGET)).unwrap().auth = TargetAuth::Chap {
        accounts: vec![account("user", "a secret of us")],
        mutual: Some(account("target", "another secret")),
        algorithms: ChapAlgorithm::STRONGEST_FIRST.to_vec(),
        required: true,
    };
    let chap = |secret: &str, mutual: Option<&str>| {
        let mut chap = ChapConfig::new("user", Secret::new(secret.as_bytes()));
        chap.mutual = mutual.map(|secret| MutualChap {
            user: Some("target".into()),
            secret: Secret::new(secret.as_bytes()),
        });
        LoginConfig {
            auth: InitiatorAuth::Chap(chap),
            ..config()
        }
    };
    assert!(world.try_login(chap("a secret of us", None)).is_ok());
    let mutual = chap("a secret of us", Some("another secret"));
    assert!(world.try_login(mutual).is_ok());
    let failed = LoginStatus::AUTHENTICATION_FAILURE;
    let wrong = chap("a wrong secret", None);
    assert_eq!(status(world.try_login(wrong)), failed);
    assert_eq!(status(world.try_login(config())), failed);
}

#[test]
fn a_login_that_takes_too_long_is_closed() {
    let mut world = World::new();
    let mut wire = world.connect();
    assert!(world.portal.poll_timeout(wire.id).is_some());
    world.advance(wire.id, Duration::from_secs(15));
    assert_eq!(
        world.portal.close_reason(wire.id),
        Some(&CloseReason::LoginTimeout)
    );
    assert!(wire.drain(&mut world).is_empty() && world.portal.is_over(wire.id));
}

/// RFC 7143 11.13.5, 020B: nothing but Login Requests before the full feature phase.
#[test]
fn other_pdus_before_login_are_refused() {
    let mut world = World::new();
    let mut wire = world.connect();
    let nop = Pdu::NopOut(NopOut {
        immediate: true,
        lun: Lun::default(),
        itt: Itt(1),
        ttt: Ttt::NONE,
        cmd_sn: CmdSn(1),
        exp_stat_sn: StatSn(1),
        data: Payload::new(),
    });
    wire.send(&mut world, &nop);
    match wire.recv(&mut world) {
        Some(Pdu::LoginResponse(response)) => {
            assert_eq!((response.status_class, response.status_detail), (2, 0x0b));
        }
        other => panic!("{other:?}"),
    }
    assert!(world.portal.is_over(wire.id));
}

#[test]
fn too_many_connections_are_not_accepted() {
    let mut world = World::with(PortalSettings {
        connections_max: 2,
        ..PortalSettings::default()
    });
    let first = world.connect();
    world.connect();
    assert_eq!(world.portal.accept(world.now, "x", 1), None);
    world.portal.remove(first.id);
    assert!(world.portal.accept(world.now, "x", 1).is_some());
}
