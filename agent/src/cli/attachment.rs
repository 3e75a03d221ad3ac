//! `attach`, `detach`, `list` and `show`.

use std::time::Duration;

use berth_api::client::{Client, Started};
use berth_api::types::{
    AttachRequest, Attachment, AttachmentList, AttachmentPatch, Digests, FabricSource, IscsiPatch,
    IscsiSource, Operation, PathState, Source, SourcePatch, SourceSummary, VolumeRequest,
};
use berth_api::{AttachmentName, Portal};

use super::args;
use super::error::Failure;
use super::output::{Output, age, or_dash, size, table};
use super::{secret, show};

pub(super) async fn attach(
    client: &Client,
    output: &Output,
    arguments: args::Attach,
) -> Result<(), Failure> {
    let name = arguments.name.clone();
    let mut request = AttachRequest::new(source(&arguments)?);
    request.device = arguments.device.into();
    request.read_only = arguments.read_only;
    request.digests = Digests {
        header: arguments.header_digest.into(),
        data: arguments.data_digest.into(),
    };
    request.fence = arguments.fence.into();
    request.takeover = arguments.takeover;
    request.recovery_timeout_seconds = arguments.recovery_timeout;
    request.attach_timeout_seconds = arguments.timeout;
    let attached = if arguments.no_wait {
        match client
            .attach_within(&name, &request, Duration::ZERO)
            .await?
        {
            Started::Running(operation) => return started(output, &operation),
            Started::Done(attached) => attached,
        }
    } else {
        client.attach(&name, &request).await?
    };
    let attachment = attached.attachment;
    if output.is_json() {
        return output.json(&attachment);
    }
    let how = if attached.created {
        ""
    } else {
        ", as it was before"
    };
    let mut lines = format!(
        "{} is {}{how}\n",
        output.bold(name.as_str()),
        output.state(attachment.state)
    );
    if let Some(device) = &attachment.device {
        lines.push_str(&format!("  device  {device}\n"));
    }
    if let Some(uri) = &attachment.nbd_uri {
        lines.push_str(&format!("  nbd     {uri}\n"));
    }
    if let Some(bytes) = attachment.size_bytes {
        lines.push_str(&format!("  size    {}\n", size(bytes)));
    }
    output.text(&lines)
}

/// Where the volume comes from: a target, or the fabric.
fn source(arguments: &args::Attach) -> Result<Source, Failure> {
    let auth = secret::auth(&arguments.chap)?;
    if let Some(volume) = &arguments.volume {
        let create = arguments.create_size.is_some() || arguments.create_template.is_some();
        let create = create.then(|| {
            Box::new(VolumeRequest {
                size_bytes: arguments.create_size,
                template: arguments.create_template.clone(),
                replicas: arguments.create_replicas,
                ..VolumeRequest::default()
            })
        });
        return Ok(Source::Fabric(FabricSource {
            unit: arguments.unit.clone(),
            create,
            auth,
            grant: !arguments.no_grant,
            revoke_on_detach: arguments.revoke_on_detach,
            ..FabricSource::new(volume.clone())
        }));
    }
    let (Some(target), Some(lun)) = (&arguments.target, arguments.lun) else {
        let wrong = "give --portal, --target and --lun, or --volume";
        return Err(Failure::Usage(wrong.to_owned()));
    };
    Ok(Source::Iscsi(IscsiSource {
        portals: arguments.portals.clone(),
        target: target.clone(),
        lun,
        auth,
    }))
}

pub(super) async fn set(
    client: &Client,
    output: &Output,
    arguments: args::Set,
) -> Result<(), Failure> {
    let name = arguments.name;
    let mut patch = AttachmentPatch {
        recovery_timeout_seconds: arguments.recovery_timeout.map(|timeout| timeout.0),
        source: None,
    };
    if !arguments.add_portals.is_empty() || !arguments.remove_portals.is_empty() {
        let SourceSummary::Iscsi(now) = client.attachment(&name).await?.source else {
            let wrong =
                format!("{name} is a volume of the fabric, which says where its portals are");
            return Err(Failure::Usage(wrong));
        };
        let portals = changed_portals(
            now.portals,
            &arguments.add_portals,
            &arguments.remove_portals,
        )
        .map_err(|wrong| Failure::Usage(format!("{name} {wrong}")))?;
        patch.source = Some(SourcePatch::Iscsi(IscsiPatch { portals }));
    }
    let attachment = client.change(&name, &patch).await?;
    if output.is_json() {
        return output.json(&attachment);
    }
    output.text(&show::page(&attachment, output))
}

/// The portals after a change; or what is wrong with it.
fn changed_portals(
    mut portals: Vec<Portal>,
    add: &[Portal],
    remove: &[Portal],
) -> Result<Vec<Portal>, String> {
    if let Some(portal) = remove.iter().find(|portal| !portals.contains(portal)) {
        return Err(format!("has no portal {portal}"));
    }
    portals.retain(|portal| !remove.contains(portal));
    for portal in add {
        if !portals.contains(portal) {
            portals.push(portal.clone());
        }
    }
    if portals.is_empty() {
        return Err("would have no portal left; add another one, or detach it".to_owned());
    }
    Ok(portals)
}

pub(super) async fn detach(
    client: &Client,
    output: &Output,
    arguments: &args::Detach,
) -> Result<(), Failure> {
    let name = &arguments.name;
    if arguments.no_wait {
        let wait = Duration::ZERO;
        if let Started::Running(operation) =
            client.detach_within(name, arguments.force, wait).await?
        {
            return started(output, &operation);
        }
    } else {
        client.detach(name, arguments.force).await?;
    }
    if output.is_json() {
        return Ok(());
    }
    output.text(&format!("{} is detached", output.bold(name.as_str())))
}

fn started(output: &Output, operation: &Operation) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(operation);
    }
    output.text(&format!(
        "{} of {} is under way (operation {}); \"berthctl show {}\" tells how it goes",
        operation.kind.as_str(),
        output.bold(operation.attachment.as_str()),
        operation.id,
        operation.attachment
    ))
}

pub(super) async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let attachments = client.attachments().await?;
    if output.is_json() {
        return output.json(&AttachmentList { attachments });
    }
    if attachments.is_empty() {
        // Not in the output: a script that counts lines must find none.
        eprintln!("nothing is attached");
        return Ok(());
    }
    output.text(&listing(&attachments, output.is_wide()))
}

fn listing(attachments: &[Attachment], wide: bool) -> String {
    let mut header = vec![
        "NAME", "STATE", "SIZE", "DEVICE", "TARGET", "LUN", "PATHS", "SINCE",
    ];
    if wide {
        header.extend(["CLIENTS", "IDENTITY", "NBD"]);
    }
    let rows = attachments.iter().map(|attachment| {
        let source = attachment.source.iscsi();
        let mut row = vec![
            attachment.name.to_string(),
            attachment.state.to_string(),
            or_dash(attachment.size_bytes.map(size)),
            or_dash(attachment.device.as_ref()),
            or_dash(source.map(|source| &source.target)),
            or_dash(source.map(|source| source.lun)),
            paths_up(attachment),
            age(attachment.since_unix_ms),
        ];
        if wide {
            row.extend([
                attachment.nbd_clients.to_string(),
                or_dash(attachment.identity.as_ref().and_then(show::identity)),
                or_dash(attachment.nbd_uri.as_ref()),
            ]);
        }
        row
    });
    table(&header, &[2, 5, 6], rows.collect())
}

/// How many paths work, of how many.
fn paths_up(attachment: &Attachment) -> String {
    let up = |path: &&berth_api::types::Path| path.state == PathState::Up;
    let count = attachment.paths.iter().filter(up).count();
    format!("{count}/{}", attachment.paths.len())
}

pub(super) async fn show(
    client: &Client,
    output: &Output,
    name: &AttachmentName,
) -> Result<(), Failure> {
    let attachment = client.attachment(name).await?;
    if output.is_json() {
        return output.json(&attachment);
    }
    output.text(&show::page(&attachment, output))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portals_are_added_and_removed() {
        let portal = |n: u8| -> Portal { format!("192.0.2.{n}").parse().unwrap() };
        let now = || vec![portal(1), portal(2)];
        let changed = |add: &[u8], remove: &[u8]| {
            let all = |numbers: &[u8]| numbers.iter().copied().map(portal).collect::<Vec<_>>();
            changed_portals(now(), &all(add), &all(remove))
        };
        assert_eq!(changed(&[3, 1], &[2]), Ok(vec![portal(1), portal(3)]));
        assert_eq!(changed(&[], &[]), Ok(now()));
        assert!(changed(&[], &[3]).unwrap_err().contains("192.0.2.3:3260"));
        assert!(
            changed(&[], &[1, 2])
                .unwrap_err()
                .contains("no portal left")
        );
        assert_eq!(changed(&[3], &[1, 2]), Ok(vec![portal(3)]));
    }
}
