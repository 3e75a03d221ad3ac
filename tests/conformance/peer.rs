//! The scripted target: it says what a test makes it say, with the numbers of a target that does it right.

use std::future::poll_fn;
use std::io::IoSlice;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::{
    Admission, Directory, Established, Identity, Negotiated, SessionGrant, TargetAuth, TargetLogin,
    TargetLoginConfig, TargetStep,
};
use berth_iscsi::net::Socket as _;
use berth_iscsi::types::Tsih;

use super::wire::End;
use super::*;

/// Commands that the target takes at a time, unless a test says otherwise.
pub(crate) const WINDOW: u32 = 64;

/// The target's end of one connection.
pub(crate) struct Peer {
    end: End,
    receive: ReceiveBuffer,
    decoder: Decoder,
    pub(crate) digests: Digests,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
    /// MaxCmdSN - ExpCmdSN + 1.
    pub(crate) window: u32,
    /// Pings are answered on the way.
    pub(crate) answers_pings: bool,
    pub(crate) pings: usize,
}

struct Anyone(Offer);

impl Directory for Anyone {
    fn admit(&mut self, _: &Identity) -> Admission {
        Admission::Admit {
            auth: TargetAuth::None,
            offer: self.0.clone(),
            alias: None,
        }
    }

    fn open(&mut self, _: &Identity, _: &Negotiated) -> Result<SessionGrant, LoginStatus> {
        Ok(SessionGrant {
            tsih: Tsih(9),
            window: None,
        })
    }
}

impl Peer {
    pub(crate) fn new(end: End) -> Self {
        Self {
            end,
            receive: ReceiveBuffer::new(),
            decoder: Decoder::default(),
            digests: Digests::NONE,
            stat_sn: 1,
            exp_cmd_sn: 1,
            window: WINDOW,
            answers_pings: true,
            pings: 0,
        }
    }

    /// The next PDU, pings included; `None` when the initiator has closed the connection.
    pub(crate) async fn any(&mut self) -> Option<Pdu> {
        loop {
            let frame = self.decoder.next(&mut self.receive);
            if let Some(frame) = frame.expect("the initiator sends whole PDUs") {
                let pdu = Pdu::parse(frame).expect("the initiator sends PDUs that make sense");
                if let Pdu::ScsiCommand(command) = &pdu
                    && !command.immediate
                {
                    assert_eq!(command.cmd_sn.0, self.exp_cmd_sn, "commands in order");
                    self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
                }
                return Some(pdu);
            }
            let (end, receive) = (&mut self.end, &mut self.receive);
            match poll_fn(|cx| end.poll_read(cx, receive.room())).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next PDU that is not a ping, or a ping if they are not answered on the way.
    pub(crate) async fn next(&mut self) -> Option<Pdu> {
        loop {
            match self.any().await {
                Some(Pdu::NopOut(ping)) if !ping.itt.is_none() => {
                    self.pings += 1;
                    if !self.answers_pings {
                        return Some(Pdu::NopOut(ping));
                    }
                    let pong = self.nop_in(ping.itt, Ttt::NONE);
                    self.send(pong).await;
                }
                other => return other,
            }
        }
    }

    /// Reads until the initiator hangs up; what it said.
    pub(crate) async fn until_closed(&mut self) -> Vec<Pdu> {
        let mut said = Vec::new();
        while let Some(pdu) = self.next().await {
            said.push(pdu);
        }
        said
    }

    pub(crate) async fn command(&mut self) -> ScsiCommand {
        match self.next().await {
            Some(Pdu::ScsiCommand(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn data_out(&mut self) -> DataOut {
        match self.next().await {
            Some(Pdu::DataOut(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn management(&mut self) -> TaskManagementRequest {
        match self.next().await {
            Some(Pdu::TaskManagementRequest(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn logout(&mut self) -> LogoutRequest {
        match self.next().await {
            Some(Pdu::LogoutRequest(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    /// The next PDU within `time`, or nothing.
    pub(crate) async fn within(&mut self, time: Duration) -> Option<Pdu> {
        tokio::time::timeout(time, self.next()).await.ok().flatten()
    }

    pub(crate) fn encode(&self, pdu: impl Into<Pdu>) -> Vec<u8> {
        let mut queue = SendQueue::new();
        pdu.into().emit(&mut queue, self.digests);
        queue.to_vec()
    }

    pub(crate) async fn send(&mut self, pdu: impl Into<Pdu>) {
        let bytes = self.encode(pdu);
        self.send_bytes(&bytes).await;
    }

    /// Sends bytes as they are. An initiator that has hung up is no error.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        let mut left = bytes;
        while !left.is_empty() {
            let end = &mut self.end;
            match end.try_write_vectored(&[IoSlice::new(left)]) {
                Ok(n) => left = &left[n..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if poll_fn(|cx| end.poll_write_ready(cx)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    /// Numbers that consume a StatSN.
    pub(crate) fn sn(&mut self) -> TargetSn {
        let sn = self.sn_next();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        sn
    }

    /// Numbers that only show it.
    pub(crate) fn sn_next(&self) -> TargetSn {
        TargetSn {
            stat_sn: StatSn(self.stat_sn),
            exp_cmd_sn: CmdSn(self.exp_cmd_sn),
            max_cmd_sn: CmdSn(self.exp_cmd_sn.wrapping_add(self.window).wrapping_sub(1)),
        }
    }

    /// Plays the login without authentication, as a target that wants `offer`.
    pub(crate) async fn log_in(&mut self, offer: Offer) -> Box<Established> {
        let config = TargetLoginConfig {
            window: self.window,
            ..TargetLoginConfig::default()
        };
        let mut login = TargetLogin::new(config);
        let mut directory = Anyone(offer);
        loop {
            let request = self.login_request().await;
            match login.on_request(&request, &mut directory) {
                TargetStep::Respond(response) => self.send(Pdu::LoginResponse(response)).await,
                TargetStep::Established(response, established) => {
                    self.send(Pdu::LoginResponse(response)).await;
                    let negotiated = &established.negotiated;
                    self.digests = Digests {
                        header: negotiated.header_digest,
                        data: negotiated.data_digest,
                    };
                    self.decoder
                        .configure(self.digests, negotiated.max_recv_data_segment_bytes);
                    self.stat_sn = established.stat_sn.0;
                    self.exp_cmd_sn = established.exp_cmd_sn.0;
                    return established;
                }
                TargetStep::Refused(_, refusal) => panic!("{refusal}"),
            }
        }
    }

    pub(crate) async fn login_request(&mut self) -> LoginRequest {
        match self.any().await {
            Some(Pdu::LoginRequest(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    /// A Login Response with a status, and keys.
    pub(crate) fn login_status(&mut self, to: &LoginRequest, status: (u8, u8), text: &str) -> Pdu {
        Pdu::LoginResponse(LoginResponse {
            transit: false,
            continue_: false,
            current_stage: to.current_stage,
            next_stage: Stage::Security,
            version_max: 0,
            version_active: 0,
            isid: to.isid,
            tsih: Tsih(0),
            itt: to.itt,
            sn: self.sn(),
            status_class: status.0,
            status_detail: status.1,
            data: Payload::from(text.as_bytes().to_vec()),
        })
    }

    pub(crate) fn response(&mut self, itt: Itt, status: u8, residual: Residual) -> ScsiResponse {
        ScsiResponse {
            response: 0,
            status,
            status_qualifier: 0,
            itt,
            snack_tag: 0,
            sn: self.sn(),
            exp_data_sn: 0,
            residual,
            bidi_read_residual: Residual::None,
            data: Payload::new(),
        }
    }

    pub(crate) fn good(&mut self, itt: Itt) -> Pdu {
        Pdu::ScsiResponse(self.response(itt, GOOD, Residual::None))
    }

    /// CHECK CONDITION with these sense bytes.
    pub(crate) fn check_condition(&mut self, itt: Itt, sense: &[u8]) -> Pdu {
        let mut response = self.response(itt, CHECK_CONDITION, Residual::None);
        response.data = sense_data(sense);
        Pdu::ScsiResponse(response)
    }

    pub(crate) fn data_in(&self, itt: Itt, data_sn: u32, offset: u32, data: &[u8]) -> DataIn {
        DataIn {
            final_: false,
            acknowledge: false,
            status: None,
            residual: Residual::None,
            lun: Lun::default(),
            itt,
            ttt: Ttt::NONE,
            sn: TargetSn {
                stat_sn: StatSn(0),
                ..self.sn_next()
            },
            data_sn,
            buffer_offset_bytes: offset,
            data: Payload::from(data.to_vec()),
        }
    }

    pub(crate) fn r2t(&self, itt: Itt, ttt: u32, r2t_sn: u32, offset: u32, len: u32) -> R2t {
        R2t {
            lun: Lun([0, 1, 0, 0, 0, 0, 0, 7]),
            itt,
            ttt: Ttt(ttt),
            sn: self.sn_next(),
            r2t_sn,
            buffer_offset_bytes: offset,
            desired_len_bytes: len,
        }
    }

    /// A NOP-In; it takes a StatSN if it answers a ping.
    pub(crate) fn nop_in(&mut self, itt: Itt, ttt: Ttt) -> Pdu {
        let sn = if itt.is_none() {
            self.sn_next()
        } else {
            self.sn()
        };
        Pdu::NopIn(NopIn {
            lun: Lun([0, 7, 0, 0, 0, 0, 0, 9]),
            itt,
            ttt,
            sn,
            data: Payload::new(),
        })
    }

    pub(crate) fn async_message(&mut self, event: u8, parameters: [u16; 3], sense: &[u8]) -> Pdu {
        let data = if sense.is_empty() {
            Payload::new()
        } else {
            sense_data(sense)
        };
        Pdu::AsyncMessage(AsyncMessage {
            lun: lun(),
            sn: self.sn(),
            event,
            vendor_code: 0,
            parameter1: parameters[0],
            parameter2: parameters[1],
            parameter3: parameters[2],
            data,
        })
    }

    pub(crate) fn management_response(&mut self, itt: Itt, response: u8) -> Pdu {
        Pdu::TaskManagementResponse(TaskManagementResponse {
            response,
            itt,
            sn: self.sn(),
        })
    }

    pub(crate) fn logout_response(&mut self, itt: Itt, response: u8, time2wait_s: u16) -> Pdu {
        Pdu::LogoutResponse(LogoutResponse {
            response,
            itt,
            sn: self.sn(),
            time2wait_s,
            time2retain_s: 0,
        })
    }

    pub(crate) fn reject(&mut self, reason: u8, refused: impl Into<Pdu>) -> Pdu {
        let mut queue = SendQueue::new();
        refused.into().emit(&mut queue, Digests::NONE);
        Pdu::Reject(Reject {
            reason,
            sn: self.sn(),
            data_sn: 0,
            data: Payload::from(queue.to_vec()[..BHS_LEN].to_vec()),
        })
    }
}
