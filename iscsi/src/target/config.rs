//! What a portal offers: targets, who may use them, and how it negotiates.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::login::{Offer, TargetAuth};
use crate::name::{IscsiName, TargetAddress};

/// Settings of a whole [`super::Portal`].
#[derive(Debug, Clone)]
pub struct PortalSettings {
    /// Portal groups that discovery reports, with their addresses.
    pub groups: Vec<PortalGroup>,
    /// Authentication of discovery sessions.
    pub discovery_auth: TargetAuth,
    /// Limits of the negotiation, unless a target has its own.
    pub offer: Offer,
    /// Commands that a session may have unfinished.
    pub window: u32,
    /// Immediate commands that a connection may have unfinished; more are rejected (06). The RFC asks for at
    /// least two (RFC 7143 4.2.2.1).
    pub immediate_max: usize,
    /// Bytes of write data that one connection may be asked for at a time.
    pub write_buffer_bytes: u64,
    /// GOOD status rides on the last Data-In.
    pub phase_collapse: bool,
    /// A login that takes longer is closed.
    pub login_timeout: Duration,
    /// Pings an initiator that was silent for so long.
    pub ping_interval: Option<Duration>,
    /// Closes the connection when a ping is not answered for so long.
    pub ping_timeout: Duration,
    /// After an asynchronous logout request new commands are rejected (0C) instead of executed.
    pub refuse_while_logout_is_asked: bool,
    /// How long a multi-task abort waits for data of its tasks that is still owed (RFC 7143 4.2.3.2).
    pub abort_wait: Duration,
    /// Longest SendTargets answer sent in one PDU, in bytes; longer ones are paged.
    pub text_page_bytes: usize,
    /// Pages of a SendTargets answer are joined by the C bit, not by F=0 and a transfer tag alone.
    pub text_continue: bool,
    /// Connections at a time; more are refused at accept.
    pub connections_max: usize,
}

impl Default for PortalSettings {
    fn default() -> Self {
        Self {
            groups: vec![PortalGroup::default()],
            discovery_auth: TargetAuth::None,
            offer: Offer::default(),
            window: 128,
            immediate_max: 16,
            write_buffer_bytes: 64 * 1024 * 1024,
            phase_collapse: true,
            login_timeout: Duration::from_secs(15),
            ping_interval: None,
            ping_timeout: Duration::from_secs(30),
            refuse_while_logout_is_asked: false,
            abort_wait: Duration::from_secs(1),
            text_page_bytes: 8192,
            text_continue: false,
            connections_max: 1024,
        }
    }
}

/// A portal group: addresses that may share a session (RFC 7143 2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalGroup {
    /// Portal group tag.
    pub tag: u16,
    /// Addresses to report, as `host:port`; when empty, the one the initiator is connected to.
    pub addresses: Vec<String>,
}

impl Default for PortalGroup {
    fn default() -> Self {
        Self {
            tag: 1,
            addresses: Vec::new(),
        }
    }
}

/// Who may log in to a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Access {
    /// Every initiator.
    #[default]
    Anyone,
    /// Only these; discovery hides the target from others.
    Only(Vec<IscsiName>),
}

impl Access {
    /// Whether `initiator`, a normalised name, may log in.
    #[must_use]
    pub fn allows(&self, initiator: &str) -> bool {
        match self {
            Self::Anyone => true,
            Self::Only(names) => names.iter().any(|name| name.normalized() == initiator),
        }
    }
}

/// Names a logical unit of a [`super::Portal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnitId(pub(super) usize);

/// One target.
#[derive(Debug, Clone)]
pub struct TargetConfig {
    /// Its name.
    pub name: IscsiName,
    /// TargetAlias.
    pub alias: Option<String>,
    /// Who may log in.
    pub access: Access,
    /// How initiators have to authenticate.
    pub auth: TargetAuth,
    /// LUN to logical unit; a unit may be in several targets.
    pub luns: BTreeMap<u16, UnitId>,
    /// Portal groups it is reachable through; empty: all.
    pub groups: Vec<u16>,
    /// Limits of the negotiation; `None`: those of the portal.
    pub offer: Option<Offer>,
    /// Every login is sent elsewhere, for good when the flag is set.
    pub redirect: Option<(TargetAddress, bool)>,
}

impl TargetConfig {
    /// A target that everyone may use, without LUNs.
    #[must_use]
    pub fn new(name: IscsiName) -> Self {
        Self {
            name,
            alias: None,
            access: Access::Anyone,
            auth: TargetAuth::None,
            luns: BTreeMap::new(),
            groups: Vec::new(),
            offer: None,
            redirect: None,
        }
    }

    /// Maps `lun` to `unit`.
    #[must_use]
    pub fn with_lun(mut self, lun: u16, unit: UnitId) -> Self {
        self.luns.insert(lun, unit);
        self
    }

    /// Whether the target is reachable through this portal group.
    #[must_use]
    pub fn is_in_group(&self, tag: u16) -> bool {
        self.groups.is_empty() || self.groups.contains(&tag)
    }
}
