//! Metrics and events.

use std::num::NonZero;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::answer::{Answer, ApiError, Verb};
use super::super::call::{Call, ROOT};
use super::super::describe;
use super::super::meter::{Flow, Traffic};
use super::super::model::AppInstance;
use super::super::range::{Range, interval, iso};
use super::super::telemetry::{Event, EventKind, Sample, unix_ms};
use super::super::view::si_path;
use super::super::world::World;
use super::counts_all;

/// Something with a metric, and the volumes that it is the sum of.
struct Entity {
    path: String,
    tenant: String,
    volumes: Vec<String>,
}

/// `/metrics/KIND/METRIC`, and `.../latest`.
pub(super) fn metrics(
    world: &World,
    call: &Call,
    kind: &str,
    metric: &str,
    latest: bool,
) -> Result<Answer, ApiError> {
    let known = match kind {
        "io" => &describe::IO_METRICS[..],
        "hw" => &describe::HW_METRICS[..],
        _ => &[],
    };
    if !known.contains(&metric) {
        return Err(ApiError::not_found("Metric", metric));
    }
    let samples = if latest {
        vec![world.telemetry.latest()]
    } else {
        chosen(world, call)?
    };
    let points = |value: &dyn Fn(&Sample) -> f64| {
        let mut points = samples
            .iter()
            .map(|sample| json!({ "time": sample.unix_ms / 1000, "value": value(sample) }));
        if latest {
            json!({ "point": points.next() })
        } else {
            json!({ "points": points.collect::<Vec<_>>() })
        }
    };
    let row = |path: &str, tenant: &str, mut points: Value| {
        let about = json!({ "entity_path": path, "tenant": tenant });
        super::super::view::extend(&mut points, about);
        points
    };
    let rows = if kind == "hw" {
        let nodes = nodes(world, call)?.into_iter();
        nodes
            .map(|node| {
                let busy = node == world.node();
                let usage = move |sample: &Sample| if busy { cpu_percent(sample) } else { 0.0 };
                row(&format!("/storage_nodes/{node}"), ROOT, points(&usage))
            })
            .collect()
    } else {
        let entities = entities(world, call)?.into_iter();
        entities
            .map(|entity| {
                let value = |sample: &Sample| io_value(metric, sample, &entity.volumes);
                row(&entity.path, &entity.tenant, points(&value))
            })
            .collect()
    };
    call.rows(rows, counts_all(world))
}

/// The samples of the span that the query names, put together to its interval.
fn chosen(world: &World, call: &Call) -> Result<Vec<Sample>, ApiError> {
    let range = Range::of(call, unix_ms())?;
    let interval = interval(call)?;
    let mut chosen: Vec<Sample> = Vec::new();
    for sample in world.telemetry.samples() {
        if !range.holds(sample.unix_ms) {
            continue;
        }
        match chosen.last_mut() {
            Some(last) if last.span < interval => last.extend(sample),
            _ => chosen.push(sample.clone()),
        }
    }
    Ok(chosen)
}

fn per_second(count: u64, span: Duration) -> f64 {
    if span.is_zero() {
        return 0.0;
    }
    count as f64 / span.as_secs_f64()
}

/// Counts and bytes of the span, rates a second, latencies in microseconds.
fn io_value(metric: &str, sample: &Sample, volumes: &[String]) -> f64 {
    let mut sum = Traffic::default();
    for volume in volumes {
        if let Some(traffic) = sample.volumes.get(volume) {
            sum.add(traffic);
        }
    }
    let flow: &Flow = if metric.ends_with("read") || metric == "reads" {
        &sum.reads
    } else {
        &sum.writes
    };
    let name = metric.trim_end_matches("_read").trim_end_matches("_write");
    match name {
        "reads" | "writes" => flow.operations as f64,
        "bytes" | "bytes_written" => flow.bytes as f64,
        "iops" => per_second(flow.operations, sample.span),
        "thpt" => per_second(flow.bytes, sample.span),
        "lat_avg" => flow.mean_us(),
        "lat_50" => flow.percentile_us(50) as f64,
        "lat_90" => flow.percentile_us(90) as f64,
        "lat_100" => flow.percentile_us(100) as f64,
        _ => 0.0,
    }
}

/// Of all processors of the machine.
fn cpu_percent(sample: &Sample) -> f64 {
    if sample.span.is_zero() {
        return 0.0;
    }
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    100.0 * sample.cpu.as_secs_f64() / sample.span.as_secs_f64() / processors as f64
}

fn nodes<'w>(world: &'w World, call: &Call) -> Result<Vec<&'w str>, ApiError> {
    let mut nodes = world.catalogue.nodes.iter().map(String::as_str);
    let path = call.param("path").map(|path| path.trim_end_matches('/'));
    let wanted = match (call.param("uuid"), path) {
        (Some(uuid), _) => uuid,
        (None, None | Some("/storage_nodes" | "/system")) => return Ok(nodes.collect()),
        (None, Some(path)) => path.strip_prefix("/storage_nodes/").unwrap_or(path),
    };
    let found = nodes.find(|node| *node == wanted);
    found
        .map(|node| vec![node])
        .ok_or_else(|| ApiError::not_found("Storage node", wanted))
}

/// What the query's `path` or `uuid` names; without them the whole system.
fn entities(world: &World, call: &Call) -> Result<Vec<Entity>, ApiError> {
    let seen = || {
        world
            .instances
            .values()
            .filter(|i| call.scope.holds(&i.tenant))
    };
    let sis = || seen().flat_map(parts);
    if let Some(uuid) = call.param("uuid") {
        let whole = seen().filter(|i| i.id == uuid).map(whole);
        let part = sis().filter(|(id, _)| id == uuid).map(|(_, part)| part);
        return whole
            .chain(part)
            .next()
            .map(|entity| vec![entity])
            .ok_or_else(|| ApiError::not_found("Object", uuid));
    }
    let path = call
        .param("path")
        .unwrap_or("/system")
        .trim_end_matches('/');
    let volume = |entity: &Entity| entity.path.contains("/volumes/");
    Ok(match path {
        "" | "/system" => vec![Entity {
            path: "/system".to_owned(),
            tenant: call.scope.owner().to_owned(),
            volumes: seen()
                .flat_map(|instance| whole(instance).volumes)
                .collect(),
        }],
        "/app_instances" => seen().map(whole).collect(),
        "/storage_instances" => sis().map(|(_, part)| part).filter(|e| !volume(e)).collect(),
        "/volumes" => sis().map(|(_, part)| part).filter(volume).collect(),
        path => {
            let missing = || ApiError::not_found("Object", path);
            let rest = path.strip_prefix("/app_instances/").ok_or_else(missing)?;
            let (id, below) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let instance = world.instance(&call.scope, id)?;
            if below.is_empty() {
                return Ok(vec![whole(instance)]);
            }
            let wanted = format!("{}{below}", instance.path());
            let mut parts = parts(instance).into_iter().map(|(_, part)| part);
            let found = parts.find(|part| part.path == wanted);
            vec![found.ok_or_else(missing)?]
        }
    })
}

fn whole(instance: &AppInstance) -> Entity {
    let volumes = instance.storage_instances.iter().flat_map(|si| &si.volumes);
    Entity {
        path: instance.path(),
        tenant: instance.tenant.clone(),
        volumes: volumes.map(|volume| volume.uuid.clone()).collect(),
    }
}

/// Storage instances and volumes, each with its uuid.
fn parts(instance: &AppInstance) -> Vec<(String, Entity)> {
    let mut parts = Vec::new();
    for si in &instance.storage_instances {
        let path = si_path(instance, si);
        let entity = |path: String, volumes| Entity {
            path,
            tenant: instance.tenant.clone(),
            volumes,
        };
        let volumes = si.volumes.iter().map(|volume| volume.uuid.clone());
        parts.push((si.uuid.clone(), entity(path.clone(), volumes.collect())));
        for volume in &si.volumes {
            let path = format!("{path}/volumes/{}", volume.name);
            let uuid = volume.uuid.clone();
            parts.push((uuid.clone(), entity(path, vec![uuid])));
        }
    }
    parts
}

fn show(event: &Event) -> Value {
    let at = iso(event.unix_ms);
    json!({
        "uuid": event.uuid, "path": format!("/events/{}", event.uuid), "time": at,
        "code": event.code, "severity": "info", "message": event.message,
        "description": event.message, "context": "", "debug": "", "tenant": event.tenant,
        "object_path": event.object_path, "repeat_count": 1, "last_seen_ts": at,
    })
}

/// `/events/user` and `/events/system`, newest first.
pub(super) fn events(world: &World, call: &Call, kind: EventKind) -> Result<Answer, ApiError> {
    let range = Range::of(call, unix_ms())?;
    let events = world.telemetry.events().filter(|event| {
        event.kind == kind && range.holds(event.unix_ms) && call.scope.sees(&event.tenant)
    });
    let mut events: Vec<&Event> = events.collect();
    events.reverse();
    call.list(
        events,
        counts_all(world),
        |event| show(event),
        |event| show(event),
    )
}

/// `/events/UUID`.
pub(super) fn event(world: &World, call: &Call, uuid: &str) -> Result<Answer, ApiError> {
    let mut events = world.telemetry.events();
    let found = events.find(|event| event.uuid == uuid && call.scope.sees(&event.tenant));
    let event = found.ok_or_else(|| ApiError::not_found("Event", uuid))?;
    let path = format!("/events/{uuid}");
    Ok(Answer::entity(path, &event.tenant, show(event)))
}

/// Notes what a user has changed.
pub(in super::super) fn note(world: &mut World, call: &Call, answer: &Answer) {
    let (verb, done) = match call.verb {
        Verb::Read => return,
        Verb::Create => ("CREATE", "created"),
        Verb::Update => ("UPDATE", "changed"),
        Verb::Delete => ("DELETE", "deleted"),
    };
    let (path, tenant) = match answer {
        Answer::Entity { path, tenant, .. } if !path.is_empty() => (path.as_str(), tenant.as_str()),
        _ => (call.path.as_str(), call.scope.owner()),
    };
    // Collections and sub-resources stand at even places of a path, keys at odd ones.
    let segments = &call.segments;
    let named = segments.iter().step_by(2).next_back();
    let kind = named.map_or_else(|| "SYSTEM".to_owned(), |name| name.to_uppercase());
    let tenant = if tenant.is_empty() { ROOT } else { tenant };
    let message = format!("{path} was {done}");
    let code = format!("{kind}_{verb}");
    let telemetry = &mut world.telemetry;
    telemetry.note(EventKind::User, code, message, tenant, path);
}
