//! Client and server over real sockets.

#![allow(clippy::unwrap_used, reason = "helpers are test code too")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use berth_api::client::{Client, ClientError, Started};
use berth_api::server::{Api, Listener, UnixSocket};
use berth_api::types::{DiscoveryRequest, EventKind, OperationState};
use berth_api::{Code, Peer, Secret};
use common::{Fake, name, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

struct Daemon {
    fake: Arc<Fake>,
    api: Api<Fake>,
    client: Client,
    serving: JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let fake = Fake::new();
        let api = Api::new(Arc::clone(&fake));
        let socket = UnixSocket::bind(&path, 0o660).unwrap();
        let serving = tokio::spawn({
            let api = api.clone();
            async move { api.serve(Listener::Unix(socket)).await }
        });
        Self {
            fake,
            api,
            client: Client::unix(path),
            serving,
            dir,
        }
    }

    async fn stop(self) {
        self.api.stop();
        self.serving.await.unwrap();
        assert!(!self.dir.path().join("api.sock").exists());
    }
}

#[tokio::test]
async fn every_call_over_a_unix_socket() {
    let daemon = Daemon::start();
    let client = &daemon.client;
    let disk0 = name("disk0");
    let first = client.attach(&disk0, &request()).await.unwrap();
    assert!(first.created);
    let second = client.attach(&disk0, &request()).await.unwrap();
    assert!(!second.created);
    assert_eq!(first.attachment, second.attachment);
    assert_eq!(client.attachment(&disk0).await.unwrap(), first.attachment);
    assert_eq!(client.attachments().await.unwrap(), [first.attachment]);

    // The secret arrived: another one is another request.
    let mut other = request();
    let berth_api::types::Source::Iscsi(source) = &mut other.source else {
        panic!("it is a target");
    };
    let Some(berth_api::types::Auth::Chap(chap)) = &mut source.auth else {
        panic!("the request has CHAP");
    };
    chap.secret = Secret::new("hunter3hunter3".into());
    let error = client.attach(&disk0, &other).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::ConflictIncompatible));
    assert!(!error.is_retryable());
    assert_eq!(
        error.to_string(),
        "disk0 differs in source.iscsi.auth (conflict-incompatible)"
    );

    assert_eq!(client.node().await.unwrap().name, "worker-1");
    assert!(client.ready().await.unwrap().is_ok());
    assert!(client.metrics().await.unwrap().contains("berth_build_info"));
    let portal = "[2001:db8::1]:3260".parse().unwrap();
    let found = client
        .discover(&DiscoveryRequest::new(portal))
        .await
        .unwrap();
    assert_eq!(found.targets.len(), 1);

    client.detach(&disk0, false).await.unwrap();
    client.detach(&disk0, false).await.unwrap();
    let error = client.attachment(&disk0).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    let error = client.detach(&name("busy"), false).await.unwrap_err();
    assert_eq!(error.code(), Some(Code::InUse));
    client.detach(&name("busy"), true).await.unwrap();

    let peer = daemon.fake.calls.lock().unwrap()[0].peer.clone();
    assert!(
        matches!(peer, Peer::Unix { pid: Some(pid), .. } if pid.unsigned_abs() == std::process::id()),
        "{peer:?}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn operations_are_followed() {
    let daemon = Daemon::start();
    let client = &daemon.client;
    let slow = name("slow");
    let started = client
        .attach_within(&slow, &request(), Duration::ZERO)
        .await
        .unwrap();
    let Started::Running(operation) = started else {
        panic!("slow does not end by itself");
    };
    assert_eq!(operation.state, OperationState::Running);
    daemon.fake.release();
    let ended = client
        .operation(&operation.id, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(ended.state, OperationState::Succeeded);
    let gone = client
        .detach_within(&slow, false, Duration::from_secs(60))
        .await
        .unwrap();
    assert_eq!(gone, Started::Done(()));
    let error = client
        .operation("../node", Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(Code::NotFound));
    daemon.stop().await;
}

#[tokio::test]
async fn events_go_on_where_they_broke() {
    let daemon = Daemon::start();
    let client = daemon.client.clone();
    let mut events = client.events(None, None).await.unwrap();
    client.attach(&name("a"), &request()).await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(first.what.kind, EventKind::State);
    assert_eq!(first.what.attachment, Some(name("a")));
    assert_eq!(events.last_id(), Some(first.id));
    drop(events);

    client.attach(&name("b"), &request()).await.unwrap();
    client.attach(&name("c"), &request()).await.unwrap();
    let mut events = client
        .events(Some(first.id), Some(&name("c")))
        .await
        .unwrap();
    assert_eq!(
        events.next().await.unwrap().unwrap().what.attachment,
        Some(name("c"))
    );

    let mut past = client.past_events(None).await.unwrap();
    for expected in ["a", "b", "c"] {
        let event = past.next().await.unwrap().unwrap();
        assert_eq!(event.what.attachment, Some(name(expected)));
    }
    assert!(past.next().await.unwrap().is_none());

    // A stop ends the stream properly, and is not held up by it.
    let end = tokio::spawn(async move { events.next().await });
    daemon.stop().await;
    assert!(end.await.unwrap().unwrap().is_none());
}

#[tokio::test]
async fn tcp_needs_the_token() {
    let fake = Fake::new();
    let api = Api::new(fake);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn({
        let api = api.clone();
        async move {
            api.serve(Listener::Tcp(listener, Secret::new("sesame".into())))
                .await;
        }
    });
    let client = Client::tcp(&url, Secret::new("sesame".into())).unwrap();
    assert_eq!(client.node().await.unwrap().name, "worker-1");
    let client = Client::tcp(&url, Secret::new("mellon".into())).unwrap();
    let error = client.node().await.unwrap_err();
    assert_eq!(error.code(), Some(Code::Unauthenticated));
    let error = client.events(None, None).await.err().unwrap();
    assert_eq!(error.code(), Some(Code::Unauthenticated));
    api.stop();
    serving.await.unwrap();
}

#[tokio::test]
async fn without_a_daemon_the_error_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let error = Client::unix(&path).node().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string(),
        format!("cannot connect to {}", path.display())
    );
}

/// What answers may be slow, silent, or something else: an error within the deadline, no hang.
#[tokio::test]
async fn what_is_no_daemon_is_an_error_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let other = tokio::spawn(async move {
        let mut kept = Vec::new();
        for answer in [
            "",
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nbad",
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}",
        ] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            if answer.is_empty() {
                kept.push(stream);
            }
        }
    });
    let client = Client::unix(&path);
    let hasty = client.clone().with_timeout(Duration::from_millis(50));
    let error = hasty.node().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout(_)), "{error:?}");
    for expected in [
        "broke",
        "does not fit",
        "502 Bad Gateway",
        "not arrive whole",
    ] {
        let error = client.node().await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    other.await.unwrap();
}

/// What is no HTTP, or too much of it, ends that connection and nothing else.
#[tokio::test]
async fn a_client_that_speaks_garbage_is_refused() {
    let daemon = Daemon::start();
    let path = daemon.dir.path().join("api.sock");
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 * 1024));
    for (sent, status) in [
        (&b"\x16\x03\x01\x00\x05hello\r\n\r\n"[..], "400"),
        (long.as_bytes(), "431"),
    ] {
        let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
        stream.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        // The close may come as a reset when bytes of ours were not read.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
    }
    daemon.client.node().await.unwrap();
    daemon.stop().await;
}
