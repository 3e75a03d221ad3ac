//! The wire of the CSI driver: field numbers, what is shown of secrets, the sockets, and whom HTTP/2 lets in.
#![allow(clippy::unwrap_used, reason = "this is all test code")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_api::client::Client;
use berth_plugin::csi::host::RealHost;
use berth_plugin::csi::options::Options;
use berth_plugin::csi::proto::registration::registration_client::RegistrationClient;
use berth_plugin::csi::proto::registration::{InfoRequest, RegistrationStatus};
use berth_plugin::csi::proto::v1::identity_client::IdentityClient;
use berth_plugin::csi::proto::v1::volume_capability::{
    AccessMode, AccessType, MountVolume, access_mode,
};
use berth_plugin::csi::proto::v1::{
    CapacityRange, ControllerPublishVolumeResponse, CreateVolumeRequest, GetPluginInfoRequest,
    NodePublishVolumeRequest, NodeStageVolumeRequest, ProbeRequest, Snapshot, VolumeCapability,
};
use berth_plugin::csi::{Driver, server};
use berth_plugin::limits::Limits;
use clap::Parser as _;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// For whatever has to happen at once.
const DEADLINE: Duration = Duration::from_secs(20);

fn one(key: &str, value: &str) -> HashMap<String, String> {
    HashMap::from([(key.to_owned(), value.to_owned())])
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode {
            mode: access_mode::Mode::SingleNodeMultiWriter.into(),
        }),
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: "x".to_owned(),
            mount_flags: vec!["f".to_owned()],
            volume_mount_group: "g".to_owned(),
        })),
    }
}

/// The numbers of the standard, written down a second time.
#[test]
fn field_numbers() {
    // 2: mount {1: "x", 2: "f", 3: "g"}, 3: {1: 7}
    let mut wire = vec![0x12, 9, 0x0a, 1, b'x', 0x12, 1, b'f', 0x1a, 1, b'g'];
    wire.extend([0x1a, 2, 0x08, 7]);
    assert_eq!(sorted(&capability().encode_to_vec()), sorted(&wire));
    assert_eq!(VolumeCapability::decode(&wire[..]).unwrap(), capability());

    let entry = |number: u8| vec![number << 3 | 2, 6, 0x0a, 1, b'k', 0x12, 1, b'v'];
    let text = |number: u8, value: &str| {
        let mut field = vec![number << 3 | 2, value.len() as u8];
        field.extend(value.bytes());
        field
    };
    let stage = NodeStageVolumeRequest {
        volume_id: "id".to_owned(),
        publish_context: one("k", "v"),
        staging_target_path: "/s".to_owned(),
        volume_capability: None,
        secrets: one("k", "v"),
        volume_context: one("k", "v"),
    };
    let wire = [text(1, "id"), entry(2), text(3, "/s"), entry(5), entry(6)].concat();
    assert_eq!(stage.encode_to_vec(), wire);
    let publish = NodePublishVolumeRequest {
        volume_id: "id".to_owned(),
        publish_context: one("k", "v"),
        staging_target_path: "/s".to_owned(),
        target_path: "/t".to_owned(),
        volume_capability: None,
        readonly: true,
        secrets: one("k", "v"),
        volume_context: one("k", "v"),
    };
    let wire = [
        text(1, "id"),
        entry(2),
        text(3, "/s"),
        text(4, "/t"),
        vec![6 << 3, 1],
        entry(7),
        entry(8),
    ]
    .concat();
    assert_eq!(publish.encode_to_vec(), wire);
    let create = CreateVolumeRequest {
        name: "n".to_owned(),
        capacity_range: Some(CapacityRange {
            required_bytes: 1,
            limit_bytes: 2,
        }),
        parameters: one("k", "v"),
        secrets: one("k", "v"),
        mutable_parameters: one("k", "v"),
        ..CreateVolumeRequest::default()
    };
    let wire = [
        text(1, "n"),
        vec![0x12, 4, 0x08, 1, 0x10, 2],
        entry(4),
        entry(5),
        entry(8),
    ]
    .concat();
    assert_eq!(create.encode_to_vec(), wire);
    let snapshot = Snapshot {
        size_bytes: 1,
        snapshot_id: "s".to_owned(),
        source_volume_id: "v".to_owned(),
        creation_time: Some(prost_types::Timestamp {
            seconds: 1,
            nanos: 0,
        }),
        ready_to_use: true,
        group_snapshot_id: "g".to_owned(),
    };
    let wire = [
        vec![0x08, 1],
        text(2, "s"),
        text(3, "v"),
        vec![0x22, 2, 0x08, 1],
        vec![0x28, 1],
        text(6, "g"),
    ]
    .concat();
    assert_eq!(snapshot.encode_to_vec(), wire);
    let published = ControllerPublishVolumeResponse {
        publish_context: one("k", "v"),
    };
    assert_eq!(published.encode_to_vec(), entry(1));
}

/// The bytes of a message whose fields may come in any order.
fn sorted(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.sort_unstable();
    bytes
}

#[test]
fn secrets_are_not_shown() {
    let create = CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        secrets: one("chapSecret", "hunter2"),
        volume_capabilities: vec![VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                mount_flags: vec!["password=hunter2".to_owned()],
                ..MountVolume::default()
            })),
            access_mode: None,
        }],
        ..CreateVolumeRequest::default()
    };
    let stage = NodeStageVolumeRequest {
        secrets: one("chapSecret", "hunter2"),
        ..NodeStageVolumeRequest::default()
    };
    let shown = format!("{create:?} {create:#?} {stage:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(
        shown.contains("pvc-1") && shown.contains("1 hidden"),
        "{shown}"
    );
}

struct Running {
    dir: tempfile::TempDir,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let options = Options::parse_from([
            "berth-csi",
            "--csi-endpoint",
            &format!("unix://{}", at("csi.sock")),
            "--socket",
            &at("api.sock"),
            "--run-dir",
            &at("run"),
            "--registration-socket",
            &at("reg.sock"),
            "--kubelet-endpoint",
            "/var/lib/kubelet/plugins/csi.berth.io/csi.sock",
        ]);
        let driver = Driver::new(options.settings().unwrap(), Client::unix(&options.socket));
        let (stop, stopping) = watch::channel(false);
        let host = Arc::new(RealHost::new(Limits::default()));
        let task = tokio::spawn(server::serve(Arc::new(driver), host, stopping));
        let running = Self { dir, stop, task };
        for socket in ["csi.sock", "reg.sock"] {
            let path = running.path(socket);
            tokio::time::timeout(DEADLINE, async {
                while UnixStream::connect(&path).await.is_err() {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
        }
        running
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn channel(&self, socket: &str) -> Channel {
        let path = self.path(socket);
        let connect = Connect(path);
        Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .unwrap()
    }
}

#[derive(Clone)]
struct Connect(PathBuf);

impl tower_service::Service<tonic::transport::Uri> for Connect {
    type Response = TokioIo<UnixStream>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::transport::Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}

#[tokio::test]
async fn a_driver_without_a_daemon_says_that_it_is_not_ready() {
    let running = Running::start().await;
    let mut identity = IdentityClient::new(running.channel("csi.sock").await);
    let info = identity
        .get_plugin_info(GetPluginInfoRequest {})
        .await
        .unwrap();
    assert_eq!(info.get_ref().name, "csi.berth.io");
    let probe = identity.probe(ProbeRequest {}).await.unwrap();
    assert_eq!(probe.get_ref().ready, Some(false));
    drop(identity);
    running.stop.send_replace(true);
    tokio::time::timeout(DEADLINE, running.task)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    for socket in ["csi.sock", "reg.sock"] {
        assert!(!running.dir.path().join(socket).exists(), "{socket}");
    }
}

/// What kubelet does with a new socket in its folder; and a driver that it refuses ends, so that it is started again.
#[tokio::test]
async fn kubelet_is_told_of_the_driver() {
    let running = Running::start().await;
    let mut registration = RegistrationClient::new(running.channel("reg.sock").await);
    let info = registration
        .get_info(InfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.r#type.as_str(), info.name.as_str()),
        ("CSIPlugin", "csi.berth.io")
    );
    assert_eq!(
        info.endpoint,
        "/var/lib/kubelet/plugins/csi.berth.io/csi.sock"
    );
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let told = |plugin_registered| RegistrationStatus {
        plugin_registered,
        error: "no".to_owned(),
    };
    registration
        .notify_registration_status(told(true))
        .await
        .unwrap();
    // The answer may be lost with the end of the driver.
    let _ = registration.notify_registration_status(told(false)).await;
    let ended = tokio::time::timeout(DEADLINE, running.task)
        .await
        .unwrap()
        .unwrap();
    assert!(ended.is_err());
}

/// HTTP/2 wants a host as `:authority`. kubelet sends `localhost` since 1.26 and the path of the socket before: those are not let in,
/// which is why 1.26 is the oldest kubelet that is supported.
#[tokio::test]
async fn a_path_as_authority_is_refused() {
    let running = Running::start().await;
    let socket = running.path("csi.sock");
    assert_eq!(first_answer(&socket, "localhost").await, Answer::Headers);
    let path = "/var/lib/kubelet/plugins/csi.berth.io/csi.sock";
    assert_eq!(first_answer(&socket, path).await, Answer::Reset(1));
}

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// The stream was answered.
    Headers,
    /// It was reset, with this code (RFC 9113 7: 1 is PROTOCOL_ERROR).
    Reset(u32),
}

/// Asks for `Identity/Probe` with frames made by hand (RFC 9113), since no client here can say such an authority.
async fn first_answer(socket: &Path, authority: &str) -> Answer {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/csi.v1.Identity/Probe"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        // Literal field without indexing, new name (RFC 7541 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.bytes());
        }
    }
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    };
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 0x4, 1, &block));
    bytes.extend(frame(0, 0x1, 1, &[0, 0, 0, 0, 0]));
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let answer = async {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.unwrap();
            let len = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            let mut payload = vec![0; len];
            stream.read_exact(&mut payload).await.unwrap();
            let stream_id = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
            match (header[3], stream_id) {
                (1, 1) => return Answer::Headers,
                (3, 1) => {
                    let code = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    return Answer::Reset(code);
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(DEADLINE, answer).await.unwrap()
}
