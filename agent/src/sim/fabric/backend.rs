//! The iSCSI side: one portal thread, and targets made to be what the model says.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::JoinHandle;
use std::time::Instant;

use berth_iscsi::login::{DigestPolicy, Offer, TargetAuth};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::listener::{Listening, Server, ServerHandle};
use berth_iscsi::scsi::alua::{AccessState, PortGroup as AccessGroup};
use berth_iscsi::target::disk::FileDisk;
use berth_iscsi::target::lu::{LogicalUnit, LuConfig, LuFaults, LuIdentity};
use berth_iscsi::target::{
    Access, Limits, Portal, PortalGroup, PortalSettings, SessionKind, TargetConfig, UnitId,
};

use super::data::DataDir;
use super::meter::{Meter, Meters};

/// All portals are one group: a target answers with the same port at each.
const GROUP: u16 = 1;
/// ALUA states that the one group knows: active/optimized, and transitioning (SPC-4 6.37).
const SUPPORTED_STATES: u8 = 0x81;
/// Sessions at a time: two for each of some thousand volumes.
const CONNECTIONS_MAX: usize = 16 * 1024;

/// A target as it shall be.
#[derive(Debug, Clone)]
pub(super) struct TargetSpec {
    pub(super) name: IscsiName,
    pub(super) access: Access,
    pub(super) auth: TargetAuth,
    /// Units by LUN.
    pub(super) luns: BTreeMap<u16, LunSpec>,
}

/// A logical unit as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LunSpec {
    /// Name of the data file.
    pub(super) data: String,
    pub(super) serial: String,
    pub(super) size_bytes: u64,
    pub(super) limits: Limits,
}

/// A target as it is.
#[derive(Debug)]
struct Applied {
    name: IscsiName,
    luns: BTreeMap<u16, (LunSpec, UnitId)>,
}

/// The portals and what they serve.
#[derive(Debug)]
pub(super) struct Backend {
    handle: Option<ServerHandle>,
    thread: Option<JoinHandle<()>>,
    data: DataDir,
    meters: Meters,
    /// Targets by app instance.
    applied: HashMap<String, Vec<Applied>>,
}

impl Backend {
    /// Starts the portals on sockets that are bound.
    pub(super) fn start(listeners: Vec<TcpListener>, data: DataDir) -> io::Result<Self> {
        let mut addresses = Vec::new();
        for listener in &listeners {
            listener.set_nonblocking(true)?;
            addresses.push(listener.local_addr()?);
        }
        let portal = Portal::new(settings(&addresses));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (server, handle) = Server::new(portal);
        let thread = std::thread::Builder::new()
            .name("sim-portals".to_owned())
            .spawn(move || {
                let served = runtime.block_on(async {
                    let listening = listeners
                        .into_iter()
                        .map(|listener| {
                            let listener = tokio::net::TcpListener::from_std(listener)?;
                            let group = GROUP;
                            Ok(Listening { listener, group })
                        })
                        .collect::<io::Result<_>>()?;
                    server.serve(listening).await;
                    io::Result::Ok(())
                });
                if let Err(error) = served {
                    tracing::error!(%error, "the simulated portals cannot serve");
                }
            })?;
        Ok(Self {
            handle: Some(handle),
            thread: Some(thread),
            data,
            meters: Meters::default(),
            applied: HashMap::new(),
        })
    }

    /// Reaches the portals.
    pub(super) fn handle(&self) -> &ServerHandle {
        self.handle.as_ref().expect("there until it is dropped")
    }

    /// What the volumes do.
    pub(super) fn meters(&self) -> Meters {
        self.meters.clone()
    }

    /// Makes the targets of `owner` what `specs` says: new ones appear, sessions of initiators that may not
    /// use a target any more end, and so do those of targets that are gone.
    pub(super) async fn apply(&mut self, owner: &str, specs: Vec<TargetSpec>) -> io::Result<()> {
        let old = self.applied.remove(owner).unwrap_or_default();
        if old.is_empty() && specs.is_empty() {
            return Ok(());
        }
        let disks = Disks {
            data: self.data.clone(),
            meters: self.meters.clone(),
        };
        let handle = self.handle().clone();
        let applied = handle
            .with(move |portal, now| reconcile(portal, now, &disks, old, specs))
            .await
            .map_err(io::Error::other)?;
        let (applied, result) = applied;
        self.applied.insert(owner.to_owned(), applied);
        result
    }

    /// Initiators that are logged in, by target name.
    pub(super) async fn sessions(&self) -> io::Result<HashMap<String, Vec<String>>> {
        let sessions = self
            .handle()
            .with(|portal, _now| portal.sessions())
            .await
            .map_err(io::Error::other)?;
        let mut by_target: HashMap<String, Vec<String>> = HashMap::new();
        for session in sessions {
            if session.kind == SessionKind::Normal {
                let names = by_target
                    .entry(session.nexus.target.to_string())
                    .or_default();
                if !names.iter().any(|name| **name == *session.nexus.initiator) {
                    names.push(session.nexus.initiator.to_string());
                }
            }
        }
        Ok(by_target)
    }

    /// Sets what a volume does wrong; says whether it is served now.
    pub(super) async fn set_faults(&self, volume: &str, faults: LuFaults) -> io::Result<bool> {
        let targets = self.applied.values().flatten();
        let mut units = targets.flat_map(|target| target.luns.values());
        let Some((_, unit)) = units.find(|(spec, _)| spec.serial == volume) else {
            return Ok(false);
        };
        let unit = *unit;
        let set = self.handle().with(move |portal, _now| {
            portal
                .unit_mut::<Meter>(unit)
                .map(|meter| *meter.unit().faults() = faults)
        });
        Ok(set.await.map_err(io::Error::other)?.is_some())
    }

    /// Copies data files at one moment: no command comes between them.
    pub(super) async fn copy(&self, pairs: Vec<(String, String)>) -> io::Result<()> {
        let data = self.data.clone();
        self.handle()
            .with(move |_portal, _now| {
                for (index, (from, to)) in pairs.iter().enumerate() {
                    if let Err(error) = data.copy(from, to) {
                        for (_, made) in &pairs[..=index] {
                            let _ = data.remove(made);
                        }
                        return Err(error);
                    }
                }
                Ok(())
            })
            .await
            .map_err(io::Error::other)?
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The server ends when nobody has a handle to it any more.
        self.handle.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn settings(addresses: &[SocketAddr]) -> PortalSettings {
    PortalSettings {
        groups: vec![PortalGroup {
            tag: GROUP,
            addresses: addresses.iter().map(ToString::to_string).collect(),
        }],
        offer: Offer {
            header_digest: DigestPolicy::Prefer,
            data_digest: DigestPolicy::Prefer,
            ..Offer::default()
        },
        connections_max: CONNECTIONS_MAX,
        ..PortalSettings::default()
    }
}

/// Where units come from.
struct Disks {
    data: DataDir,
    meters: Meters,
}

/// Runs on the portals' thread. Gives what is there afterwards also when something failed.
fn reconcile(
    portal: &mut Portal,
    now: Instant,
    disks: &Disks,
    mut old: Vec<Applied>,
    specs: Vec<TargetSpec>,
) -> (Vec<Applied>, io::Result<()>) {
    let mut result = Ok(());
    let mut applied = Vec::new();
    let mut note = |done: io::Result<()>| {
        if done.is_err() && result.is_ok() {
            result = done;
        }
    };
    let gone = |target: &Applied| !specs.iter().any(|spec| spec.name == target.name);
    for target in old.extract_if(.., |target| gone(target)) {
        portal.remove_target(&target.name);
        for (_, unit) in target.luns.into_values() {
            portal.remove_unit(unit);
        }
    }
    for spec in specs {
        let known = old.iter().position(|target| target.name == spec.name);
        let mut target = match known {
            Some(index) => {
                revoke(portal, &spec);
                old.swap_remove(index)
            }
            None => {
                let mut config = TargetConfig::new(spec.name.clone());
                config.access = spec.access.clone();
                config.auth = spec.auth.clone();
                note(portal.add_target(config).map_err(io::Error::other));
                Applied {
                    name: spec.name.clone(),
                    luns: BTreeMap::new(),
                }
            }
        };
        note(set_luns(portal, now, disks, &mut target, &spec));
        applied.push(target);
    }
    (applied, result)
}

/// Takes the new access and credentials, and ends sessions that have no right any more.
fn revoke(portal: &mut Portal, spec: &TargetSpec) {
    if let Some(config) = portal.target_mut(&spec.name) {
        config.access = spec.access.clone();
        config.auth = spec.auth.clone();
    }
    end_sessions(portal, &spec.name, &spec.access);
}

/// Ends the sessions with a target of initiators that `access` does not allow.
fn end_sessions(portal: &mut Portal, target: &IscsiName, access: &Access) {
    for session in portal.sessions() {
        if session.kind == SessionKind::Normal
            && *session.nexus.target == *target.normalized()
            && !access.allows(&session.nexus.initiator)
        {
            portal.close(session.connection);
        }
    }
}

fn set_luns(
    portal: &mut Portal,
    now: Instant,
    disks: &Disks,
    target: &mut Applied,
    spec: &TargetSpec,
) -> io::Result<()> {
    let mut result = Ok(());
    let same = |a: &LunSpec, b: &LunSpec| a.data == b.data && a.serial == b.serial;
    let gone = |(lun, (is, _)): (&u16, &(LunSpec, UnitId))| {
        spec.luns.get(lun).is_none_or(|wanted| !same(is, wanted))
    };
    if target.luns.iter().any(gone) {
        // No command may be on its way to a unit that goes.
        end_sessions(portal, &spec.name, &Access::Only(Vec::new()));
    }
    target.luns.retain(|lun, (is, unit)| {
        let stays = spec.luns.get(lun).is_some_and(|wanted| same(is, wanted));
        if !stays {
            portal.map_lun(&spec.name, *lun, None);
            portal.remove_unit(*unit);
        }
        stays
    });
    for (lun, wanted) in &spec.luns {
        if let Some((is, unit)) = target.luns.get_mut(lun) {
            if is.limits != wanted.limits {
                portal.set_limits(now, *unit, &wanted.limits);
                is.limits = wanted.limits;
            }
            if is.size_bytes != wanted.size_bytes
                && let Some(unit) = portal.unit_mut::<Meter>(*unit)
            {
                match unit.unit().resize(wanted.size_bytes) {
                    Ok(()) => is.size_bytes = wanted.size_bytes,
                    Err(error) => result = Err(io::Error::other(error)),
                }
            }
            continue;
        }
        match open_unit(disks, wanted) {
            Ok(unit) => {
                let unit = portal.add_unit(Box::new(unit));
                portal.set_limits(now, unit, &wanted.limits);
                portal.map_lun(&spec.name, *lun, Some(unit));
                target.luns.insert(*lun, (wanted.clone(), unit));
            }
            Err(error) => result = Err(error),
        }
    }
    result
}

fn open_unit(disks: &Disks, spec: &LunSpec) -> io::Result<Meter> {
    // A file that is missing must not become an empty volume.
    let path = disks.data.path(&spec.data);
    let file = File::options().read(true).write(true).open(path)?;
    let size = file.metadata()?.len();
    if size < spec.size_bytes {
        // The power failed between the new size and the file.
        file.set_len(spec.size_bytes)?;
    }
    let config = LuConfig {
        identity: identity(&spec.serial),
        vendor: "DATERA".to_owned(),
        product: "IBLOCK".to_owned(),
        revision: "4.0".to_owned(),
        // The file is written through the page cache.
        write_cache: true,
        port_groups: vec![AccessGroup {
            id: GROUP,
            preferred: false,
            state: AccessState::ActiveOptimized,
            supported: SUPPORTED_STATES,
            status_code: 0,
            ports: vec![GROUP],
        }],
        ..LuConfig::new(&spec.serial)
    };
    let unit = LogicalUnit::new(config, Box::new(FileDisk::from_file(file)?));
    Ok(disks.meters.meter(&spec.serial, unit))
}

/// The serial number as it is; the NAA as Linux targets build it: 6, company 001405, and 25 digits of the serial.
fn identity(serial: &str) -> LuIdentity {
    let digits = serial.chars().filter_map(|c| c.to_digit(16));
    let nibbles: Vec<u8> = [6, 0, 0, 1, 4, 0, 5]
        .into_iter()
        .chain(digits)
        .chain(std::iter::repeat(0))
        .take(32)
        .map(|nibble| nibble as u8)
        .collect();
    LuIdentity {
        naa: nibbles
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
        serial: serial.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_naa_follows_from_the_serial_number() {
        let identity = identity("5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944");
        let hex: String = identity.naa.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "60014055d0c4a7e2f614b8e9a531c7be");
        assert_eq!(identity.serial, "5d0c4a7e-2f61-4b8e-9a53-1c7be0d2f944");
    }
}
