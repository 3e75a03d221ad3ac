//! Making the driver known to kubelet, without a registrar beside it.
//!
//! kubelet watches its folder `plugins_registry`, asks each new socket there who it is, and takes the driver into use. When the socket
//! goes, so does the registration.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Driver;
use super::proto::registration::registration_server::Registration;
use super::proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};

/// What kubelet calls a driver of this kind.
const TYPE: &str = "CSIPlugin";
/// Version of the interface, as kubelet compares it.
const VERSION: &str = "1.0.0";

/// The service on the registration socket.
#[derive(Debug, Clone)]
pub(super) struct RegistrationService {
    driver: Arc<Driver>,
    endpoint: String,
    refused: watch::Sender<bool>,
}

impl RegistrationService {
    /// Tells of the driver at `endpoint`; says in `refused` when kubelet does not take it.
    pub(super) fn new(driver: Arc<Driver>, endpoint: String, refused: watch::Sender<bool>) -> Self {
        Self {
            driver,
            endpoint,
            refused,
        }
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(
        &self,
        request: Request<InfoRequest>,
    ) -> Result<Response<PluginInfo>, Status> {
        let info = PluginInfo {
            r#type: TYPE.to_owned(),
            name: self.driver.settings.driver_name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec![VERSION.to_owned()],
        };
        let answer = |_, _| async { Ok(info) };
        self.driver.calls.answer("GetInfo", request, answer).await
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let refused = self.refused.clone();
        let answer = |_, status: RegistrationStatus| async move {
            if status.plugin_registered {
                tracing::info!("kubelet has taken the driver into use");
            } else {
                tracing::error!(reason = status.error, "kubelet does not take the driver");
                refused.send_replace(true);
            }
            Ok(RegistrationStatusResponse {})
        };
        self.driver
            .calls
            .answer("NotifyRegistrationStatus", request, answer)
            .await
    }
}
