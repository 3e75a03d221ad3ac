//! The Identity service: who the driver is, what it can do, whether it is ready.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::Driver;
use super::proto::v1::identity_server::Identity;
use super::proto::v1::plugin_capability::{self, Service, VolumeExpansion, service};
use super::proto::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest,
    GetPluginInfoResponse, PluginCapability, ProbeRequest, ProbeResponse,
};

/// How long the daemon may take to answer a probe: liveness probes wait 3 s and more.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The service.
#[derive(Debug, Clone)]
pub(super) struct IdentityService(pub(super) Arc<Driver>);

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        request: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        let driver = &self.0;
        driver
            .calls
            .answer("GetPluginInfo", request, |_, _| async {
                Ok(GetPluginInfoResponse {
                    name: driver.settings.driver_name.clone(),
                    vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
                    manifest: HashMap::new(),
                })
            })
            .await
    }

    async fn get_plugin_capabilities(
        &self,
        request: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let driver = &self.0;
        // The same from every instance, whatever it serves.
        let mut services = vec![service::Type::ControllerService];
        if !driver.settings.topology.is_empty() {
            services.push(service::Type::VolumeAccessibilityConstraints);
        }
        let services = services.into_iter().map(|service| {
            plugin_capability::Type::Service(Service {
                r#type: service.into(),
            })
        });
        let expansion = plugin_capability::Type::VolumeExpansion(VolumeExpansion {
            r#type: plugin_capability::volume_expansion::Type::Online.into(),
        });
        let capabilities = services
            .chain([expansion])
            .map(|kind| PluginCapability { r#type: Some(kind) })
            .collect();
        driver
            .calls
            .answer("GetPluginCapabilities", request, |_, _| async {
                Ok(GetPluginCapabilitiesResponse { capabilities })
            })
            .await
    }

    /// Ready when the daemon answers. Never an error: a probe that fails has the driver restarted, which brings no daemon back.
    async fn probe(
        &self,
        request: Request<ProbeRequest>,
    ) -> Result<Response<ProbeResponse>, Status> {
        self.0
            .calls
            .answer("Probe", request, |call, _| async move {
                let node = call.client.with_timeout(PROBE_TIMEOUT).node().await;
                if let Err(error) = &node {
                    tracing::warn!(%error, "berthd does not answer");
                }
                Ok(ProbeResponse {
                    ready: Some(node.is_ok()),
                })
            })
            .await
    }
}
