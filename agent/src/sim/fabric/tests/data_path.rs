//! What initiators meet at the portals.

use std::future::poll_fn;
use std::net::SocketAddr;

use berth_api::client::Client as Node;
use berth_api::types::{AttachRequest, IscsiSource, Source};
use berth_iobuf::Payload;
use berth_iscsi::error::Error;
use berth_iscsi::login::{ChapConfig, InitiatorAuth, LoginConfig, MutualChap, Secret, SessionKind};
use berth_iscsi::name::{Host, IscsiName, Portal};
use berth_iscsi::net::{ConnectError, ConnectOptions, Connected, TcpNetwork, connect, discover};
use berth_iscsi::types::Isid;
use bytes::BytesMut;

use super::*;
use crate::app::Daemon;
use crate::config::{Config, KernelDevices};
use crate::nbd::client::{Connection, Wishes};
use crate::nbd::uri::Uri;

fn portal(address: SocketAddr) -> Portal {
    Portal {
        host: Host::Ip(address.ip()),
        port: address.port(),
    }
}

fn login(initiator: &str, session: SessionKind, number: u16) -> LoginConfig {
    let initiator = IscsiName::parse(initiator).unwrap();
    LoginConfig::new(initiator, session, Isid::random([1, 2, 3], number))
}

fn normal(target: &Value) -> SessionKind {
    SessionKind::Normal {
        target_name: IscsiName::parse(target["access"]["iqn"].as_str().unwrap()).unwrap(),
    }
}

/// Names of targets that the initiator sees, with the number of their addresses.
async fn seen(rig: &Rig, initiator: &str) -> Vec<(String, usize)> {
    let portal = portal(rig.fabric.portals()[0]);
    let config = login(initiator, SessionKind::Discovery, 9);
    let found = discover(&TcpNetwork, &portal, config, &ConnectOptions::default())
        .await
        .unwrap();
    let targets = found.targets.iter();
    targets
        .map(|target| (target.name.as_str().to_owned(), target.addresses.len()))
        .collect()
}

async fn log_in(rig: &Rig, number: usize, config: LoginConfig) -> Result<Connected, ConnectError> {
    let portal = portal(rig.fabric.portals()[number]);
    connect(&TcpNetwork, &[portal], config, &ConnectOptions::default()).await
}

/// Waits until the other side closes the connection.
async fn closed(mut connected: Connected) {
    let ended = poll_fn(|cx| {
        let mut bytes = BytesMut::with_capacity(4096);
        loop {
            match connected.stream.poll_read(cx, &mut bytes) {
                std::task::Poll::Ready(Ok(0) | Err(_)) => return std::task::Poll::Ready(()),
                std::task::Poll::Ready(Ok(_)) => bytes.clear(),
                std::task::Poll::Pending => return std::task::Poll::Pending,
            }
        }
    });
    tokio::time::timeout(DEADLINE, ended)
        .await
        .expect("the session ends");
}

fn refused(result: Result<Connected, ConnectError>) -> bool {
    result.is_err_and(|error| matches!(error.error, Error::LoginRejected(_)))
}

#[tokio::test]
async fn a_target_is_hidden_until_it_is_granted_and_revoking_ends_the_session() {
    let rig = Rig::new();
    let instance = rig.client.volume("kube-pv-1");
    let target = storage(&instance);
    assert_eq!(target["op_state"], "available");
    let stranger = "iqn.2026-11.example:stranger";
    assert!(seen(&rig, NODE).await.is_empty());
    assert!(refused(
        log_in(&rig, 0, login(NODE, normal(target), 0)).await
    ));

    rig.client.grant("kube-pv-1", NODE);
    let iqn = target["access"]["iqn"].as_str().unwrap().to_owned();
    assert_eq!(seen(&rig, NODE).await, [(iqn, 2)]);
    assert!(seen(&rig, stranger).await.is_empty());
    assert!(refused(
        log_in(&rig, 1, login(stranger, normal(target), 0)).await
    ));
    let first = log_in(&rig, 0, login(NODE, normal(target), 0))
        .await
        .unwrap();
    let second = log_in(&rig, 1, login(NODE, normal(target), 1))
        .await
        .unwrap();
    let now = rig.client.get(path(target));
    assert_eq!(now["active_initiators"], json!([NODE]));

    // Offline needs force while somebody is logged in.
    let (status, name, _) =
        rig.client
            .refused("PUT", path(&instance), json!({"admin_state": "offline"}));
    assert_eq!((status, name.as_str()), (400, "InvalidRequestError"));

    let acl = format!("{}/acl_policy", path(target));
    rig.client.put(&acl, json!({"initiators": []}));
    closed(first).await;
    closed(second).await;
    assert!(seen(&rig, NODE).await.is_empty());
    assert!(refused(
        log_in(&rig, 0, login(NODE, normal(target), 0)).await
    ));
    let now = rig.client.get(path(target));
    assert_eq!(now["active_initiators"], json!([]));
}

#[tokio::test]
async fn groups_grant_and_revoke_too() {
    let rig = Rig::new();
    let instance = rig.client.volume("kube-pv-1");
    let target = storage(&instance);
    let initiator = format!("/initiators/{NODE}");
    rig.client
        .post("/initiators", json!({"id": NODE, "name": "node-1"}));
    rig.client.post(
        "/initiator_groups",
        json!({"name": "rack-1", "members": []}),
    );
    let acl = format!("{}/acl_policy", path(target));
    let groups = json!({"initiator_groups": [{"path": "/initiator_groups/rack-1"}]});
    rig.client.put(&acl, groups);
    assert!(refused(
        log_in(&rig, 0, login(NODE, normal(target), 0)).await
    ));
    let members = "/initiator_groups/rack-1/members";
    rig.client
        .put(members, json!({"op": "add", "path": initiator}));
    let session = log_in(&rig, 0, login(NODE, normal(target), 0))
        .await
        .unwrap();
    let busy = rig.client.refused("DELETE", &initiator, Value::Null);
    assert_eq!(busy.0, 400);
    rig.client
        .put(members, json!({"op": "remove", "path": initiator}));
    closed(session).await;
}

#[tokio::test]
async fn chap_is_asked_for_in_both_directions() {
    let rig = Rig::new();
    let instance = rig.client.volume("kube-pv-1");
    let target = storage(&instance);
    rig.client.grant("kube-pv-1", NODE);
    let auth = format!("{}/auth", path(target));
    let body = json!({
        "type": "mchap", "target_user_name": "node-user", "target_pswd": "node-secret-1",
        "initiator_user_name": "fabric-user", "initiator_pswd": "fabric-secret",
    });
    let shown = rig.client.put(&auth, body);
    assert_eq!(shown["target_pswd"], "(hidden)");
    assert!(refused(
        log_in(&rig, 0, login(NODE, normal(target), 0)).await
    ));
    let chap = |secret: &str, mutual: &str| {
        let mut config = login(NODE, normal(target), 0);
        config.auth = InitiatorAuth::Chap(ChapConfig {
            mutual: Some(MutualChap {
                user: Some("fabric-user".to_owned()),
                secret: Secret::new(mutual.as_bytes().to_vec()),
            }),
            ..ChapConfig::new(
                "node-user".to_owned(),
                Secret::new(secret.as_bytes().to_vec()),
            )
        });
        config
    };
    let wrong = chap("node-secret-2", "fabric-secret");
    assert!(log_in(&rig, 0, wrong).await.is_err());
    let impostor = chap("node-secret-1", "another-secret");
    assert!(log_in(&rig, 0, impostor).await.is_err());
    let right = chap("node-secret-1", "fabric-secret");
    log_in(&rig, 0, right).await.unwrap();
    // No password is told again or kept in the log.
    let told = rig.client.get(path(&instance)).to_string();
    let logged = format!("{:?}", rig.fabric.requests());
    for secret in ["node-secret", "fabric-secret"] {
        assert!(!told.contains(secret) && !logged.contains(secret));
    }
}

/// A daemon that attaches volumes of the fabric.
pub(super) struct NodeDaemon {
    pub(super) daemon: Daemon,
    api: Node,
    _dir: TempDir,
}

impl NodeDaemon {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.node.state_dir = dir.path().join("state");
        config.node.runtime_dir = dir.path().to_owned();
        config.node.initiator_name = Some(NODE.to_owned());
        config.nbd.kernel = KernelDevices::Never;
        let daemon = Daemon::start(&config).await.unwrap();
        let api = Node::unix(daemon.api_socket());
        Self {
            daemon,
            api,
            _dir: dir,
        }
    }

    /// Attaches a LUN over both portals.
    pub(super) async fn attach(
        &self,
        name: &str,
        rig: &Rig,
        target: &Value,
        lun: u16,
    ) -> Connection {
        let portals = rig.fabric.portals();
        let source = Source::Iscsi(IscsiSource {
            portals: portals
                .iter()
                .map(|portal| portal.to_string().parse().unwrap())
                .collect(),
            target: target["access"]["iqn"].as_str().unwrap().parse().unwrap(),
            lun,
            auth: None,
        });
        let attached = self
            .api
            .attach(&name.parse().unwrap(), &AttachRequest::new(source))
            .await
            .unwrap()
            .attachment;
        let volume = &target["volumes"][usize::from(lun)];
        let identity = attached.identity.unwrap();
        assert_eq!(identity.serial.as_deref(), volume["uuid"].as_str());
        assert_eq!(
            attached.size_bytes,
            volume["size"].as_u64().map(|gib| gib << 30)
        );
        let uri = Uri::unix(self.daemon.nbd_socket(), name);
        Connection::connect(&uri, Wishes::default()).await.unwrap()
    }

    pub(super) async fn detach(&self, name: &str) {
        self.api
            .detach(&name.parse().unwrap(), false)
            .await
            .unwrap();
    }
}

pub(super) async fn write(disk: &mut Connection, offset: u64, byte: u8) {
    let data = Payload::from(vec![byte; 8192]);
    disk.write(offset, data, false).await.unwrap();
    disk.flush().await.unwrap();
}

async fn read(disk: &mut Connection, offset: u64) -> u8 {
    let bytes = disk.read(offset, 8192).await.unwrap().to_bytes();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_snapshots_clones_restore_and_resize_go_together() {
    let rig = Rig::new();
    let host = NodeDaemon::start().await;
    let client = &rig.client;
    let body = json!({"name": "db-1", "app_template": {"path": "/app_templates/database"}});
    let instance = client.post("/app_instances", body);
    client.grant("db-1", NODE);
    let target = storage(&instance).clone();
    let volume = path(&target["volumes"][0]).to_owned();
    let mut data = host.attach("data", &rig, &target, 0).await;
    let mut log = host.attach("log", &rig, &target, 1).await;
    let far = 50 << 30;
    write(&mut data, 0, 1).await;
    write(&mut data, far, 2).await;
    write(&mut log, 0, 3).await;

    let snapshot = client.post(&format!("{volume}/snapshots"), json!({}));
    let whole = client.post(&format!("{}/snapshots", path(&instance)), json!({}));
    write(&mut data, 0, 9).await;
    write(&mut log, 0, 9).await;

    // A clone of the snapshot has the old bytes and is on its own.
    let source = json!({"name": "clone-1", "clone_snapshot_src": {"path": path(&snapshot)}});
    let clone = client.post("/app_instances", source);
    client.grant("clone-1", NODE);
    let cloned = storage(&clone).clone();
    assert_eq!(
        (&cloned["name"], &cloned["volumes"][0]["name"]),
        (&json!("storage-1"), &json!("volume-1"))
    );
    let mut copy = host.attach("copy", &rig, &cloned, 0).await;
    assert_eq!(
        (read(&mut copy, 0).await, read(&mut copy, far).await),
        (1, 2)
    );
    write(&mut copy, 0, 7).await;
    assert_eq!(read(&mut data, 0).await, 9);

    // The volume grows under the initiator.
    let grown = client.put(path(&cloned["volumes"][0]), json!({"size": 120}));
    assert_eq!(grown["size"], 120);
    write(&mut copy, 0, 8).await;
    let name = "copy".parse().unwrap();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while host.api.attachment(&name).await.unwrap().size_bytes != Some(120 << 30) {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the new size is not seen"
        );
        read(&mut copy, 0).await;
    }

    // Back to the snapshot of both volumes; that needs them offline.
    let restore = json!({"restore_point": whole["utc_ts"]});
    assert_eq!(
        client.refused("PUT", path(&instance), restore.clone()).0,
        400
    );
    drop((data, log));
    host.detach("data").await;
    host.detach("log").await;
    client.put(
        path(&instance),
        json!({"admin_state": "offline", "force": true}),
    );
    client.put(path(&instance), restore);
    client.put(path(&instance), json!({"admin_state": "online"}));
    let mut data = host.attach("data", &rig, &target, 0).await;
    let mut log = host.attach("log", &rig, &target, 1).await;
    assert_eq!((read(&mut data, 0).await, read(&mut log, 0).await), (1, 3));
    assert_eq!(read(&mut data, 1 << 20).await, 0);
    drop((data, log, copy));
    for name in ["data", "log", "copy"] {
        host.detach(name).await;
    }

    // Everything is there after a restart: bytes, names, access lists.
    let rig = rig.restart();
    let mut copy = host
        .attach(
            "copy",
            &rig,
            &storage(&rig.client.get(path(&clone))).clone(),
            0,
        )
        .await;
    assert_eq!(
        (read(&mut copy, 0).await, read(&mut copy, far).await),
        (8, 2)
    );
    drop(copy);
    host.detach("copy").await;
    host.daemon.stop().await;

    // What is deleted leaves no file behind.
    for instance in [&instance, &clone] {
        rig.client
            .put(path(instance), json!({"admin_state": "offline"}));
        rig.client.delete(path(instance));
    }
    let left = std::fs::read_dir(rig.dir.path().join("data")).unwrap();
    assert_eq!(left.count(), 0);
}

/// A lower bound is sure, however slow the machine is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_limit_and_change_while_attached() {
    let rig = Rig::with(|options| options.qos_burst = Duration::ZERO);
    let host = NodeDaemon::start().await;
    let instance = rig.client.volume("slow-1");
    rig.client.grant("slow-1", NODE);
    let target = storage(&instance).clone();
    let policy = format!("{}/performance_policy", path(&target["volumes"][0]));
    let mut disk = host.attach("slow", &rig, &target, 0).await;
    let attached = rig.client.post(&policy, json!({"write_iops_max": 20}));
    assert_eq!(attached["write_iops_max"], 20);
    let begun = std::time::Instant::now();
    for byte in 0..5 {
        write(&mut disk, 0, byte).await;
    }
    // The first is free, four wait for 50 ms each.
    assert!(begun.elapsed() >= Duration::from_millis(200));

    // 16 KiB/s, and two reads of 8 KiB behind the first one.
    rig.client.put(&policy, json!({"read_bandwidth_max": 16}));
    let begun = std::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(read(&mut disk, 0).await, 4);
    }
    assert!(begun.elapsed() >= Duration::from_millis(1000));

    // Minutes' worth is asked for, and then the limits go.
    rig.client.delete(&policy);
    rig.client.post(&policy, json!({"read_bandwidth_max": 1}));
    assert_eq!(disk.read(0, 256 << 10).await.unwrap().len(), 256 << 10);
    let (second, gone) = tokio::join!(tokio::time::timeout(DEADLINE, disk.read(0, 8192)), async {
        let limits = rig.client.get(&policy);
        rig.client.delete(&policy);
        limits
    });
    assert_eq!(gone["read_bandwidth_max"], 1);
    assert_eq!(second.expect("the limit is gone").unwrap().len(), 8192);
    drop(disk);
    host.detach("slow").await;
    host.daemon.stop().await;
}
