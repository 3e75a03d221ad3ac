//! How this node logs in: configuration and request become what the initiator needs.

use std::sync::Arc;
use std::time::Duration;

use berth_api::AttachmentName;
use berth_api::types::{Auth, Chap, DigestPolicy as ApiPolicy, Digests, Fence};
use berth_iscsi::login::{
    ChapConfig, DigestPolicy, InitiatorAuth, LoginConfig, MutualChap, Offer, Secret, SessionKind,
};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::{ConnectOptions, TcpNetwork};
use berth_iscsi::session::SessionOptions;
use berth_iscsi::types::{Isid, Lun};

use crate::block::lun::reservation::{Key, NodeId};
use crate::config::{Config, Iscsi};
use crate::nbd;
use crate::plane::VolumeSpec;
use crate::plane::spec::{FenceSpec, PathSpec};
use crate::volume::Terms;
use crate::volume::intent::{Intent, KnownPath};

/// The initiator of this node: its name and its settings.
#[derive(Debug)]
pub struct Initiator {
    name: IscsiName,
    settings: Iscsi,
    nbd: nbd::transmission::Limits,
    receive_pool_bytes: usize,
}

impl Initiator {
    /// An initiator of this name.
    #[must_use]
    pub fn new(name: IscsiName, config: &Config) -> Self {
        let nbd = nbd::transmission::Limits {
            requests_max: config.nbd.requests_max,
            bytes_max: usize::try_from(config.nbd.bytes_max.0).unwrap_or(usize::MAX),
            ..nbd::transmission::Limits::default()
        };
        Self {
            name,
            settings: config.iscsi.clone(),
            nbd,
            receive_pool_bytes: usize::try_from(config.nbd.device.receive_pool.0)
                .unwrap_or(usize::MAX),
        }
    }

    /// Its iSCSI name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Its number in reservation keys.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId::of(self.name())
    }

    /// The plan for an attachment.
    #[must_use]
    pub fn volume_spec(&self, name: &AttachmentName, intent: &Intent, terms: Terms) -> VolumeSpec {
        let source = (intent.request.source.iscsi())
            .expect("an attempt begins when it is known where the volume is");
        let target_name: IscsiName = source
            .target
            .as_str()
            .parse()
            .expect("the API took it for an iSCSI name");
        let session = SessionKind::Normal { target_name };
        let recovery = &self.settings.recovery;
        // Nodes and attachments must not keep step with each other; the ISID is random enough for that.
        let seed = u64::from(berth_iscsi::pdu::crc32c(&intent.isid.0));
        let mut connect = self.connect_options(self.settings.login_timeout.0);
        // A reset of the LUN would end the commands of the other paths too, without an answer.
        connect.session.lun_reset &= source.portals.len() == 1;
        VolumeSpec {
            name: name.to_string(),
            network: Arc::new(TcpNetwork),
            target: source.target.to_string(),
            paths: paths(intent),
            login: self.login(
                session,
                intent.isid,
                source.auth.as_ref(),
                intent.request.digests,
            ),
            connect,
            lun: Lun::from_number(source.lun).expect("the API took it for a LUN"),
            read_only: intent.request.read_only,
            expected_identity: intent.identity.clone(),
            unclean: terms.unclean,
            fence: intent
                .fence
                .filter(|_| intent.request.fence == Fence::Reservation)
                .map(|fence| FenceSpec {
                    key: Key::new(self.node_id(), fence.epoch),
                    claim: terms.claim,
                }),
            recovery_timeout: intent
                .recovery_timeout(recovery.timeout_seconds)
                .as_duration(),
            stale_session_timeout: recovery.stale_session_timeout.0,
            retry_first: recovery.retry_first.0,
            retry_max: recovery.retry_max.0,
            seed,
            cache_loss: recovery.cache_loss,
            queue_depth_max: recovery.queue_depth_max,
            command_timeout: self.settings.command_timeout.0,
            logout_timeout: self.settings.logout_timeout.0,
            nbd: self.nbd,
            receive_pool_bytes: self.receive_pool_bytes,
        }
    }

    /// What a login says; digests are not used in discovery.
    pub(crate) fn login(
        &self,
        session: SessionKind,
        isid: Isid,
        auth: Option<&Auth>,
        digests: Digests,
    ) -> LoginConfig {
        let bytes = |size: crate::config::Size| {
            u32::try_from(size.0).expect("the configuration was checked against RFC 7143 13")
        };
        let mut login = LoginConfig::new(self.name.clone(), session, isid);
        login.auth = match auth {
            None => InitiatorAuth::None,
            Some(Auth::Chap(chap)) => InitiatorAuth::Chap(chap_config(chap)),
        };
        login.offer = Offer {
            header_digest: digest_policy(digests.header),
            data_digest: digest_policy(digests.data),
            max_recv_data_segment_bytes: bytes(self.settings.max_recv_data_segment),
            max_burst_bytes: bytes(self.settings.max_burst),
            first_burst_bytes: bytes(self.settings.first_burst),
            ..Offer::default()
        };
        login
    }

    /// Times and limits of a connection.
    pub(crate) fn connect_options(&self, deadline: Duration) -> ConnectOptions {
        ConnectOptions {
            deadline,
            session: SessionOptions {
                ping_interval: Some(self.settings.ping_interval.0),
                ping_timeout: self.settings.ping_timeout.0,
                abort_timeout: self.settings.abort_timeout.0,
                lun_reset: self.settings.lun_reset,
                logical_unit_reset_timeout: self.settings.lun_reset_timeout.0,
                fast_abort: self.settings.fast_abort,
                drain_timeout: self.settings.logout_timeout.0,
                logout_timeout: self.settings.logout_timeout.0,
                ..SessionOptions::default()
            },
            ..ConnectOptions::default()
        }
    }
}

/// The paths of an attachment, by number.
pub(crate) fn paths(intent: &Intent) -> Vec<PathSpec> {
    let path = |known: &KnownPath| PathSpec {
        index: known.index,
        portal: portal(&known.portal),
        isid: isid_of(intent.isid, known.index),
        known_group: known.portal_group,
        retired: known.retired,
    };
    intent.paths.iter().map(path).collect()
}

/// The ISID of the path with this number: the attachment's base with the number added to its
/// qualifier, so that each path keeps its own for ever (RFC 7143 4.4.3: one nexus, one ISID).
pub(crate) fn isid_of(base: Isid, index: u16) -> Isid {
    let Isid([a, b, c, d, high, low]) = base;
    let [high, low] = u16::from_be_bytes([high, low])
        .wrapping_add(index)
        .to_be_bytes();
    Isid([a, b, c, d, high, low])
}

/// A portal of the API as one of the initiator.
pub(crate) fn portal(portal: &berth_api::Portal) -> berth_iscsi::name::Portal {
    portal
        .to_string()
        .parse()
        .expect("the API took it for a portal")
}

/// A portal of the initiator as one of the API.
pub(crate) fn api_portal(portal: &berth_iscsi::name::Portal) -> berth_api::Portal {
    portal
        .to_string()
        .parse()
        .expect("it was made from one of the API")
}

fn digest_policy(policy: ApiPolicy) -> DigestPolicy {
    match policy {
        ApiPolicy::Off => DigestPolicy::Off,
        ApiPolicy::Prefer => DigestPolicy::Prefer,
        ApiPolicy::Require => DigestPolicy::Require,
    }
}

fn chap_config(chap: &Chap) -> ChapConfig {
    let secret = |secret: &berth_api::Secret| Secret::new(secret.expose().as_bytes().to_vec());
    let mutual = chap.mutual.as_ref().map(|mutual| MutualChap {
        user: mutual.user.clone(),
        secret: secret(&mutual.secret),
    });
    ChapConfig {
        mutual,
        allow_short_secrets: chap.allow_short_secret,
        ..ChapConfig::new(chap.user.clone(), secret(&chap.secret))
    }
}
