//! How this node logs in: configuration and request become what the initiator needs.

use std::sync::Arc;
use std::time::Duration;

use berth_api::AttachmentName;
use berth_api::types::{Auth, Chap, DigestPolicy as ApiPolicy, Digests, Source};
use berth_iscsi::login::{
    ChapConfig, DigestPolicy, InitiatorAuth, LoginConfig, MutualChap, Offer, Secret, SessionKind,
};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::{ConnectOptions, TcpNetwork};
use berth_iscsi::session::SessionOptions;
use berth_iscsi::types::{Isid, Lun};

use crate::config::{Config, Iscsi};
use crate::nbd;
use crate::plane::VolumeSpec;
use crate::volume::intent::Intent;

/// The initiator of this node: its name and its settings.
#[derive(Debug)]
pub struct Initiator {
    name: IscsiName,
    settings: Iscsi,
    nbd: nbd::transmission::Limits,
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
        }
    }

    /// Its iSCSI name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The plan for an attachment.
    #[must_use]
    pub fn volume_spec(&self, name: &AttachmentName, intent: &Intent) -> VolumeSpec {
        let Source::Iscsi(source) = &intent.request.source;
        let target_name: IscsiName = source
            .target
            .as_str()
            .parse()
            .expect("the API took it for an iSCSI name");
        let session = SessionKind::Normal { target_name };
        VolumeSpec {
            name: name.to_string(),
            network: Arc::new(TcpNetwork),
            target: source.target.to_string(),
            portals: source.portals.iter().map(portal).collect(),
            login: self.login(
                session,
                intent.isid,
                source.auth.as_ref(),
                intent.request.digests,
            ),
            connect: self.connect_options(self.settings.login_timeout.0),
            lun: Lun::from_number(source.lun).expect("the API took it for a LUN"),
            read_only: intent.request.read_only,
            command_timeout: self.settings.command_timeout.0,
            logout_timeout: self.settings.logout_timeout.0,
            nbd: self.nbd,
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
                drain_timeout: self.settings.logout_timeout.0,
                logout_timeout: self.settings.logout_timeout.0,
                ..SessionOptions::default()
            },
            ..ConnectOptions::default()
        }
    }
}

/// A portal of the API as one of the initiator.
pub(crate) fn portal(portal: &berth_api::Portal) -> berth_iscsi::name::Portal {
    portal
        .to_string()
        .parse()
        .expect("the API took it for a portal")
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
