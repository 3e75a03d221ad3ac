//! Connections against a scripted peer on a loopback socket.

mod connect;
mod discover;
mod driver;

use std::net::SocketAddr;
use std::slice;

use berth_iobuf::{Payload, ReceiveBuffer, SendQueue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::login::{LoginConfig, SessionKind};
use crate::name::{Host, IscsiName, Portal};
use crate::pdu::*;
use crate::types::{CmdSn, Isid, Itt, Lun, StatSn, TargetSn, Tsih, Ttt};

/// The target's end of one connection.
struct Peer {
    stream: TcpStream,
    receive: ReceiveBuffer,
    decoder: Decoder,
    stat_sn: u32,
    exp_cmd_sn: u32,
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            receive: ReceiveBuffer::new(),
            decoder: Decoder::new(Digests::NONE, 0xff_ffff),
            stat_sn: 1,
            exp_cmd_sn: 1,
        }
    }

    async fn accept(listener: &TcpListener) -> Self {
        Self::new(listener.accept().await.unwrap().0)
    }

    /// The next PDU of the initiator; `None` when it has closed the connection.
    async fn next(&mut self) -> Option<Pdu> {
        loop {
            if let Some(frame) = self.decoder.next(&mut self.receive).unwrap() {
                let pdu = Pdu::parse(frame).unwrap();
                if let Pdu::ScsiCommand(command) = &pdu {
                    self.exp_cmd_sn = command.cmd_sn.0.wrapping_add(1);
                }
                return Some(pdu);
            }
            match self.stream.read_buf(self.receive.room()).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    async fn command(&mut self) -> ScsiCommand {
        match self.next().await {
            Some(Pdu::ScsiCommand(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    async fn send(&mut self, pdu: impl Into<Pdu>) {
        let mut queue = SendQueue::new();
        pdu.into().emit(&mut queue, Digests::NONE);
        self.stream.write_all(&queue.to_vec()).await.unwrap();
    }

    fn sn(&mut self) -> TargetSn {
        let sn = TargetSn {
            stat_sn: StatSn(self.stat_sn),
            exp_cmd_sn: CmdSn(self.exp_cmd_sn),
            max_cmd_sn: CmdSn(self.exp_cmd_sn.wrapping_add(63)),
        };
        self.stat_sn += 1;
        sn
    }

    async fn login_request(&mut self) -> LoginRequest {
        match self.next().await {
            Some(Pdu::LoginRequest(pdu)) => pdu,
            other => panic!("{other:?}"),
        }
    }

    fn login_response(&mut self, request: &LoginRequest, status: (u8, u8), text: &str) -> Pdu {
        let last = request.transit && request.next_stage == Stage::FullFeature;
        Pdu::LoginResponse(LoginResponse {
            transit: request.transit,
            continue_: false,
            current_stage: request.current_stage,
            next_stage: request.next_stage,
            version_max: 0,
            version_active: 0,
            isid: request.isid,
            tsih: Tsih(if last { 9 } else { 0 }),
            itt: request.itt,
            sn: self.sn(),
            status_class: status.0,
            status_detail: status.1,
            data: Payload::from(text.as_bytes().to_vec()),
        })
    }

    /// Plays the login without authentication; `keys` are the operational answers.
    async fn log_in(&mut self, keys: &str) {
        loop {
            let request = self.login_request().await;
            let text = if request.current_stage == Stage::Security {
                "AuthMethod=None\0TargetPortalGroupTag=1\0"
            } else {
                keys
            };
            let response = self.login_response(&request, (0, 0), text);
            self.send(response).await;
            if request.transit && request.next_stage == Stage::FullFeature {
                return;
            }
        }
    }

    /// Refuses or redirects the login.
    async fn refuse_login(&mut self, status: (u8, u8), text: &str) {
        let request = self.login_request().await;
        let response = self.login_response(&request, status, text);
        self.send(response).await;
    }

    async fn answer(&mut self, itt: Itt) {
        let sn = self.sn();
        self.send(ScsiResponse {
            response: 0,
            status: 0,
            status_qualifier: 0,
            itt,
            snack_tag: 0,
            sn,
            exp_data_sn: 0,
            residual: Residual::None,
            bidi_read_residual: Residual::None,
            data: Payload::new(),
        })
        .await;
    }

    async fn answer_read(&mut self, itt: Itt, data: &[u8]) {
        let sn = self.sn();
        self.send(DataIn {
            final_: true,
            acknowledge: false,
            status: Some(0),
            residual: Residual::None,
            lun: Lun::default(),
            itt,
            ttt: Ttt::NONE,
            sn,
            data_sn: 0,
            buffer_offset_bytes: 0,
            data: Payload::from(data.to_vec()),
        })
        .await;
    }
}

async fn listen() -> (TcpListener, Portal) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let portal = portal_of(listener.local_addr().unwrap());
    (listener, portal)
}

fn portal_of(address: SocketAddr) -> Portal {
    Portal {
        host: Host::Ip(address.ip()),
        port: address.port(),
    }
}

fn config(session: SessionKind) -> LoginConfig {
    let initiator = IscsiName::parse("iqn.2026-11.example:i").unwrap();
    LoginConfig::new(initiator, session, Isid::random([1, 2, 3], 0))
}

fn normal() -> LoginConfig {
    config(SessionKind::Normal {
        target_name: IscsiName::parse("iqn.2026-11.example:t").unwrap(),
    })
}
