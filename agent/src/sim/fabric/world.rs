//! The fabric's state at work: looked up, changed, stored, and made true at the portals.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use berth_iscsi::login::{Account, ChapAlgorithm, Secret as ChapSecret, TargetAuth};
use berth_iscsi::name::IscsiName;
use berth_iscsi::target::{Access, Limits, Rate};

use super::answer::ApiError;
use super::backend::{Backend, LunSpec, TargetSpec};
use super::call::{Call, Scope};
use super::data::DataDir;
use super::model::{
    AccessMode, AdminState, AppInstance, Auth, AuthKind, Catalogue, GIB, Performance,
    StorageInstance,
};
use super::options::SwVersion;
use super::store::Store;
use super::telemetry::Telemetry;
use super::view::View;

/// Prefix of target names; 16 hexadecimal digits follow.
const IQN_PREFIX: &str = "iqn.2013-05.com.daterainc:tc:01:sn:";

/// Settings that do not change while the fabric runs.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) sw_version: SwVersion,
    /// Addresses of the portals.
    pub(super) ips: [String; 2],
    /// How long new objects take to become available.
    pub(super) settle: Duration,
    /// What limited volumes may do at once after a rest, as time at their limit.
    pub(super) qos_burst: Duration,
    /// What the fabric says it has.
    pub(super) capacity_bytes: u64,
    pub(super) started: Instant,
}

/// All of it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) facts: Arc<Facts>,
    pub(super) catalogue: Catalogue,
    /// By order of creation.
    pub(super) instances: BTreeMap<u64, AppInstance>,
    pub(super) store: Store,
    pub(super) data: DataDir,
    pub(super) backend: Backend,
    /// When objects get available, by uuid; those that are not in here are.
    settling: HashMap<String, Instant>,
    last_timestamp: Duration,
    pub(super) telemetry: Telemetry,
}

impl World {
    /// Takes what is stored and makes it true at the portals. Data files that nothing names are removed.
    pub(super) async fn load(
        facts: Arc<Facts>,
        store: Store,
        backend: Backend,
        defaults: impl FnOnce() -> Catalogue,
    ) -> io::Result<Self> {
        let data = store.data()?;
        let catalogue = match store.catalogue()? {
            Some(catalogue) => catalogue,
            None => {
                let catalogue = defaults();
                store.put_catalogue(&catalogue)?;
                catalogue
            }
        };
        let instances: BTreeMap<u64, AppInstance> = store
            .instances()?
            .into_iter()
            .map(|instance| (instance.number, instance))
            .collect();
        let named: std::collections::HashSet<String> =
            instances.values().flat_map(AppInstance::data).collect();
        for name in data.names()? {
            if !named.contains(&name) {
                // Made before a crash for an object that was never promised to anybody.
                data.remove(&name)?;
            }
        }
        let telemetry = Telemetry::new(backend.meters());
        let mut world = Self {
            facts,
            catalogue,
            instances,
            store,
            data,
            backend,
            settling: HashMap::new(),
            last_timestamp: Duration::ZERO,
            telemetry,
        };
        let ids: Vec<u64> = world.instances.keys().copied().collect();
        for number in ids {
            world.expose(number).await?;
        }
        Ok(world)
    }

    /// Whether it behaves as 3.3.0.0 and later.
    pub(super) fn is_33(&self) -> bool {
        self.facts.sw_version >= SwVersion::SWITCH
    }

    /// The instance with that id, or of that name in the tenant.
    pub(super) fn instance(&self, scope: &Scope, id: &str) -> Result<&AppInstance, ApiError> {
        let seen = || self.instances.values().filter(|i| scope.holds(&i.tenant));
        seen()
            .find(|instance| instance.id == id)
            .or_else(|| seen().find(|instance| instance.name == id))
            .ok_or_else(|| ApiError::not_found("App instance", id))
    }

    /// A storage instance of an app instance.
    pub(super) fn storage_instance<'a>(
        instance: &'a AppInstance,
        name: &str,
    ) -> Result<&'a StorageInstance, ApiError> {
        instance
            .storage_instances
            .iter()
            .find(|si| si.name == name)
            .ok_or_else(|| ApiError::not_found("Storage instance", name))
    }

    /// Stores a changed or new instance, then makes it true at the portals, then removes data files that it
    /// has no use for any more.
    pub(super) async fn commit(&mut self, instance: AppInstance) -> Result<(), ApiError> {
        self.store.put_instance(&instance)?;
        let number = instance.number;
        let used = instance.data();
        let before = self.instances.insert(number, instance);
        self.expose(number).await?;
        for file in before.iter().flat_map(AppInstance::data) {
            if !used.contains(&file) {
                self.data.remove(&file)?;
            }
        }
        Ok(())
    }

    /// Forgets an instance with all that belongs to it.
    pub(super) async fn remove(&mut self, number: u64) -> Result<(), ApiError> {
        let Some(instance) = self.instances.get(&number) else {
            return Ok(());
        };
        self.store.remove_instance(&instance.id)?;
        let id = instance.id.clone();
        let files = instance.data();
        self.instances.remove(&number);
        self.backend.apply(&id, Vec::new()).await?;
        for file in files {
            self.data.remove(&file)?;
        }
        Ok(())
    }

    /// Stores the catalogue with a change; without the change when it cannot be stored.
    pub(super) fn change_catalogue<R>(
        &mut self,
        change: impl FnOnce(&mut Catalogue) -> Result<R, ApiError>,
    ) -> Result<R, ApiError> {
        let mut catalogue = self.catalogue.clone();
        let result = change(&mut catalogue)?;
        self.store.put_catalogue(&catalogue)?;
        self.catalogue = catalogue;
        Ok(result)
    }

    /// Ends a sample of the metrics.
    pub(super) fn sample(&mut self) {
        let instances = self.instances.values();
        let volumes = instances
            .flat_map(|instance| &instance.storage_instances)
            .flat_map(|si| &si.volumes);
        let there: std::collections::HashSet<&str> =
            volumes.map(|volume| volume.uuid.as_str()).collect();
        self.telemetry.retain(|uuid| there.contains(uuid));
        self.telemetry.sample();
    }

    /// Makes the targets of an instance what the model says.
    pub(super) async fn expose(&mut self, number: u64) -> io::Result<()> {
        let Some(instance) = self.instances.get(&number) else {
            return Ok(());
        };
        let id = instance.id.clone();
        let specs = self.specs(instance)?;
        self.backend.apply(&id, specs).await
    }

    fn specs(&self, instance: &AppInstance) -> io::Result<Vec<TargetSpec>> {
        if instance.admin_state == AdminState::Offline {
            return Ok(Vec::new());
        }
        instance
            .storage_instances
            .iter()
            .filter(|si| si.admin_state == AdminState::Online)
            .map(|si| {
                let luns = si.volumes.iter().map(|volume| {
                    let spec = LunSpec {
                        data: volume.data.clone(),
                        serial: volume.uuid.clone(),
                        size_bytes: volume.size_gib * GIB,
                        limits: limits(volume.performance, self.facts.qos_burst),
                    };
                    (volume.lun, spec)
                });
                Ok(TargetSpec {
                    name: IscsiName::parse(&si.iqn).map_err(io::Error::other)?,
                    access: self.access(si),
                    auth: target_auth(&si.auth),
                    luns: luns.collect(),
                })
            })
            .collect()
    }

    fn access(&self, si: &StorageInstance) -> Access {
        if si.access_control_mode == AccessMode::AllowAll {
            return Access::Anyone;
        }
        let groups = si.initiator_groups.iter().filter_map(|link| {
            let mut groups = self.catalogue.groups.iter();
            groups.find(|group| link.is(*group))
        });
        let members = groups.flat_map(|group| &group.members);
        let links = si.initiators.iter().chain(members);
        Access::Only(
            links
                .filter_map(|link| IscsiName::parse(&link.key).ok())
                .collect(),
        )
    }

    /// What answers need to know, with the sessions of now.
    pub(super) async fn view(&self, call: &Call) -> Result<View<'_>, ApiError> {
        Ok(View {
            world: self,
            v22: call.is_v22(),
            sessions: self.backend.sessions().await?,
        })
    }

    /// Whether a new object has become available.
    pub(super) fn is_ready(&self, uuid: &str) -> bool {
        let at = self.settling.get(uuid);
        at.is_none_or(|at| *at <= Instant::now())
    }

    /// The node that serves everything.
    pub(super) fn node(&self) -> &str {
        let first = self.catalogue.nodes.first();
        first.map_or("", |node| node.as_str())
    }

    /// A new object takes a while to become available.
    pub(super) fn settle(&mut self, uuid: &str) {
        let now = Instant::now();
        self.settling.retain(|_, at| *at > now);
        if !self.facts.settle.is_zero() {
            self.settling
                .insert(uuid.to_owned(), now + self.facts.settle);
        }
    }

    /// A time that no snapshot has yet, as `seconds.nanoseconds`.
    pub(super) fn timestamp(&mut self) -> String {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let next = self.last_timestamp + Duration::from_nanos(1);
        self.last_timestamp = now.max(next);
        let at = self.last_timestamp;
        format!("{}.{:09}", at.as_secs(), at.subsec_nanos())
    }

    /// Number for the next instance.
    pub(super) fn next_number(&self) -> u64 {
        self.instances
            .last_key_value()
            .map_or(1, |(number, _)| number + 1)
    }

    /// Whether anybody is logged in to a target of the instance.
    pub(super) async fn is_in_use(
        &self,
        instance: &AppInstance,
        only: Option<&str>,
    ) -> Result<bool, ApiError> {
        let sessions = self.backend.sessions().await?;
        Ok(instance
            .storage_instances
            .iter()
            .filter(|si| only.is_none_or(|name| name == si.name))
            .any(|si| sessions.contains_key(&si.iqn)))
    }
}

/// A new random uuid.
pub(super) fn new_uuid() -> String {
    uuid::Builder::from_random_bytes(random())
        .into_uuid()
        .to_string()
}

/// A new target name.
pub(super) fn new_iqn() -> String {
    let digits = u64::from_be_bytes(random());
    format!("{IQN_PREFIX}{digits:016x}")
}

/// Random bytes.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes once it has started");
    bytes
}

/// The limits of a volume as the portals take them: bytes, where the fabric counts KiB.
fn limits(performance: Option<Performance>, burst: Duration) -> Limits {
    let Some(limits) = performance else {
        return Limits::default();
    };
    let rate = |operations, kib: u64| Rate {
        operations,
        bytes: kib * 1024,
    };
    Limits {
        total: rate(limits.total_iops_max, limits.total_bandwidth_max),
        read: rate(limits.read_iops_max, limits.read_bandwidth_max),
        write: rate(limits.write_iops_max, limits.write_bandwidth_max),
        burst,
    }
}

/// What the initiator presents is in `target_*`, what the target proves itself by in `initiator_*`.
fn target_auth(auth: &Auth) -> TargetAuth {
    let account = |user: &str, password: &Option<super::model::Password>| {
        let password = password.as_ref()?;
        Some(Account {
            user: user.to_owned(),
            secret: ChapSecret::new(password.0.expose().as_bytes().to_vec()),
        })
    };
    if auth.kind == AuthKind::None {
        return TargetAuth::None;
    }
    let mutual = match auth.kind {
        AuthKind::Mchap => account(&auth.initiator_user_name, &auth.initiator_pswd),
        _ => None,
    };
    TargetAuth::Chap {
        accounts: account(&auth.target_user_name, &auth.target_pswd)
            .into_iter()
            .collect(),
        mutual,
        algorithms: ChapAlgorithm::STRONGEST_FIRST.to_vec(),
        required: true,
    }
}
