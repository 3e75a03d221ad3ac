//! New objects, from bodies, templates and what is cloned.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::super::answer::ApiError;
use super::super::body::{
    AclPolicy, ChangedAuth, LooseReference, NewStorageInstance, NewStorageTemplate, NewVolume,
};
use super::super::check::Problems;
use super::super::model::{
    AccessMode, AppTemplate, Auth, Link, Owned, Placement, StorageInstance, StorageTemplate,
    Volume, VolumeTemplate, visible,
};
use super::super::world::{World, new_iqn, new_uuid};

/// Replicas unless told otherwise.
const REPLICAS: u64 = 3;
/// Medium unless told otherwise.
const PLACEMENT: &str = "hybrid";
/// The pool that always exists.
pub(in super::super) const DEFAULT_POOL: &str = "default";
/// LUNs of a target.
const LUNS_MAX: u16 = 255;

/// Data files to make before an object that names them is stored.
#[derive(Debug, Default)]
pub(super) struct Files {
    new: Vec<(String, u64)>,
    copies: Vec<(String, String)>,
}

impl Files {
    /// A new file that is one hole; gives its name.
    pub(super) fn create(&mut self, size_gib: u64) -> String {
        let name = new_uuid();
        self.new.push((name.clone(), size_gib));
        name
    }

    /// A copy of a file; gives its name. All copies are of one moment.
    pub(super) fn copy(&mut self, from: &str) -> String {
        let name = new_uuid();
        self.copies.push((from.to_owned(), name.clone()));
        name
    }

    /// Makes them all, or none.
    pub(super) async fn make(self, world: &World) -> Result<(), ApiError> {
        let result = self.try_make(world).await;
        if result.is_err() {
            let copies = self.copies.iter().map(|(_, to)| to);
            for name in self.new.iter().map(|(name, _)| name).chain(copies) {
                let _ = world.data.remove(name);
            }
        }
        result
    }

    async fn try_make(&self, world: &World) -> Result<(), ApiError> {
        for (name, size_gib) in &self.new {
            let bytes = size_gib * super::super::model::GIB;
            world.data.create(name, bytes)?;
        }
        if !self.copies.is_empty() {
            world.backend.copy(self.copies.clone()).await?;
        }
        Ok(())
    }
}

/// Looks up what objects of `tenant` name.
pub(super) struct Builder<'a> {
    pub(super) world: &'a World,
    pub(super) tenant: &'a str,
    pub(super) v22: bool,
    pub(super) problems: Problems,
    pub(super) files: Files,
}

impl<'a> Builder<'a> {
    pub(super) fn new(world: &'a World, tenant: &'a str, v22: bool) -> Self {
        Self {
            world,
            tenant,
            v22,
            problems: Problems::default(),
            files: Files::default(),
        }
    }

    /// What is at fault, if anything is; else the files to make.
    pub(super) fn finish(self) -> Result<Files, ApiError> {
        self.problems.into_result()?;
        Ok(self.files)
    }

    fn link<T: Owned>(
        &self,
        items: &[T],
        what: &str,
        folder: &str,
        path: &str,
    ) -> Result<Link, ApiError> {
        path.strip_prefix(folder)
            .and_then(|rest| rest.strip_prefix('/'))
            .and_then(|key| visible(items, self.tenant, key))
            .map(Link::to)
            .ok_or_else(|| ApiError::not_found(what, path))
    }

    pub(super) fn initiator(&self, path: &str) -> Result<Link, ApiError> {
        let items = &self.world.catalogue.initiators;
        self.link(items, "Initiator", "/initiators", path)
    }

    pub(super) fn group(&self, path: &str) -> Result<Link, ApiError> {
        let items = &self.world.catalogue.groups;
        self.link(items, "Initiator group", "/initiator_groups", path)
    }

    pub(super) fn pool(&self, path: &str) -> Result<Link, ApiError> {
        let items = &self.world.catalogue.pools;
        self.link(items, "IP pool", "/access_network_ip_pools", path)
    }

    pub(super) fn template(&self, path: &str) -> Result<&'a AppTemplate, ApiError> {
        let key = path.strip_prefix("/app_templates/").unwrap_or(path);
        visible(&self.world.catalogue.templates, self.tenant, key)
            .ok_or_else(|| ApiError::not_found("App template", path))
    }

    /// Placement of a volume; a policy needs 3.3.0.0.
    pub(super) fn placement(
        &mut self,
        at: &str,
        mode: Option<String>,
        policy: Option<&LooseReference>,
    ) -> Result<Placement, ApiError> {
        let known = self.v22 && self.world.is_33();
        self.problems
            .only_v22(known, "placement_policy", policy.is_some());
        let mode = mode.unwrap_or_else(|| PLACEMENT.to_owned());
        self.problems
            .placement_mode(&format!("{at}placement_mode"), &mode);
        let policy = match policy {
            Some(policy) if known => {
                let items = &self.world.catalogue.placement_policies;
                let folder = "/placement_policies";
                Some(self.link(items, "Placement policy", folder, policy.path())?)
            }
            _ => None,
        };
        Ok(Placement { mode, policy })
    }

    /// The lists of an access policy over those that were there.
    pub(super) fn acl(&self, si: &mut StorageInstance, policy: AclPolicy) -> Result<(), ApiError> {
        if let Some(list) = policy.initiators {
            let links = list.iter().map(|item| self.initiator(&item.path));
            si.initiators = unique(links.collect::<Result<_, _>>()?);
        }
        if let Some(list) = policy.initiator_groups {
            let links = list.iter().map(|item| self.group(&item.path));
            si.initiator_groups = unique(links.collect::<Result<_, _>>()?);
        }
        Ok(())
    }

    /// A storage instance of a body. `uuid` is for its volumes.
    pub(super) fn storage_instance(
        &mut self,
        body: NewStorageInstance,
        at: &str,
        access: AccessMode,
        uuid: Option<&str>,
    ) -> Result<StorageInstance, ApiError> {
        self.problems.name(&format!("{at}name"), &body.name);
        let service = body.service_configuration;
        self.problems
            .only_v22(self.v22, "service_configuration", service.is_some());
        if let Some(service) = service {
            self.problems
                .one_of(&format!("{at}service_configuration"), &service, &["iscsi"]);
        }
        let default = format!("/access_network_ip_pools/{DEFAULT_POOL}");
        let pool = body.ip_pool.map_or(default, |pool| pool.path);
        let mut si = self.blank(body.name, self.pool(&pool)?, access);
        si.admin_state = body.admin_state.unwrap_or_default();
        si.access_control_mode = body.access_control_mode.unwrap_or(access);
        self.auth(&mut si.auth, body.auth.unwrap_or_default(), at);
        self.acl(&mut si, body.acl_policy.unwrap_or_default())?;
        for (index, volume) in body.volumes.into_iter().enumerate() {
            let at = format!("{at}volumes[{index}].");
            let volume = self.volume(volume, &at, uuid)?;
            self.add_volume(&mut si, volume, &at);
        }
        Ok(si)
    }

    fn blank(&self, name: String, ip_pool: Link, access: AccessMode) -> StorageInstance {
        StorageInstance {
            name,
            uuid: new_uuid(),
            iqn: new_iqn(),
            admin_state: super::super::model::AdminState::Online,
            access_control_mode: access,
            initiators: Vec::new(),
            initiator_groups: Vec::new(),
            ip_pool,
            auth: Auth::default(),
            volumes: Vec::new(),
            metadata: serde_json::Map::new(),
        }
    }

    /// Credentials over those that were there.
    pub(super) fn auth(&mut self, auth: &mut Auth, change: ChangedAuth, at: &str) {
        if let Some(kind) = change.kind {
            auth.kind = kind;
        }
        for (is, wanted) in [
            (&mut auth.initiator_user_name, change.initiator_user_name),
            (&mut auth.target_user_name, change.target_user_name),
        ] {
            if let Some(wanted) = wanted {
                *is = wanted;
            }
        }
        for (is, wanted) in [
            (&mut auth.initiator_pswd, change.initiator_pswd),
            (&mut auth.target_pswd, change.target_pswd),
        ] {
            if wanted.is_some() {
                // An empty one takes the password away.
                *is = wanted.filter(|password| !password.0.is_empty());
            }
        }
        self.problems.auth(&format!("{at}auth"), auth);
    }

    /// Gives a new volume the lowest LUN that is free.
    pub(super) fn add_volume(&mut self, si: &mut StorageInstance, mut volume: Volume, at: &str) {
        let twice = si.volumes.iter().any(|v| v.name == volume.name);
        self.problems.check(!twice, || {
            format!("{at}name: {:?} is there twice", volume.name)
        });
        let used = |lun: &u16| si.volumes.iter().any(|v| v.lun == *lun);
        let lun = (0..=LUNS_MAX).find(|lun| !used(lun));
        self.problems.check(lun.is_some(), || {
            format!(
                "volumes: a storage instance has at most {} of them",
                LUNS_MAX + 1
            )
        });
        volume.lun = lun.unwrap_or_default();
        si.volumes.push(volume);
        si.volumes.sort_by_key(|volume| volume.lun);
    }

    /// A volume of a body, without a LUN yet.
    pub(super) fn volume(
        &mut self,
        body: NewVolume,
        at: &str,
        uuid: Option<&str>,
    ) -> Result<Volume, ApiError> {
        self.problems.size(&format!("{at}size"), body.size);
        self.problems
            .only_v22(self.v22, "force", body.force.is_some());
        let template = self.volume_template(body, at)?;
        let size_gib = template.size_gib;
        let data = self.files.create(size_gib);
        Ok(volume_of(template, data, size_gib, uuid))
    }

    /// A volume template of a body.
    fn volume_template(&mut self, body: NewVolume, at: &str) -> Result<VolumeTemplate, ApiError> {
        self.problems.name(&format!("{at}name"), &body.name);
        let replica_count = body.replica_count.unwrap_or(REPLICAS);
        self.problems
            .replicas(&format!("{at}replica_count"), replica_count);
        let placement = self.placement(at, body.placement_mode, body.placement_policy.as_ref())?;
        if let Some(limits) = &body.performance_policy {
            self.problems
                .performance(&format!("{at}performance_policy"), limits);
        }
        let snapshot_policies = body.snapshot_policies.unwrap_or_default();
        self.problems
            .snapshot_policies(&format!("{at}snapshot_policies"), &snapshot_policies);
        Ok(VolumeTemplate {
            name: body.name,
            size_gib: body.size,
            replica_count,
            placement,
            performance: body.performance_policy,
            snapshot_policies,
        })
    }

    /// A storage template of a body.
    pub(super) fn storage_template(
        &mut self,
        body: NewStorageTemplate,
        at: &str,
    ) -> Result<StorageTemplate, ApiError> {
        self.problems.name(&format!("{at}name"), &body.name);
        let default = format!("/access_network_ip_pools/{DEFAULT_POOL}");
        let pool = body.ip_pool.as_ref().map_or(&*default, |pool| pool.path());
        let mut auth = Auth::default();
        self.auth(&mut auth, body.auth.unwrap_or_default(), at);
        let mut volume_templates: Vec<VolumeTemplate> = Vec::new();
        for (index, volume) in body.volume_templates.into_iter().enumerate() {
            let at = format!("{at}volume_templates[{index}].");
            self.problems
                .template_size(&format!("{at}size"), volume.size);
            let twice = volume_templates.iter().any(|vt| vt.name == volume.name);
            self.problems.check(!twice, || {
                format!("{at}name: {:?} is there twice", volume.name)
            });
            volume_templates.push(self.volume_template(volume, &at)?);
        }
        Ok(StorageTemplate {
            name: body.name,
            auth,
            ip_pool: self.pool(pool)?,
            volume_templates,
        })
    }

    /// The storage instances of a template.
    pub(super) fn instantiate(
        &mut self,
        template: &AppTemplate,
        changes: Option<&Value>,
        access: AccessMode,
        uuid: Option<&str>,
    ) -> Result<Vec<StorageInstance>, ApiError> {
        let mut changes = match changes {
            Some(value) => TemplateOverride::deserialize(value).map_err(|error| {
                ApiError::validation(vec![format!("template_override: {error}")])
            })?,
            None => TemplateOverride::default(),
        };
        let mut made = Vec::new();
        for st in &template.storage_templates {
            let mut si = self.blank(st.name.clone(), st.ip_pool.clone(), access);
            si.auth = st.auth.clone();
            let mut volumes = changes
                .storage_instances
                .remove(&st.name)
                .unwrap_or_default()
                .volumes;
            for vt in &st.volume_templates {
                let mut vt = vt.clone();
                if let Some(change) = volumes.remove(&vt.name) {
                    self.change(&mut vt, change)?;
                }
                let (size_gib, data) = (vt.size_gib, self.files.create(vt.size_gib));
                let volume = volume_of(vt, data, size_gib, uuid);
                self.add_volume(&mut si, volume, "");
            }
            for name in volumes.into_keys() {
                self.unknown_part("volume", &name, template);
            }
            made.push(si);
        }
        for name in changes.storage_instances.into_keys() {
            self.unknown_part("storage instance", &name, template);
        }
        Ok(made)
    }

    fn unknown_part(&mut self, what: &str, name: &str, template: &AppTemplate) {
        self.problems.check(false, || {
            format!(
                "template_override: {} has no {what} {name:?}",
                template.name
            )
        });
    }

    fn change(&mut self, vt: &mut VolumeTemplate, change: VolumeOverride) -> Result<(), ApiError> {
        let at = "template_override.";
        if let Some(size) = change.size {
            match size.parse() {
                Some(gib) => {
                    self.problems.size(&format!("{at}size"), gib);
                    vt.size_gib = gib;
                }
                None => self
                    .problems
                    .check(false, || format!("{at}size: it is no whole number of GiB")),
            }
        }
        if let Some(count) = change.replica_count.and_then(|count| count.parse()) {
            self.problems.replicas(&format!("{at}replica_count"), count);
            vt.replica_count = count;
        }
        if change.placement_mode.is_some() || change.placement_policy.is_some() {
            vt.placement =
                self.placement(at, change.placement_mode, change.placement_policy.as_ref())?;
        }
        Ok(())
    }

    /// A volume with the bytes of another one or of a snapshot of it.
    pub(super) fn clone_of(
        &mut self,
        source: &Volume,
        data: &str,
        size_gib: u64,
        uuid: Option<&str>,
    ) -> Volume {
        let template = VolumeTemplate {
            name: source.name.clone(),
            size_gib,
            replica_count: source.replica_count,
            placement: source.placement.clone(),
            performance: source.performance,
            snapshot_policies: Vec::new(),
        };
        let data = self.files.copy(data);
        volume_of(template, data, size_gib, uuid)
    }

    /// A storage instance like another one: its pool and CHAP, not its access list or name as a target.
    pub(super) fn like(&self, source: &StorageInstance) -> StorageInstance {
        let mut si = self.blank(
            source.name.clone(),
            source.ip_pool.clone(),
            AccessMode::DenyAll,
        );
        si.auth = source.auth.clone();
        si
    }
}

fn volume_of(template: VolumeTemplate, data: String, size_gib: u64, uuid: Option<&str>) -> Volume {
    Volume {
        name: template.name,
        lun: 0,
        uuid: uuid.map_or_else(new_uuid, str::to_owned),
        size_gib,
        data,
        replica_count: template.replica_count,
        placement: template.placement,
        performance: template.performance,
        snapshot_policies: template.snapshot_policies,
        snapshots: Vec::new(),
        restore_point: None,
    }
}

fn unique(links: Vec<Link>) -> Vec<Link> {
    let mut kept: Vec<Link> = Vec::new();
    for link in links {
        if !kept.contains(&link) {
            kept.push(link);
        }
    }
    kept
}

/// What an instance has other than its template says; objects by name, sizes as text.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TemplateOverride {
    #[serde(default)]
    storage_instances: BTreeMap<String, StorageOverride>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageOverride {
    #[serde(default)]
    volumes: BTreeMap<String, VolumeOverride>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VolumeOverride {
    size: Option<TextOrNumber>,
    replica_count: Option<TextOrNumber>,
    placement_mode: Option<String>,
    placement_policy: Option<LooseReference>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(u64),
}

impl TextOrNumber {
    fn parse(&self) -> Option<u64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(*number),
        }
    }
}
