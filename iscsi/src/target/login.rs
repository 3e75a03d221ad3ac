//! The login phase of a connection: requests to the login machine, and the session that comes out of it.

use std::sync::Arc;
use std::time::Instant;

use super::connection::{CloseReason, Connection, Phase, Queued, Rules};
use super::executor::Nexus;
use super::faults::LoginFault;
use super::portal::{Order, Shared};
use super::session::{Session, SessionKind};
use super::task::ReadRules;
use super::window::CommandWindow;
use super::write::WriteRules;
use crate::error::LoginStatus;
use crate::login::{
    Admission, Directory, Established, Identity, Negotiated, Offer, SessionGrant, TargetLogin,
    TargetLoginConfig, TargetStep,
};
use crate::pdu::{Digests, Frame, LoginResponse, Pdu, Stage};
use crate::types::{Isid, TargetSn, Tsih};

/// A login that is not over.
#[derive(Debug)]
pub(super) struct LoginPhase {
    machine: TargetLogin,
    pub(super) until: Instant,
}

impl LoginPhase {
    pub(super) fn new(
        shared: &Shared,
        group: u16,
        fault: Option<&LoginFault>,
        now: Instant,
    ) -> Self {
        let mut config = TargetLoginConfig {
            portal_group_tag: group,
            window: shared.settings.window,
            ..TargetLoginConfig::default()
        };
        if let Some(LoginFault::Machine(faults)) = fault {
            config.faults = faults.clone();
        }
        Self {
            machine: TargetLogin::new(config),
            until: now + shared.settings.login_timeout,
        }
    }
}

impl Rules {
    /// Before login.
    pub(super) fn before_login() -> Self {
        Self::new(&Negotiated::default(), false)
    }

    fn new(negotiated: &Negotiated, phase_collapse: bool) -> Self {
        Self {
            write: WriteRules {
                initial_r2t: negotiated.initial_r2t,
                immediate_data: negotiated.immediate_data,
                first_burst_bytes: negotiated.first_burst_bytes,
                max_burst_bytes: negotiated.max_burst_bytes,
                max_outstanding_r2t: negotiated.max_outstanding_r2t.into(),
            },
            read: ReadRules {
                segment_bytes_max: negotiated.peer_max_recv_data_segment_bytes as usize,
                max_burst_bytes: negotiated.max_burst_bytes as usize,
                phase_collapse,
            },
            digests: Digests {
                header: negotiated.header_digest,
                data: negotiated.data_digest,
            },
            time2wait_s: negotiated.time2wait_s,
            time2retain_s: negotiated.time2retain_s,
        }
    }
}

impl Connection {
    pub(super) fn on_login_frame(&mut self, shared: &mut Shared, frame: Frame) {
        let header = frame.bhs;
        let request = match Pdu::parse(frame) {
            Ok(Pdu::LoginRequest(request)) => request,
            Ok(_) => {
                // RFC 7143 11.13.5: nothing but Login Requests before the full feature phase.
                let status = LoginStatus::INVALID_DURING_LOGIN;
                self.queue(Pdu::LoginResponse(LoginResponse {
                    transit: false,
                    continue_: false,
                    current_stage: Stage::Security,
                    next_stage: Stage::Security,
                    version_max: 0,
                    version_active: 0,
                    isid: Isid::default(),
                    tsih: Tsih(0),
                    itt: header.itt(),
                    sn: TargetSn::default(),
                    status_class: status.class,
                    status_detail: status.detail,
                    data: crate::Payload::new(),
                }));
                return self.close(
                    shared,
                    CloseReason::Protocol("no Login Request during login"),
                );
            }
            Err(error) => return self.close(shared, CloseReason::Malformed(error.to_string())),
        };
        match self.login_fault() {
            Some(LoginFault::Silent) => return,
            Some(LoginFault::Garbage(bytes)) => {
                let bytes = bytes.clone();
                self.control.push_back(Queued::Raw(bytes));
                return self.close(shared, CloseReason::Fault);
            }
            _ => {}
        }
        let Phase::Login(login) = &mut self.phase else {
            return;
        };
        let mut directory = PortalDirectory {
            shared,
            group: self.group,
        };
        match login.machine.on_request(&request, &mut directory) {
            TargetStep::Respond(response) => self.queue(Pdu::LoginResponse(response)),
            TargetStep::Established(response, established) => {
                self.control
                    .push_back(Queued::LastLogin(Box::new(Pdu::LoginResponse(response))));
                self.establish(shared, &established);
            }
            TargetStep::Refused(response, refusal) => {
                tracing::info!(connection = self.id.0, %refusal, "target refuses a login");
                self.queue(Pdu::LoginResponse(response));
                let LoginStatus { class, detail } = refusal.status;
                self.close(shared, CloseReason::LoginRefused { class, detail });
            }
        }
    }

    /// Full feature phase: the login matrix of RFC 7143 6.3.1 was checked by the directory, what it says is
    /// done here.
    fn establish(&mut self, shared: &mut Shared, established: &Established) {
        let identity = &established.identity;
        let kind = match identity.target_name {
            Some(_) => SessionKind::Normal,
            None => SessionKind::Discovery,
        };
        let nexus = Arc::new(nexus_of(identity, self.group));
        let old = shared.session_of(&nexus, kind);
        let reinstated = old.is_some();
        if let Some(old) = old {
            // Its tasks die before the first command of the new session can come.
            let connection = shared.sessions[old].connection;
            shared.end_session(old);
            shared
                .orders
                .push((connection, Order::Close(CloseReason::Reinstated)));
        }
        let target = identity
            .target_name
            .as_ref()
            .and_then(|name| shared.target_of(name.normalized()));
        let window = CommandWindow::new(established.exp_cmd_sn, shared.settings.window);
        let session = shared.sessions.insert(Session {
            tsih: established.tsih,
            cid: identity.cid,
            kind,
            target,
            nexus: nexus.clone(),
            window,
            connection: self.id,
        });
        if let Some(target) = target {
            for unit in shared.targets[target].config.luns.values() {
                shared.units[unit.0].nexus_begins(&nexus, reinstated);
            }
        }
        tracing::info!(
            connection = self.id.0,
            initiator = %nexus.initiator,
            target = %nexus.target,
            reinstated,
            "target session starts"
        );
        let negotiated = &established.negotiated;
        self.rules = Rules::new(negotiated, shared.settings.phase_collapse);
        self.decoder
            .configure(self.rules.digests, negotiated.max_recv_data_segment_bytes);
        self.stat_sn = established.stat_sn;
        self.session = Some(session);
        self.phase = Phase::Full;
    }
}

fn nexus_of(identity: &Identity, group: u16) -> Nexus {
    Nexus {
        initiator: identity.initiator_name.normalized().into(),
        isid: identity.isid,
        target: identity
            .target_name
            .as_ref()
            .map_or("", |name| name.normalized())
            .into(),
        portal_group: group,
    }
}

/// Answers the login machine's questions from the portal's configuration.
struct PortalDirectory<'a> {
    shared: &'a mut Shared,
    group: u16,
}

impl Directory for PortalDirectory<'_> {
    fn admit(&mut self, identity: &Identity) -> Admission {
        let settings = &self.shared.settings;
        let (auth, offer, alias) = match &identity.target_name {
            None => (settings.discovery_auth.clone(), &settings.offer, None),
            Some(name) => {
                let Some(target) = self.shared.target_of(name.normalized()) else {
                    return Admission::Refuse(LoginStatus::NOT_FOUND);
                };
                let target = &self.shared.targets[target].config;
                if !target.is_in_group(self.group) {
                    return Admission::Refuse(LoginStatus::NOT_FOUND);
                }
                if !target.access.allows(identity.initiator_name.normalized()) {
                    return Admission::Refuse(LoginStatus::AUTHORIZATION_FAILURE);
                }
                if let Some((address, permanent)) = &target.redirect {
                    return Admission::Redirect {
                        address: address.clone(),
                        permanent: *permanent,
                    };
                }
                (
                    target.auth.clone(),
                    target.offer.as_ref().unwrap_or(&settings.offer),
                    target.alias.clone(),
                )
            }
        };
        if identity.tsih.0 != 0 {
            let nexus = nexus_of(identity, self.group);
            let kind = match identity.target_name {
                Some(_) => SessionKind::Normal,
                None => SessionKind::Discovery,
            };
            match self.shared.session_of(&nexus, kind) {
                Some(session) if self.shared.sessions[session].tsih == identity.tsih => {
                    if self.shared.sessions[session].cid != identity.cid {
                        // One connection per session: MaxConnections is 1.
                        return Admission::Refuse(LoginStatus::TOO_MANY_CONNECTIONS);
                    }
                }
                _ => return Admission::Refuse(LoginStatus::SESSION_DOES_NOT_EXIST),
            }
        }
        Admission::Admit {
            auth,
            offer: Offer {
                // What is not built is negotiated down; see `session`.
                max_connections: 1,
                error_recovery_level: 0,
                data_pdu_in_order: true,
                data_sequence_in_order: true,
                ..offer.clone()
            },
            alias,
        }
    }

    fn open(
        &mut self,
        identity: &Identity,
        _negotiated: &Negotiated,
    ) -> Result<SessionGrant, LoginStatus> {
        // The target may have gone, or its access may have changed, since the login began.
        if let Some(name) = &identity.target_name {
            let target = self
                .shared
                .target_of(name.normalized())
                .ok_or(LoginStatus::NOT_FOUND)?;
            let access = &self.shared.targets[target].config.access;
            if !access.allows(identity.initiator_name.normalized()) {
                return Err(LoginStatus::AUTHORIZATION_FAILURE);
            }
        }
        // A connection that is reinstated keeps the handle of its session; the session itself starts anew,
        // because at level 0 nothing of it can be continued.
        let tsih = if identity.tsih.0 != 0 {
            identity.tsih
        } else {
            self.shared
                .take_tsih()
                .ok_or(LoginStatus::OUT_OF_RESOURCES)?
        };
        Ok(SessionGrant { tsih, window: None })
    }
}
