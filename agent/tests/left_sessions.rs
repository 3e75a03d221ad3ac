//! What a detach by force leaves on a target that cannot be reached, and the next attach of the same LUN.
#![cfg(feature = "sim")]
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_agent::app::Daemon;
use berth_agent::config::Config;
use berth_agent::nbd::client::{Connection, Wishes};
use berth_agent::nbd::uri::Uri;
use berth_agent::sim::portal::{SimPortal, SimVolume};
use berth_api::AttachmentName;
use berth_api::client::Client;
use berth_api::types::{AttachRequest, Attachment, IscsiSource, Source};
use berth_iobuf::Payload;
use berth_iscsi::target::faults::{CommandFault, FaultPlan, Filter, Rule};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const TARGET: &str = "iqn.2026-11.io.berth.test:unit";
/// Longer than anything here takes; a hang ends here and not with CI.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at what another task or thread does.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
const WRITES: [u8; 2] = [0x2a, 0x8a];

fn name(text: &str) -> AttachmentName {
    text.parse().expect("a name")
}

fn block(fill: u8) -> Payload {
    Payload::from(vec![fill; 512])
}

fn start_target() -> SimPortal {
    SimPortal::start(vec![SimVolume {
        target: TARGET.parse().expect("a name"),
        serial: "unit-one".to_owned(),
        size_bytes: 1 << 20,
        write_cache: false,
    }])
    .expect("the portal starts")
}

async fn start_daemon(dir: &Path) -> Daemon {
    let mut config = Config::default();
    config.node.state_dir = dir.join("state");
    config.node.runtime_dir = dir.to_owned();
    Daemon::start(&config).await.expect("the daemon starts")
}

async fn attach(daemon: &Daemon, name: &AttachmentName, portal: SocketAddr) -> Attachment {
    let request = AttachRequest::new(Source::Iscsi(IscsiSource {
        portals: vec![portal.to_string().parse().expect("a portal")],
        target: TARGET.parse().expect("a name"),
        lun: 0,
        auth: None,
    }));
    let attached = client_of(daemon).attach(name, &request).await;
    attached.expect("attaches").attachment
}

async fn open(daemon: &Daemon, name: &AttachmentName) -> Connection {
    let uri = Uri::unix(daemon.nbd_socket(), name.as_str());
    let connected = Connection::connect(&uri, Wishes::default()).await;
    connected.expect("the export is there")
}

/// A link whose target does not learn that it is cut: its ends of the connections stay open.
struct Link {
    at: SocketAddr,
    to: SocketAddr,
    kept: Arc<Mutex<Vec<TcpStream>>>,
    task: JoinHandle<()>,
}

impl Link {
    async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let kept = Arc::default();
        let task = tokio::spawn(forward(listener, to, Arc::clone(&kept)));
        Self { at, to, kept, task }
    }

    async fn cut(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    async fn heal(&mut self) {
        let listener = TcpListener::bind(self.at).await.expect("the same port");
        self.task = tokio::spawn(forward(listener, self.to, Arc::clone(&self.kept)));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries connections until it is dropped.
async fn forward(listener: TcpListener, to: SocketAddr, kept: Arc<Mutex<Vec<TcpStream>>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut from, _)) = listener.accept().await {
        let Ok(to) = TcpStream::connect(to).await else {
            continue;
        };
        let mut carried = KeptOpen(Some(to), Arc::clone(&kept));
        connections.spawn(async move {
            if let Some(to) = &mut carried.0 {
                let _ = tokio::io::copy_bidirectional(&mut from, to).await;
            }
            drop(carried.0.take()); // It ended by itself.
        });
    }
}

/// Puts the target's side aside when its task is aborted.
struct KeptOpen(Option<TcpStream>, Arc<Mutex<Vec<TcpStream>>>);

impl Drop for KeptOpen {
    fn drop(&mut self) {
        if let (Some(stream), Ok(mut kept)) = (self.0.take(), self.1.lock()) {
            kept.push(stream);
        }
    }
}

/// The next write is carried out when it is released, not before.
async fn hold_next_write(target: &SimPortal) {
    let held = target.handle().with(|portal, _| {
        let hold = |opcode| Rule::new(Filter::scsi(opcode), 1, CommandFault::HoldExecution);
        let ids: Vec<_> = portal.connections().collect();
        for id in ids {
            let plan = FaultPlan {
                commands: WRITES.map(hold).to_vec(),
                ..FaultPlan::default()
            };
            portal.set_faults(id, plan);
        }
    });
    held.await.expect("the portal runs");
}

/// Waits until a write is held.
async fn wait_for_held(target: &SimPortal) {
    loop {
        let acted = target.handle().with(|portal, _| {
            let ids: Vec<_> = portal.connections().collect();
            let counters = ids.iter().filter_map(|id| portal.counters(*id));
            counters.map(|counters| counters.faults).sum::<u64>()
        });
        if acted.await.expect("the portal runs") > 0 {
            return;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn release(target: &SimPortal) {
    let released = target.handle().with(|portal, now| {
        let ids: Vec<_> = portal.connections().collect();
        ids.into_iter().for_each(|id| portal.release(id, now));
    });
    released.await.expect("the portal runs");
}

/// Old bug: the next attach had a new ISID, so the session with the write under way lived on, and the write
/// landed over newer data.
async fn a_late_write_never_lands(restart: bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let target = start_target();
    let mut link = Link::new(target.address()).await;
    let mut daemon = start_daemon(dir.path()).await;
    let (one, two) = (name("one"), name("two"));
    let attached = attach(&daemon, &one, link.at).await;
    let mut old = open(&daemon, &one).await;
    old.write(0, block(1), false).await.expect("writes");
    hold_next_write(&target).await;
    let writing = tokio::spawn(async move { old.write(0, block(2), false).await });
    wait_for_held(&target).await;
    link.cut().await;
    let detached = client_of(&daemon).detach(&one, true).await;
    detached.expect("by force, at any time");
    let late = writing.await.expect("no panic");
    assert!(late.is_err(), "nobody knows what became of it");
    if restart {
        daemon.stop().await;
        daemon = start_daemon(dir.path()).await;
    }
    link.heal().await;
    let again = attach(&daemon, &two, link.at).await;
    let mut new = open(&daemon, &two).await;
    new.write(0, block(3), false).await.expect("writes");
    release(&target).await;
    let read = new.read(0, 512).await.expect("reads");
    assert_eq!(
        read.to_bytes(),
        block(3).to_bytes(),
        "the late write came back"
    );
    assert_eq!(isids(&again), isids(&attached));
    drop(new);
    // A detach in good order leaves nothing: the next one is a stranger to the target.
    client_of(&daemon)
        .detach(&two, true)
        .await
        .expect("detaches");
    let third = attach(&daemon, &one, link.at).await;
    assert_ne!(isids(&third), isids(&attached));
    daemon.stop().await;
}

fn client_of(daemon: &Daemon) -> Client {
    Client::unix(daemon.api_socket())
}

fn isids(attachment: &Attachment) -> Vec<String> {
    let sessions = attachment.sessions.iter();
    let isids: Vec<_> = sessions.map(|session| session.isid.clone()).collect();
    assert!(!isids.is_empty(), "an attachment has a session");
    isids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_a_forced_detach_left_never_lands_over_a_newer_one() {
    tokio::time::timeout(DEADLINE, a_late_write_never_lands(false))
        .await
        .expect("it hangs");
}

#[tokio::test(flavor = "multi_thread")]
async fn not_after_a_restart_of_the_daemon_either() {
    tokio::time::timeout(DEADLINE, a_late_write_never_lands(true))
        .await
        .expect("it hangs");
}
