//! Recovery, paths and fences as the API shows and changes them, with whole daemons in this process.
#![cfg(feature = "sim")]
#![allow(missing_docs)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use berth_agent::app::Daemon;
use berth_agent::config::{Config, KernelDevices};
use berth_agent::nbd::client::{Connection, Wishes};
use berth_agent::nbd::uri::Uri;
use berth_agent::sim::portal::{SimPortal, SimVolume};
use berth_api::client::{Client, ClientError};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentPatch, AttachmentState, EventKind, Fence, IscsiPatch,
    IscsiSource, PathState, RecoveryTimeout, Source, SourcePatch,
};
use berth_api::{AttachmentName, Code, Portal};
use berth_iobuf::Payload;
use berth_iscsi::target::ScsiExecutor as _;
use berth_iscsi::target::lu::LogicalUnit;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const TARGET: &str = "iqn.2026-11.io.berth.test:unit";
const SIZE: u64 = 1 << 20;
/// Longer than anything here takes; a hang ends here and not with CI.
const DEADLINE: Duration = Duration::from_secs(60);

/// A daemon with a directory of its own: a node.
struct Node {
    dir: tempfile::TempDir,
    daemon: Daemon,
    config: Config,
}

impl Node {
    async fn start(initiator: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path(), initiator);
        let daemon = Daemon::start(&config).await.expect("the daemon starts");
        Self {
            dir,
            daemon,
            config,
        }
    }

    async fn restart(self) -> Self {
        self.daemon.stop().await;
        let daemon = Daemon::start(&self.config).await.expect("starts again");
        Self { daemon, ..self }
    }

    async fn stop(self) {
        self.daemon.stop().await;
        drop(self.dir);
    }

    fn client(&self) -> Client {
        Client::unix(self.daemon.api_socket())
    }

    async fn open(&self) -> Connection {
        let uri = Uri::unix(self.daemon.nbd_socket(), name().as_str());
        Connection::connect(&uri, Wishes::default())
            .await
            .expect("the export is there")
    }

    async fn look(&self) -> Attachment {
        self.client()
            .attachment(&name())
            .await
            .expect("it is known")
    }

    /// Waits until the attachment is as wanted; every change of it is an event.
    async fn wait_for(&self, wanted: impl Fn(&Attachment) -> bool) -> Attachment {
        let mut events = self.client().events(Some(0), None).await.expect("events");
        loop {
            let now = self.look().await;
            if wanted(&now) {
                return now;
            }
            let event = events.next().await.expect("events go on");
            event.expect("the daemon runs");
        }
    }

    async fn change(&self, patch: AttachmentPatch) -> Attachment {
        let changed = self.client().change(&name(), &patch).await;
        changed.expect("can be changed")
    }
}

fn config(dir: &Path, initiator: &str) -> Config {
    let mut config = Config::default();
    config.node.initiator_name = Some(format!("iqn.2026-11.io.berth.test:{initiator}"));
    config.node.state_dir = dir.join("state");
    config.node.runtime_dir = dir.to_owned();
    // The machine's own devices are not for tests.
    config.nbd.kernel = KernelDevices::Never;
    config
}

fn name() -> AttachmentName {
    "vol-0".parse().expect("a name")
}

fn portal_of(address: SocketAddr) -> Portal {
    address.to_string().parse().expect("a portal")
}

fn start_target() -> SimPortal {
    SimPortal::start(vec![SimVolume {
        target: TARGET.parse().expect("a name"),
        serial: "unit-one".to_owned(),
        size_bytes: SIZE,
        write_cache: true,
    }])
    .expect("the portal starts")
}

fn request(portals: Vec<Portal>) -> AttachRequest {
    AttachRequest::new(Source::Iscsi(IscsiSource {
        portals,
        target: TARGET.parse().expect("a name"),
        lun: 0,
        auth: None,
    }))
}

fn portals(portals: &[&Portal]) -> AttachmentPatch {
    let portals = portals.iter().copied().cloned().collect();
    AttachmentPatch {
        source: Some(SourcePatch::Iscsi(IscsiPatch { portals })),
        ..AttachmentPatch::default()
    }
}

fn timeout(timeout: Option<RecoveryTimeout>) -> AttachmentPatch {
    AttachmentPatch {
        recovery_timeout_seconds: Some(timeout),
        ..AttachmentPatch::default()
    }
}

fn code(error: &ClientError) -> Code {
    error
        .code()
        .unwrap_or_else(|| panic!("not a problem document: {error}"))
}

fn paths(attachment: &Attachment) -> Vec<(String, PathState)> {
    let paths = attachment.paths.iter();
    paths
        .map(|path| (path.portal.to_string(), path.state))
        .collect()
}

async fn within<T>(body: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, body)
        .await
        .expect("it hangs")
}

/// A link to the target that can be cut and healed.
struct Link {
    at: SocketAddr,
    to: SocketAddr,
    task: JoinHandle<()>,
}

impl Link {
    async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = listener.local_addr().expect("an address");
        let task = tokio::spawn(forward(listener, to));
        Self { at, to, task }
    }

    async fn cut(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    async fn heal(&mut self) {
        let listener = TcpListener::bind(self.at).await.expect("the same port");
        self.task = tokio::spawn(forward(listener, self.to));
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries connections until it is dropped, and them with it.
async fn forward(listener: TcpListener, to: SocketAddr) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((mut from, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut to) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_come_and_go_while_io_goes_on_and_are_kept() {
    within(async {
        let target = start_target();
        let (first, second) = (
            Link::new(target.address()).await,
            Link::new(target.address()).await,
        );
        let (one, two) = (portal_of(first.at), portal_of(second.at));
        let node = Node::start("a").await;
        let wish = request(vec![one.clone()]);
        let attached = node.client().attach(&name(), &wish).await;
        attached.expect("attaches");
        let mut connection = node.open().await;
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let io = tokio::spawn(async move {
            let mut writes = 0_u64;
            while stopped.try_recv().is_err() {
                let data = Payload::from(vec![writes as u8; 512]);
                let offset = writes % (SIZE / 512) * 512;
                connection
                    .write(offset, data, false)
                    .await
                    .expect("written");
                writes += 1;
            }
            writes
        });

        let both = node.change(portals(&[&one, &two])).await;
        assert_eq!(both.paths.len(), 2);
        let up = |attachment: &Attachment, portal: &Portal| {
            paths(attachment).contains(&(portal.to_string(), PathState::Up))
        };
        let both = node.wait_for(|now| up(now, &one) && up(now, &two)).await;
        assert_eq!(both.sessions.len(), 2);
        assert_ne!(both.sessions[0].isid, both.sessions[1].isid);
        node.change(portals(&[&two])).await;
        let one_left = node.wait_for(|now| now.paths.len() == 1).await;
        assert_eq!(paths(&one_left), [(two.to_string(), PathState::Up)]);
        assert_eq!(one_left.state, AttachmentState::Attached);
        stop.send(()).expect("it still writes");
        assert!(io.await.expect("no write fails") > 0);

        let unknown = "other".parse().expect("a name");
        let error = node.client().change(&unknown, &portals(&[&one])).await;
        assert_eq!(code(&error.expect_err("not there")), Code::NotFound);
        let metrics = node.client().metrics().await.expect("metrics");
        let state =
            format!("berth_path_state{{volume=\"vol-0\",portal=\"{two}\",state=\"up\"}} 1\n");
        assert!(metrics.contains(&state), "{metrics}");

        // The first portal is forgotten, so its wish is another one now; and so it stays.
        let error = node.client().attach(&name(), &wish).await;
        let error = error.expect_err("another wish");
        assert_eq!(code(&error), Code::ConflictIncompatible);
        let node = node.restart().await;
        let again = node
            .wait_for(|now| now.state == AttachmentState::Attached)
            .await;
        assert_eq!(paths(&again), [(two.to_string(), PathState::Up)]);
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_is_told_and_ends_by_the_recovery_timeout_or_by_recovery() {
    within(async {
        let target = start_target();
        let mut link = Link::new(target.address()).await;
        let node = Node::start("a").await;
        let mut wish = request(vec![portal_of(link.at)]);
        wish.recovery_timeout_seconds = Some(RecoveryTimeout::Forever);
        node.client()
            .attach(&name(), &wish)
            .await
            .expect("attaches");
        let mut connection = node.open().await;
        link.cut().await;
        let waiting = node
            .wait_for(|now| now.state == AttachmentState::Recovering)
            .await;
        let reason = waiting.reason.expect("there is a reason");
        assert!(reason.retryable, "{reason:?}");
        let write = tokio::spawn(async move {
            let data = Payload::from(vec![1; 512]);
            let result = connection.write(0, data, false).await.map(drop);
            (connection, result)
        });
        node.wait_for(|now| paths(now)[0].1 == PathState::Down)
            .await;
        assert!(!write.is_finished(), "it waits for ever");

        let changed = node
            .change(timeout(Some(RecoveryTimeout::Seconds(0))))
            .await;
        let zero = RecoveryTimeout::Seconds(0);
        assert_eq!(changed.recovery_timeout_seconds, zero);
        let (mut connection, result) = write.await.expect("it ends");
        assert!(result.is_err(), "the recovery timeout is over");
        let over = |now: &Attachment| {
            let reason = now.reason.as_ref().map(|reason| reason.detail.as_str());
            reason.is_some_and(|detail| detail.contains("recovery timeout is over"))
        };
        node.wait_for(over).await;

        let changed = node.change(timeout(None)).await;
        assert_eq!(
            changed.recovery_timeout_seconds,
            RecoveryTimeout::default(),
            "as configured"
        );
        link.heal().await;
        node.wait_for(|now| now.state == AttachmentState::Attached)
            .await;
        let data = Payload::from(vec![2; 512]);
        connection.write(0, data, false).await.expect("it is back");
        let recovery = node.look().await.counters.recovery;
        assert!(recovery.sessions_lost >= 1, "{recovery:?}");
        assert!(recovery.sessions_reinstated >= 1, "{recovery:?}");
        assert!(recovery.stalls >= 1, "{recovery:?}");
        assert_eq!(recovery.requests_timed_out, 1, "{recovery:?}");

        let mut states = Vec::new();
        let mut events = node.client().past_events(None).await.expect("events");
        while let Ok(Some(event)) = events.next().await {
            match event.what.kind {
                EventKind::State => states.push(event.what.state.expect("a state").to_string()),
                EventKind::Path => states.push(event.what.message),
                _ => {}
            }
        }
        let told = states.join("\n");
        for wanted in ["recovering", "is down: ", "is up"] {
            assert!(told.contains(wanted), "{wanted}: {told}");
        }
        node.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_size_and_a_lost_cache_are_events() {
    within(async {
        let target = start_target();
        let node = Node::start("a").await;
        let wish = request(vec![portal_of(target.address())]);
        node.client()
            .attach(&name(), &wish)
            .await
            .expect("attaches");
        let mut connection = node.open().await;
        let data = Payload::from(vec![1; 512]);
        connection
            .write(0, data.clone(), false)
            .await
            .expect("written");
        let unit = target.units()[0];
        let job = target.handle().with(move |portal, _| {
            let unit = portal
                .unit_mut::<LogicalUnit>(unit)
                .expect("a logical unit");
            unit.resize(2 * SIZE).expect("grows");
            unit.reset();
        });
        job.await.expect("the portal runs");
        connection.write(0, data, false).await.expect("written");
        let mut events = node.client().events(Some(0), None).await.expect("events");
        let (mut resized, mut lost) = (false, false);
        while !(resized && lost) {
            let next = events.next().await.expect("events go on");
            let event = next.expect("the daemon runs").what;
            let new = format!("{} bytes", 2 * SIZE);
            resized |= event.kind == EventKind::Resized && event.message.contains(&new);
            lost |= event
                .reason
                .is_some_and(|reason| reason.code == Code::DataUnsafe);
        }
        let now = node.look().await;
        assert_eq!(now.size_bytes, Some(2 * SIZE));
        assert_eq!(now.counters.recovery.cache_losses, 1);
        node.stop().await;
    })
    .await;
}

/// A path that comes back is registered again before it takes I/O, and a takeover fences all paths.
#[tokio::test(flavor = "multi_thread")]
async fn a_fence_holds_on_every_path() {
    within(async {
        let target = start_target();
        let mut first = Link::new(target.address()).await;
        let second = Link::new(target.address()).await;
        let (one, two) = (portal_of(first.at), portal_of(second.at));
        let mut wish = request(vec![one, two]);
        wish.fence = Fence::Reservation;
        let (a, b) = (Node::start("a").await, Node::start("b").await);
        a.client().attach(&name(), &wish).await.expect("free");
        let up = |now: &Attachment| {
            let up = now.paths.iter().filter(|path| path.state == PathState::Up);
            up.count()
        };
        a.wait_for(|now| up(now) == 2).await;
        let mut old = a.open().await;
        let data = |fill: u8| Payload::from(vec![fill; 512]);
        for fill in 0..3 {
            first.cut().await;
            a.wait_for(|now| up(now) == 1).await;
            old.write(0, data(fill), true).await.expect("still ours");
            first.heal().await;
            a.wait_for(|now| up(now) == 2).await;
            old.write(0, data(fill), true).await.expect("still ours");
        }
        assert_eq!(a.look().await.state, AttachmentState::Attached);
        // While one path is away.
        first.cut().await;
        a.wait_for(|now| up(now) == 1).await;
        let mut taking = request(vec![portal_of(target.address())]);
        taking.fence = Fence::Reservation;
        taking.takeover = true;
        b.client()
            .attach(&name(), &taking)
            .await
            .expect("taken over");
        first.heal().await;
        let fenced = a.wait_for(|now| now.state == AttachmentState::Failed).await;
        assert_eq!(fenced.reason.map(|reason| reason.code), Some(Code::Fenced));
        assert!(old.write(0, data(9), true).await.is_err(), "fenced");
        let mut new = b.open().await;
        new.write(0, data(7), true).await.expect("ours now");
        a.stop().await;
        b.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_share_a_unit_by_reservation_and_a_restart_takes_nothing_back() {
    within(async {
        let target = start_target();
        let mut wish = request(vec![portal_of(target.address())]);
        wish.fence = Fence::Reservation;
        let mut taking = wish.clone();
        taking.takeover = true;
        let (a, b) = (Node::start("a").await, Node::start("b").await);
        let (one, two) = (a.client(), b.client());
        let attached = one.attach(&name(), &wish).await.expect("free").attachment;
        let key = attached.reservation_key.expect("it has a key");
        // The same unit twice on one node would be told apart only by age.
        let twice = "vol-1".parse().expect("a name");
        let error = one.attach(&twice, &wish).await.expect_err("the same unit");
        assert_eq!(code(&error), Code::ConflictIncompatible);

        let error = two.attach(&name(), &wish).await.expect_err("held");
        assert_eq!(code(&error), Code::AttachedElsewhere);
        let ClientError::Problem(problem) = error else {
            panic!("{error}");
        };
        assert_eq!(problem.holder, Some(key));
        assert!(problem.retryable);
        let write = |fill: u8| Payload::from(vec![fill; 512]);
        let mut old = a.open().await;
        old.write(0, write(1), true).await.expect("still ours");

        // What is held comes back after a restart of the daemon.
        drop(old);
        let a = a.restart().await;
        a.wait_for(|now| now.state == AttachmentState::Attached)
            .await;
        let mut old = a.open().await;
        old.write(0, write(1), true).await.expect("still ours");

        two.attach(&name(), &taking).await.expect("taken over");
        let mut new = b.open().await;
        new.write(0, write(2), true).await.expect("ours now");
        assert!(old.write(0, write(3), true).await.is_err(), "fenced");
        let fenced = a.wait_for(|now| now.state == AttachmentState::Failed).await;
        let reason = fenced.reason.expect("there is a reason");
        assert_eq!((reason.code, reason.retryable), (Code::Fenced, false));
        let read = new.read(0, 512).await.expect("reads");
        assert_eq!(read.to_bytes(), write(2).to_bytes());
        drop(new);

        // Who asks and is refused has lost it all the same; nothing is taken again by itself, also
        // when the other one gives it back.
        let refused = a.client().attach(&name(), &wish).await;
        let refused = refused.expect_err("held by the other one");
        assert_eq!(code(&refused), Code::AttachedElsewhere);
        two.detach(&name(), true).await.expect("detaches");
        let a = a.restart().await;
        let still = a.look().await;
        assert_eq!(still.state, AttachmentState::Failed);
        assert_eq!(still.reason.map(|reason| reason.code), Some(Code::Fenced));
        let again = a.client().attach(&name(), &wish).await;
        let again = again.expect("free").attachment;
        assert_eq!(again.state, AttachmentState::Attached);
        a.client().detach(&name(), true).await.expect("detaches");
        b.client().attach(&name(), &wish).await.expect("given back");
        a.stop().await;
        b.stop().await;
    })
    .await;
}
