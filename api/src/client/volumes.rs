//! Calls about volumes on the storage fabric.

use std::time::Duration;

use http::{Method, StatusCode};

use super::transport::Outgoing;
use super::{Client, ClientError, MARGIN, escape};
use crate::name::{TargetName, VolumeName};
use crate::types::{
    DeletePolicy, Snapshot, SnapshotList, Template, TemplateList, Volume, VolumeList, VolumePatch,
    VolumeRequest,
};

/// How long a call that needs the fabric may take; the daemon's own limit (`fabric.call_timeout`) is shorter unless it
/// was raised, and knows more.
const FABRIC_TIMEOUT: Duration = Duration::from_secs(300);

impl Client {
    /// The AppTemplates of the fabric, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn templates(&self) -> Result<Vec<Template>, ClientError> {
        let list: TemplateList = self.fabric(Method::GET, "/v1/templates").await?;
        Ok(list.templates)
    }

    /// All volumes on the fabric, by name.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        let list: VolumeList = self.fabric(Method::GET, "/v1/volumes").await?;
        Ok(list.volumes)
    }

    /// One volume on the fabric.
    ///
    /// # Errors
    /// See [`ClientError`]; `not-found`.
    pub async fn volume(&self, name: &VolumeName) -> Result<Volume, ClientError> {
        self.fabric(Method::GET, &format!("/v1/volumes/{name}"))
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
        self.fabric(
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
        let list: SnapshotList = self.fabric(Method::GET, &path).await?;
        Ok(list.snapshots)
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
        self.fabric(Method::POST, &path).await
    }

    async fn fabric<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, ClientError> {
        let outgoing = Outgoing::new(method, path);
        self.call(outgoing, FABRIC_TIMEOUT + MARGIN).await?.json()
    }
}
