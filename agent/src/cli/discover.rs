//! `discover`.

use berth_api::client::Client;
use berth_api::types::DiscoveryRequest;

use super::error::Failure;
use super::output::{Output, table};
use super::{args, secret};

pub(super) async fn run(
    client: &Client,
    output: &Output,
    arguments: args::Discover,
) -> Result<(), Failure> {
    let mut request = DiscoveryRequest::new(arguments.portal);
    request.auth = secret::auth(&arguments.chap)?;
    request.timeout_seconds = arguments.timeout;
    let found = client.discover(&request).await?;
    if output.is_json() {
        return output.json(&found);
    }
    if found.targets.is_empty() {
        eprintln!("{} offers no targets to this node", found.portal);
        return Ok(());
    }
    let rows = found.targets.iter().flat_map(|target| {
        target.portals.iter().map(|portal| {
            vec![
                target.target.to_string(),
                portal.address.to_string(),
                portal.portal_group_tag.to_string(),
            ]
        })
    });
    output.text(&table(&["TARGET", "PORTAL", "GROUP"], &[2], rows.collect()))
}
