//! A peer that speaks bytes: what no target role would say.

use std::time::Duration;

use berth_iobuf::{ReceiveBuffer, SendQueue};
use berth_iscsi::Payload;
use berth_iscsi::error::LoginStatus;
use berth_iscsi::login::{
    Admission, Directory, Identity, Negotiated, Offer, SessionGrant, TargetAuth, TargetLogin,
    TargetLoginConfig, TargetStep,
};
use berth_iscsi::pdu::{
    BHS_LEN, DataIn, Decoder, Digests, LoginRequest, LoginResponse, NopIn, Pdu, Residual, Stage,
};
use berth_iscsi::types::{CmdSn, Itt, Lun, StatSn, TargetSn, Tsih, Ttt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Dice;

/// What it does, by number.
pub(crate) const KINDS: [&str; 13] = [
    "closes at once",
    "says nothing",
    "garbage for a login",
    "login byte by byte",
    "login that never moves on",
    "login text without end",
    "login of absurd length",
    "garbage after login",
    "PDU of absurd length",
    "flood of pings",
    "likely PDUs",
    "nothing after login",
    "data byte by byte",
];
/// A connection is given up after this time: longer than the initiator can wait.
const LIFE: Duration = Duration::from_secs(4);

/// The first byte that the initiator sends is not under its control, so the kind follows the order of arrival.
pub(crate) async fn serve(listener: TcpListener, seed: u64) {
    let mut connections = JoinSet::new();
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors for a moment.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let dice = Dice::new(!seed, number);
        connections.spawn_local(async move {
            // However it ends, it is the initiator that is tested.
            let _ = timeout(LIFE, play(stream, dice)).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The kind of the connection that is accepted as this one.
pub(crate) fn kind(seed: u64, number: u64) -> usize {
    Dice::new(!seed, number).below(KINDS.len() as u64) as usize
}

async fn play(stream: TcpStream, mut dice: Dice) -> std::io::Result<()> {
    let mut peer = Raw::new(stream);
    match dice.below(KINDS.len() as u64) {
        0 => return Ok(()),
        1 => return peer.drain().await,
        2 => {
            let len = dice.below(20_000) as usize;
            peer.send(&dice.bytes(len)).await?;
        }
        3 => {
            let request = peer.login_request().await?;
            let bytes = encode(&response(&request, b"AuthMethod=None\0"));
            return peer.trickle(&bytes).await;
        }
        4 => loop {
            let request = peer.login_request().await?;
            peer.send(&encode(&response(&request, b""))).await?;
        },
        5 => loop {
            let request = peer.login_request().await?;
            let Pdu::LoginResponse(mut endless) = response(&request, &[b'x'; 8000]) else {
                return Ok(());
            };
            endless.continue_ = true;
            peer.send(&encode(&Pdu::LoginResponse(endless))).await?;
        },
        6 => {
            let request = peer.login_request().await?;
            let mut bytes = encode(&response(&request, b""));
            bytes[4..8].copy_from_slice(&[dice.next() as u8, 0xff, 0xff, 0xff]);
            peer.send(&bytes).await?;
            return peer.flood(&[0; 65_536]).await;
        }
        7 => {
            peer.log_in().await?;
            let len = 1 + dice.below(100_000) as usize;
            peer.send(&dice.bytes(len)).await?;
        }
        8 => {
            peer.log_in().await?;
            let mut header = [0; BHS_LEN];
            header[0] = [0x20, 0x21, 0x25, 0x26, 0x32, 0x3f][dice.below(6) as usize];
            header[1] = 0x80;
            header[4..8].copy_from_slice(&[dice.next() as u8, 0xff, 0xff, 0xff]);
            peer.send(&header).await?;
            return peer.flood(&[0; 65_536]).await;
        }
        9 => {
            peer.log_in().await?;
            let ping = Pdu::NopIn(NopIn {
                lun: Lun::default(),
                itt: Itt::NONE,
                ttt: Ttt(1),
                sn: peer.numbers(),
                data: Payload::new(),
            });
            return peer.flood(&encode(&ping).repeat(500)).await;
        }
        10 => {
            peer.log_in().await?;
            return peer.likely(&mut dice).await;
        }
        11 => {
            peer.log_in().await?;
            return peer.drain().await;
        }
        _ => {
            peer.log_in().await?;
            let itt = peer.command().await?;
            // Every byte is a sign of life, and none of them finishes anything.
            let data = Pdu::DataIn(DataIn {
                final_: false,
                acknowledge: false,
                status: None,
                residual: Residual::None,
                lun: Lun::default(),
                itt,
                ttt: Ttt::NONE,
                sn: peer.numbers(),
                data_sn: 0,
                buffer_offset_bytes: 0,
                data: Payload::from(vec![0; 512]),
            });
            return peer.trickle(&encode(&data)).await;
        }
    }
    peer.drain().await
}

fn encode(pdu: &Pdu) -> Vec<u8> {
    let mut queue = SendQueue::new();
    pdu.emit(&mut queue, Digests::NONE);
    queue.to_vec()
}

fn response(to: &LoginRequest, text: &[u8]) -> Pdu {
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
        sn: TargetSn {
            stat_sn: StatSn(to.exp_stat_sn.0),
            exp_cmd_sn: to.cmd_sn,
            max_cmd_sn: to.cmd_sn,
        },
        status_class: 0,
        status_detail: 0,
        data: Payload::from(text.to_vec()),
    })
}

struct Anyone;

impl Directory for Anyone {
    fn admit(&mut self, _: &Identity) -> Admission {
        Admission::Admit {
            auth: TargetAuth::None,
            offer: Offer::default(),
            alias: None,
        }
    }

    fn open(&mut self, _: &Identity, _: &Negotiated) -> Result<SessionGrant, LoginStatus> {
        Ok(SessionGrant {
            tsih: Tsih(1),
            window: None,
        })
    }
}

struct Raw {
    stream: TcpStream,
    receive: ReceiveBuffer,
    decoder: Decoder,
    stat_sn: u32,
    exp_cmd_sn: u32,
}

impl Raw {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            receive: ReceiveBuffer::new(),
            decoder: Decoder::default(),
            stat_sn: 1,
            exp_cmd_sn: 1,
        }
    }

    fn numbers(&self) -> TargetSn {
        TargetSn {
            stat_sn: StatSn(self.stat_sn),
            exp_cmd_sn: CmdSn(self.exp_cmd_sn),
            max_cmd_sn: CmdSn(self.exp_cmd_sn.wrapping_add(31)),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads until the other end is gone.
    async fn drain(&mut self) -> std::io::Result<()> {
        let mut scrap = [0; 4096];
        while self.stream.read(&mut scrap).await? > 0 {}
        Ok(())
    }

    /// Sends this again and again, and reads nothing.
    async fn flood(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        loop {
            self.send(bytes).await?;
        }
    }

    async fn trickle(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for byte in bytes.iter().cycle() {
            self.send(&[*byte]).await?;
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn next(&mut self) -> std::io::Result<Pdu> {
        loop {
            let broken = |_| std::io::ErrorKind::InvalidData;
            if let Some(frame) = self.decoder.next(&mut self.receive).map_err(broken)? {
                return Ok(Pdu::parse(frame).map_err(broken)?);
            }
            if self.stream.read_buf(self.receive.room()).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn login_request(&mut self) -> std::io::Result<LoginRequest> {
        match self.next().await? {
            Pdu::LoginRequest(request) => Ok(request),
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    async fn command(&mut self) -> std::io::Result<Itt> {
        loop {
            if let Pdu::ScsiCommand(pdu) = self.next().await? {
                self.exp_cmd_sn = pdu.cmd_sn.next().0;
                return Ok(pdu.itt);
            }
        }
    }

    async fn log_in(&mut self) -> std::io::Result<()> {
        let mut login = TargetLogin::new(TargetLoginConfig::default());
        loop {
            let request = self.login_request().await?;
            match login.on_request(&request, &mut Anyone) {
                TargetStep::Respond(response) => {
                    self.send(&encode(&Pdu::LoginResponse(response))).await?;
                }
                TargetStep::Established(response, established) => {
                    self.send(&encode(&Pdu::LoginResponse(response))).await?;
                    let digests = Digests {
                        header: established.negotiated.header_digest,
                        data: established.negotiated.data_digest,
                    };
                    self.decoder.configure(digests, 0xff_ffff);
                    self.stat_sn = established.stat_sn.0;
                    self.exp_cmd_sn = established.exp_cmd_sn.0;
                    return Ok(());
                }
                TargetStep::Refused(..) => return Ok(()),
            }
        }
    }

    /// PDUs with the opcodes, tags and numbers of a target, and the rest at random.
    async fn likely(&mut self, dice: &mut Dice) -> std::io::Result<()> {
        let mut itts = vec![self.command().await?];
        for _ in 0..50 {
            let mut bhs: Vec<u8> = dice.bytes(BHS_LEN);
            bhs[0] = [0x20, 0x21, 0x22, 0x24, 0x25, 0x31, 0x32, 0x3f][dice.below(8) as usize];
            let len = dice.below(600) as usize;
            bhs[4] = 0;
            bhs[5..8].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
            if dice.below(4) > 0 {
                let itt = itts[dice.below(itts.len() as u64) as usize];
                bhs[16..20].copy_from_slice(&itt.0.to_be_bytes());
            }
            bhs[24..28].copy_from_slice(&self.stat_sn.to_be_bytes());
            bhs[28..32].copy_from_slice(&self.exp_cmd_sn.to_be_bytes());
            bhs[32..36].copy_from_slice(&(self.exp_cmd_sn + 31).to_be_bytes());
            self.stat_sn = self.stat_sn.wrapping_add(dice.below(2) as u32);
            bhs.extend(dice.bytes(len.next_multiple_of(4)));
            self.send(&bhs).await?;
            if let Ok(more) = timeout(Duration::from_millis(2), self.command()).await {
                itts.push(more?);
            }
        }
        self.drain().await
    }
}
