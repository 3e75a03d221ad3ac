//! SendTargets for the API.

use std::sync::Arc;

use berth_api::types::{Digests, DiscoveredPortal, DiscoveredTarget, Discovery, DiscoveryRequest};
use berth_api::{Error, Portal};
use berth_iscsi::login::SessionKind;
use berth_iscsi::net;
use berth_iscsi::types::Isid;

use crate::initiator::{self, Initiator};
use crate::plane::DataPlane;
use crate::volume::failure;

/// Asks portals for their targets.
pub struct Discoverer {
    initiator: Arc<Initiator>,
    plane: Arc<DataPlane>,
}

impl Discoverer {
    /// A discoverer that logs in as `initiator`.
    #[must_use]
    pub fn new(initiator: Arc<Initiator>, plane: Arc<DataPlane>) -> Self {
        Self { initiator, plane }
    }

    /// Asks a portal, within the request's timeout.
    ///
    /// # Errors
    /// What the portal gives reason for.
    pub async fn discover(&self, request: DiscoveryRequest) -> Result<Discovery, Error> {
        let mut random = [0; 5];
        getrandom::fill(&mut random).map_err(|error| Error::internal(error.to_string()))?;
        let [a, b, c, d, e] = random;
        let isid = Isid::random([a, b, c], u16::from_be_bytes([d, e]));
        let auth = request.auth.as_ref();
        let digests = Digests::default();
        let login = self
            .initiator
            .login(SessionKind::Discovery, isid, auth, digests);
        let options = self.initiator.connect_options(request.timeout());
        let asked = initiator::portal(&request.portal);
        // Sessions live on the data plane, this one too.
        let place = self.plane.place();
        let discover = place.thread().run(move || async move {
            net::discover(&net::TcpNetwork, &asked, login, &options).await
        });
        let found = tokio::time::timeout(request.timeout(), discover)
            .await
            .map_err(|_| failure::deadline(request.timeout()))?
            .map_err(Error::internal)?
            .map_err(|error| failure::from_connect(error, "of a discovery session"))?;
        Ok(Discovery {
            portal: request.portal.clone(),
            targets: targets(found, &request.portal),
        })
    }
}

/// What was found, in the types of the API. What the API cannot name is left out and logged.
fn targets(found: berth_iscsi::discovery::Discovered, asked: &Portal) -> Vec<DiscoveredTarget> {
    for refused in &found.refused {
        tracing::warn!(portal = %asked, %refused, "a discovered target or address is left out");
    }
    found
        .targets
        .into_iter()
        .filter_map(|target| {
            let name = target.name.as_str().parse().ok()?;
            let mut portals: Vec<_> = target
                .addresses
                .iter()
                .filter_map(|address| {
                    Some(DiscoveredPortal {
                        address: address.portal.to_string().parse().ok()?,
                        portal_group_tag: address.tpgt.unwrap_or(0),
                    })
                })
                .collect();
            if portals.is_empty() {
                // No address means the one that was asked (RFC 7143 Appendix C).
                portals.push(DiscoveredPortal {
                    address: asked.clone(),
                    portal_group_tag: 0,
                });
            }
            Some(DiscoveredTarget {
                target: name,
                portals,
            })
        })
        .collect()
}
