//! Calls about volumes on the storage fabric.

use std::time::Duration;

use http::{Method, StatusCode};

use super::transport::Outgoing;
use super::{Client, ClientError, MARGIN, escape};
use crate::name::{TargetName, VolumeName};
use crate::types::{
    DeletePolicy, FabricStatus, PageRequest, Snapshot, SnapshotList, Template, TemplateList,
    Volume, VolumeList, VolumePatch, VolumeRequest,
};

/// How long a call that needs the fabric may take; the daemon's own limit (`fabric.call_timeout`) is shorter unless it
/// was raised, and knows more.
const FABRIC_TIMEOUT: Duration = Duration::from_secs(300);

impl Client {
    /// How the fabric is. One that does not answer is told of, and no error.
    ///
    /// # Errors
    /// See [`ClientError`]; `not-implemented` without a fabric.
    pub async fn fabric(&self) -> Result<FabricStatus, ClientError> {
        self.fetch(Method::GET, "/v1/fabric").await
    }

    /// The AppTemplates of the fabric, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        let list: TemplateList = self.fetch(Method::GET, "/v1/templates").await?;
        Ok(list.templates)
    }

    /// All volumes on the fabric, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        let list: VolumeList = self.fetch(Method::GET, "/v1/volumes").await?;
        Ok(list.volumes)
    }

    /// A page of the volumes on the fabric, by name; `next` leads to the one behind it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn volumes_page(&self, page: &PageRequest) -> Result<VolumeList, ClientError> {
        let path = format!("/v1/volumes{}", query(page));
        self.fetch(Method::GET, &path).await
    }

    /// One volume on the fabric.
    ///
    /// # Errors
    /// See [`ClientError`]; `not-found`.
    pub async fn volume(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.fetch(Method::GET, &format!("/v1/volumes/{name}"))
            .await
    }

    /// Makes a volume, and returns when it is available; `true` when this call made it.
    ///
    /// # Errors
    /// See [`ClientError`]; repeat the call after a timeout.
    pub async fn create_volume(
        &self,
        name: &VolumeName,
        request: &VolumeRequest,
    ) -> Result<(Volume, bool), ClientError> {
        let outgoing = Outgoing::new(Method::PUT, format!("/v1/volumes/{name}")).body(request);
        let answer = self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?;
        Ok((answer.json()?, answer.status == StatusCode::CREATED))
    }

    /// Changes a volume while it is in use.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn change_volume(
        &self,
        name: &VolumeName,
        patch: &VolumePatch,
    ) -> Result<Volume, ClientError> {
        let outgoing = Outgoing::new(Method::PATCH, format!("/v1/volumes/{name}")).body(patch);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?.json()
    }

    /// Takes a volume away; without a policy as the daemon is configured.
    ///
    /// # Errors
    /// See [`ClientError`]; `in-use`.
    pub async fn delete_volume(
        &self,
        name: &VolumeName,
        policy: Option<DeletePolicy>,
        with_snapshots: bool,
    ) -> Result<(), ClientError> {
        let policy = match policy {
            None => "",
            Some(DeletePolicy::Delete) => "&policy=delete",
            Some(DeletePolicy::Retain) => "&policy=retain",
        };
        let path = format!("/v1/volumes/{name}?snapshots={with_snapshots}{policy}");
        let outgoing = Outgoing::new(Method::DELETE, path);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?;
        Ok(())
    }

    /// Admits an initiator to a volume.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn grant(
        &self,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<Volume, ClientError> {
        let initiator = escape(initiator.as_str());
        self.fetch(
            Method::PUT,
            &format!("/v1/volumes/{name}/access/{initiator}"),
        )
        .await
    }

    /// Does not admit an initiator any more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(
        &self,
        name: &VolumeName,
        initiator: &TargetName,
    ) -> Result<(), ClientError> {
        let initiator = escape(initiator.as_str());
        let path = format!("/v1/volumes/{name}/access/{initiator}");
        let outgoing = Outgoing::new(Method::DELETE, path);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?;
        Ok(())
    }

    /// Snapshots of a volume, oldest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn snapshots(&self, name: &VolumeName) -> Result<Vec<Snapshot>, ClientError> {
        let path = format!("/v1/volumes/{name}/snapshots");
        let list: SnapshotList = self.fetch(Method::GET, &path).await?;
        Ok(list.snapshots)
    }

    /// Snapshots of all volumes, by volume and then by age.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn all_snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        let list = self.snapshots_page(&PageRequest::default()).await?;
        Ok(list.snapshots)
    }

    /// A page of the snapshots of all volumes; `next` leads to the one behind it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn snapshots_page(&self, page: &PageRequest) -> Result<SnapshotList, ClientError> {
        let path = format!("/v1/snapshots{}", query(page));
        self.fetch(Method::GET, &path).await
    }

    /// Takes a snapshot under this name, or finds it; `true` when this call took it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn take_snapshot(
        &self,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(Snapshot, bool), ClientError> {
        let path = format!("/v1/volumes/{name}/snapshots/{}", escape(snapshot));
        let outgoing = Outgoing::new(Method::PUT, path);
        let answer = self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?;
        Ok((answer.json()?, answer.status == StatusCode::CREATED))
    }

    /// Takes a snapshot away.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn delete_snapshot(
        &self,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/volumes/{name}/snapshots/{}", escape(snapshot));
        let outgoing = Outgoing::new(Method::DELETE, path);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?;
        Ok(())
    }

    /// Puts a volume back to what a snapshot holds.
    ///
    /// # Errors
    /// See [`ClientError`]; `in-use`.
    pub async fn restore_snapshot(
        &self,
        name: &VolumeName,
        snapshot: &str,
    ) -> Result<Volume, ClientError> {
        let path = format!("/v1/volumes/{name}/snapshots/{}/restore", escape(snapshot));
        self.fetch(Method::POST, &path).await
    }

    async fn fetch<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let outgoing = Outgoing::new(method, path);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?.json()
    }
}

/// A page as the query of a path.
fn query(page: &PageRequest) -> String {
    let after = page
        .after
        .as_ref()
        .map(|after| format!("after={}", escape(after)));
    let limit = page.limit.map(|limit| format!("limit={limit}"));
    let parts: Vec<String> = after.into_iter().chain(limit).collect();
    if parts.is_empty() {
        return String::new();
    }
    format!("?{}", parts.join("&"))
}
