//! A clock that stands still while anybody has something to do, a network, and sessions over it.

use std::future::Future;
use std::slice;

use berth_iscsi::login::{LoginConfig, SessionKind};
use berth_iscsi::name::{IscsiName, Portal};
use berth_iscsi::net::{ConnectError, ConnectOptions, Connected, connect};
use berth_iscsi::types::Isid;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::wire::{Accepted, Memory};
use super::*;

/// Virtual time after which a test hangs.
const HANGS: Duration = Duration::from_secs(24 * 3600);

/// Runs a test on one thread with a virtual clock.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Rig) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let all = async {
        let test = test(Rig::new());
        tokio::time::timeout(HANGS, test)
            .await
            .expect("the test hangs");
    };
    LocalSet::new().block_on(&runtime, all);
}

/// Where everything of a test comes from.
pub(crate) struct Rig {
    network: Memory,
    accepted: mpsc::Receiver<Accepted>,
    pub(crate) portal: Portal,
    pub(crate) options: ConnectOptions,
    pub(crate) offer: Offer,
    /// What the target wants.
    pub(crate) target: Offer,
    pub(crate) isid: Isid,
    /// Commands that the target takes at the beginning.
    pub(crate) window: u32,
}

impl Rig {
    fn new() -> Self {
        let (network, accepted) = Memory::new();
        Self {
            network,
            accepted,
            portal: Portal::parse("192.0.2.2:3260").expect("an address"),
            options: ConnectOptions::default(),
            offer: Offer::default(),
            target: Offer::default(),
            isid: Isid::random([1, 2, 3], 4),
            window: peer::WINDOW,
        }
    }

    pub(crate) fn config(&self) -> LoginConfig {
        let name = |text| IscsiName::parse(text).expect("a name");
        let kind = SessionKind::Normal {
            target_name: name("iqn.2026-11.example:t"),
        };
        let mut config = LoginConfig::new(name("iqn.2026-11.example:i"), kind, self.isid);
        config.offer = self.offer.clone();
        config
    }

    /// Connects while `target` plays the other end of each connection.
    pub(crate) async fn connect<T>(
        &mut self,
        target: impl AsyncFnOnce(&mut mpsc::Receiver<Accepted>) -> T,
    ) -> (Result<Connected, ConnectError>, T) {
        let config = self.config();
        let connecting = connect(
            &self.network,
            slice::from_ref(&self.portal),
            config,
            &self.options,
        );
        tokio::join!(biased; connecting, target(&mut self.accepted))
    }

    /// A session that has just begun, and its target.
    pub(crate) async fn session(&mut self) -> (Client, Peer) {
        let (offer, window) = (self.target.clone(), self.window);
        let (connected, peer) = self
            .connect(async |accepted| {
                let mut peer = accept(accepted).await;
                peer.window = window;
                peer.log_in(offer).await;
                peer
            })
            .await;
        (Client::new(connected.expect("a session")), peer)
    }
}

/// The next connection of the initiator.
pub(crate) async fn accept(accepted: &mut mpsc::Receiver<Accepted>) -> Peer {
    let (_, end) = accepted.recv().await.expect("the rig is there");
    Peer::new(end)
}

/// Measures virtual time.
pub(crate) fn since(start: Instant) -> Duration {
    start.elapsed()
}
