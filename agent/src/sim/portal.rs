//! An iSCSI portal with volumes in memory.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread::JoinHandle;

use berth_iscsi::login::{DigestPolicy, Offer};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::listener::{Listening, Server, ServerHandle};
use berth_iscsi::target::disk::RamDisk;
use berth_iscsi::target::lu::{LogicalUnit, LuConfig};
use berth_iscsi::target::{Portal, PortalSettings, TargetConfig, UnitId};
use tokio::net::TcpListener;

/// Portal group of the one address.
const GROUP: u16 = 1;

/// A volume to simulate: one target with one LUN, number 0.
#[derive(Debug, Clone)]
pub struct SimVolume {
    /// Name of the target.
    pub target: IscsiName,
    /// Serial number; the identity follows from it.
    pub serial: String,
    /// Size in bytes. Memory is used for what is written only.
    pub size_bytes: u64,
    /// There is a volatile write cache: flushes and FUA have a meaning.
    pub write_cache: bool,
}

/// A running portal; dropping it stops it.
pub struct SimPortal {
    address: SocketAddr,
    handle: Option<ServerHandle>,
    units: Vec<UnitId>,
    thread: Option<JoinHandle<()>>,
}

impl SimPortal {
    /// Starts a portal on a free port of the loopback address.
    ///
    /// # Errors
    /// When no socket or thread can be had.
    pub fn start(volumes: Vec<SimVolume>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (portal, units) = portal(volumes)?;
        let (server, handle) = Server::new(portal);
        let thread = std::thread::Builder::new()
            .name("sim-portal".to_owned())
            .spawn(move || {
                let served = runtime.block_on(async {
                    let listener = TcpListener::from_std(listener)?;
                    server
                        .serve(vec![Listening {
                            listener,
                            group: GROUP,
                        }])
                        .await;
                    io::Result::Ok(())
                });
                if let Err(error) = served {
                    tracing::error!(%error, "the simulated portal cannot serve");
                }
            })?;
        Ok(Self {
            address,
            handle: Some(handle),
            units,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The logical units, in the order of the volumes.
    #[must_use]
    pub fn units(&self) -> &[UnitId] {
        &self.units
    }

    /// Reaches the portal: to set faults, to resize units, to read counters.
    #[must_use]
    pub fn handle(&self) -> &ServerHandle {
        self.handle.as_ref().expect("there until it is dropped")
    }
}

impl Drop for SimPortal {
    fn drop(&mut self) {
        // The server ends when nobody has a handle to it any more.
        self.handle.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn portal(volumes: Vec<SimVolume>) -> io::Result<(Portal, Vec<UnitId>)> {
    let mut units = Vec::new();
    let offer = Offer {
        header_digest: DigestPolicy::Prefer,
        data_digest: DigestPolicy::Prefer,
        ..Offer::default()
    };
    let mut portal = Portal::new(PortalSettings {
        offer,
        ..PortalSettings::default()
    });
    for volume in volumes {
        let config = LuConfig {
            write_cache: volume.write_cache,
            ..LuConfig::new(&volume.serial)
        };
        let disk = Box::new(RamDisk::new(volume.size_bytes));
        let unit = portal.add_unit(Box::new(LogicalUnit::new(config, disk)));
        portal
            .add_target(TargetConfig::new(volume.target).with_lun(0, unit))
            .map_err(io::Error::other)?;
        units.push(unit);
    }
    Ok((portal, units))
}
