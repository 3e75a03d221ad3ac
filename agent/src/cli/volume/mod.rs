//! `volume` and `template`: the storage fabric.

pub(super) mod args;
mod fabric;

use berth_api::client::Client;
use berth_api::types::{
    DeletePolicy, FabricChap, Qos, Snapshot, SnapshotList, SnapshotRef, TemplateList, Volume,
    VolumeList, VolumePatch, VolumeRequest, VolumeSource,
};
use berth_api::{TargetName, VolumeName};

use super::error::Failure;
use super::output::{Output, age, clean, or_dash, size, table};
use super::secret;
pub(super) use fabric::run as run_fabric;

pub(super) async fn run(
    client: &Client,
    output: &Output,
    command: args::Volume,
) -> Result<(), Failure> {
    match command {
        args::Volume::Create(arguments) => create(client, output, arguments).await,
        args::Volume::Clone(arguments) => copy(client, output, arguments).await,
        args::Volume::List => list(client, output).await,
        args::Volume::Show { name } => {
            let volume = client.volume(&name).await?;
            show(output, &volume, None)
        }
        args::Volume::Grow { name, size: bytes } => {
            let patch = VolumePatch {
                size_bytes: Some(bytes),
                qos: None,
            };
            let volume = client.change_volume(&name, &patch).await?;
            let said = format!("{name} has {}", size(volume.size_bytes));
            show(output, &volume, Some(&said))
        }
        args::Volume::Qos(arguments) => {
            let patch = VolumePatch {
                size_bytes: None,
                qos: Some(arguments.limits.qos().filter(|_| !arguments.none)),
            };
            let volume = client.change_volume(&arguments.name, &patch).await?;
            show(
                output,
                &volume,
                Some(&format!("limits of {} are set", arguments.name)),
            )
        }
        args::Volume::Snapshot(command) => snapshot(client, output, command).await,
        args::Volume::Grant(arguments) => {
            let initiator = initiator(client, arguments.initiator).await?;
            let volume = client.grant(&arguments.name, &initiator).await?;
            let said = format!("{initiator} is admitted to {}", arguments.name);
            show(output, &volume, Some(&said))
        }
        args::Volume::Revoke(arguments) => {
            let initiator = initiator(client, arguments.initiator).await?;
            client.revoke(&arguments.name, &initiator).await?;
            done(
                output,
                &format!("{initiator} is not admitted to {}", arguments.name),
            )
        }
        args::Volume::Delete {
            name,
            retain,
            with_snapshots,
        } => {
            let policy = retain.then_some(DeletePolicy::Retain);
            client.delete_volume(&name, policy, with_snapshots).await?;
            let what = if retain {
                "offline and keeps its data"
            } else {
                "deleted"
            };
            done(output, &format!("{name} is {what}"))
        }
    }
}

pub(super) async fn run_template(
    client: &Client,
    output: &Output,
    command: &args::Template,
) -> Result<(), Failure> {
    let args::Template::List = command;
    let templates = client.templates().await?;
    if output.is_json() {
        return output.json(&TemplateList { templates });
    }
    if templates.is_empty() {
        eprintln!("the fabric has no templates");
        return Ok(());
    }
    let rows = templates.iter().flat_map(|template| {
        template.units.iter().map(|unit| {
            vec![
                template.name.clone(),
                unit.name.clone(),
                size(unit.size_bytes),
                or_dash(unit.replicas),
                or_dash(unit.placement.as_ref()),
                or_dash(unit.qos.as_ref().map(limits)),
                or_dash(template.description.as_ref()),
            ]
        })
    });
    let header = [
        "NAME",
        "UNIT",
        "SIZE",
        "REPLICAS",
        "PLACEMENT",
        "LIMITS",
        "DESCRIPTION",
    ];
    output.text(&table(&header, &[2, 3], rows.collect()))
}

async fn create(client: &Client, output: &Output, arguments: args::Create) -> Result<(), Failure> {
    let chap = match (arguments.chap.chap_user, arguments.chap.chap_secret_file) {
        (Some(user), Some(file)) => Some(FabricChap {
            user,
            secret: secret::from_file(&file)?,
            mutual_user: arguments.chap.mutual_user,
            mutual_secret: match arguments.chap.mutual_secret_file {
                Some(file) => Some(secret::from_file(&file)?),
                None => None,
            },
        }),
        _ => None,
    };
    let request = VolumeRequest {
        size_bytes: arguments.size,
        template: arguments.template,
        source: None,
        replicas: arguments.replicas,
        placement_mode: arguments.placement_mode.map(Into::into),
        placement_policy: arguments.placement_policy,
        qos: arguments.limits.qos(),
        ip_pool: arguments.ip_pool,
        chap,
        description: arguments.description,
    };
    make(client, output, &arguments.name, &request).await
}

async fn copy(client: &Client, output: &Output, arguments: args::Clone) -> Result<(), Failure> {
    let source = match arguments.snapshot {
        Some(snapshot) => VolumeSource::Snapshot(SnapshotRef {
            volume: arguments.source,
            snapshot,
        }),
        None => VolumeSource::Volume(arguments.source),
    };
    let request = VolumeRequest {
        size_bytes: arguments.size,
        source: Some(source),
        qos: arguments.limits.qos(),
        ..VolumeRequest::default()
    };
    make(client, output, &arguments.name, &request).await
}

async fn make(
    client: &Client,
    output: &Output,
    name: &VolumeName,
    request: &VolumeRequest,
) -> Result<(), Failure> {
    let (volume, created) = client.create_volume(name, request).await?;
    let how = if created { "" } else { ", as it was before" };
    let said = format!("{name} is {}{how}", volume.state.as_str());
    show(output, &volume, Some(&said))
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let volumes = client.volumes().await?;
    if output.is_json() {
        return output.json(&VolumeList {
            volumes,
            next: None,
        });
    }
    if volumes.is_empty() {
        eprintln!("there are no volumes on the fabric");
        return Ok(());
    }
    let mut header = vec!["NAME", "STATE", "SIZE", "TEMPLATE", "ADMITTED", "IN USE BY"];
    if output.is_wide() {
        header.extend(["REPLICAS", "PLACEMENT", "TARGET"]);
    }
    let rows = volumes.iter().map(|volume| {
        let sessions: Vec<_> = unique(volume.units.iter().flat_map(|unit| &unit.sessions));
        let admitted = unique(volume.units.iter().flat_map(|unit| &unit.access));
        let first = volume.units.first();
        let mut row = vec![
            volume.name.to_string(),
            volume.state.as_str().to_owned(),
            size(volume.size_bytes),
            or_dash(volume.template.as_ref()),
            admitted.len().to_string(),
            or_dash((!sessions.is_empty()).then(|| sessions.join(" "))),
        ];
        if output.is_wide() {
            row.extend([
                or_dash(first.and_then(|unit| unit.replicas)),
                or_dash(first.and_then(|unit| unit.placement.as_ref())),
                or_dash(first.and_then(|unit| unit.target.as_ref())),
            ]);
        }
        row
    });
    output.text(&table(&header, &[2, 4], rows.collect()))
}

fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Shows a volume; `said` stands before it for people.
fn show(output: &Output, volume: &Volume, said: Option<&str>) -> Result<(), Failure> {
    if output.is_json() {
        return output.json(volume);
    }
    output.text(&page(output, volume, said))
}

fn page(output: &Output, volume: &Volume, said: Option<&str>) -> String {
    let heading = said.map_or_else(
        || format!("{} is {}", volume.name, volume.state.as_str()),
        str::to_owned,
    );
    let mut text = format!("{}\n", output.bold(&clean(&heading)));
    let mut line = |name: &str, value: &str| {
        let name = output.dim(&format!("{name:13}"));
        text.push_str(&format!("  {name}{}\n", clean(value)));
    };
    line("size", &size(volume.size_bytes));
    for (name, value) in [
        ("health", &volume.health),
        ("template", &volume.template),
        ("description", &volume.description),
    ] {
        if let Some(value) = value {
            line(name, value);
        }
    }
    let several = volume.units.len() > 1;
    for unit in &volume.units {
        if several {
            line("unit", &format!("{}, {}", unit.name, size(unit.size_bytes)));
        }
        if let Some(replicas) = unit.replicas {
            line("replicas", &replicas.to_string());
        }
        if let Some(placement) = &unit.placement {
            line("placement", placement);
        }
        if let Some(qos) = &unit.qos {
            line("limits", &limits(qos));
        }
        if let Some(target) = &unit.target {
            line("target", &format!("{target} LUN {}", unit.lun));
        }
        for portal in &unit.portals {
            line("portal", &portal.to_string());
        }
        if unit.chap {
            line("chap", "needed");
        }
        if unit.open {
            line("admitted", "everybody");
        }
        for initiator in &unit.access {
            line("admitted", initiator);
        }
        for group in &unit.access_groups {
            line("admitted", &format!("group {group}"));
        }
        for initiator in &unit.sessions {
            line("in use by", initiator);
        }
    }
    text
}

/// Limits in few words.
fn limits(qos: &Qos) -> String {
    let iops = [
        ("", qos.total_iops),
        ("read ", qos.read_iops),
        ("write ", qos.write_iops),
    ];
    let bytes = [
        ("", qos.total_bytes_per_second),
        ("read ", qos.read_bytes_per_second),
        ("write ", qos.write_bytes_per_second),
    ];
    let iops = iops
        .iter()
        .filter_map(|(of, value)| value.map(|value| format!("{of}{value} IOPS")));
    let bytes = bytes
        .iter()
        .filter_map(|(of, value)| value.map(|value| format!("{of}{}/s", size(value))));
    iops.chain(bytes).collect::<Vec<_>>().join(", ")
}

async fn snapshot(
    client: &Client,
    output: &Output,
    command: args::Snapshot,
) -> Result<(), Failure> {
    match command {
        args::Snapshot::Take(one) => {
            let (snapshot, created) = client.take_snapshot(&one.name, &one.snapshot).await?;
            if output.is_json() {
                return output.json(&snapshot);
            }
            let how = if created {
                "is taken"
            } else {
                "was taken before"
            };
            let said = format!(
                "snapshot {} of {} {how}\n  id    {}",
                one.snapshot, one.name, snapshot.id
            );
            output.text(&said)
        }
        args::Snapshot::List { name } => {
            let snapshots = match &name {
                Some(name) => client.snapshots(name).await?,
                None => client.all_snapshots().await?,
            };
            if output.is_json() {
                return output.json(&SnapshotList {
                    snapshots,
                    next: None,
                });
            }
            if snapshots.is_empty() {
                let whose = name.map_or("no volume".to_owned(), |name| name.to_string());
                eprintln!("{whose} has no snapshots");
                return Ok(());
            }
            let row = |one: &Snapshot| {
                vec![
                    one.volume.to_string(),
                    one.id.clone(),
                    or_dash(one.taken_unix_ms.map(age)),
                    if one.ready { "ready" } else { "preparing" }.to_owned(),
                ]
            };
            output.text(&table(
                &["VOLUME", "ID", "AGE", "STATE"],
                &[],
                snapshots.iter().map(row).collect(),
            ))
        }
        args::Snapshot::Delete(one) => {
            client.delete_snapshot(&one.name, &one.snapshot).await?;
            done(
                output,
                &format!("snapshot {} of {} is deleted", one.snapshot, one.name),
            )
        }
        args::Snapshot::Restore(one) => {
            let volume = client.restore_snapshot(&one.name, &one.snapshot).await?;
            let said = format!("{} is as snapshot {} has it", one.name, one.snapshot);
            show(output, &volume, Some(&said))
        }
    }
}

/// The initiator that was named, or that of the node.
async fn initiator(client: &Client, named: Option<TargetName>) -> Result<TargetName, Failure> {
    if let Some(named) = named {
        return Ok(named);
    }
    let node = client.node().await?;
    node.initiator_name
        .parse()
        .map_err(|error| Failure::unsuccessful(&error))
}

fn done(output: &Output, said: &str) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(());
    }
    output.text(said)
}
