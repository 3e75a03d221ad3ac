//! `/api`: the routes that there are, as far as clients look into it.

use serde_json::{Map, Value, json};

use super::answer::ApiVersion;

/// Metrics of volumes.
pub(super) const IO_METRICS: [&str; 16] = [
    "reads",
    "writes",
    "bytes_read",
    "bytes_written",
    "iops_read",
    "iops_write",
    "thpt_read",
    "thpt_write",
    "lat_avg_read",
    "lat_avg_write",
    "lat_50_read",
    "lat_90_read",
    "lat_100_read",
    "lat_50_write",
    "lat_90_write",
    "lat_100_write",
];

/// Metrics of nodes.
pub(super) const HW_METRICS: [&str; 1] = ["cpu_usage"];

/// All routes but those of 3.3.0.0.
const ROUTES: [&str; 61] = [
    "/login",
    "/logout",
    "/userinfo",
    "/api",
    "/system",
    "/storage_nodes",
    "/storage_nodes/:uuid",
    "/metrics/io/:metric",
    "/metrics/io/:metric/latest",
    "/metrics/hw/:metric",
    "/metrics/hw/:metric/latest",
    "/events/system",
    "/events/user",
    "/events/debug",
    "/events/:uuid",
    "/alerts",
    "/monitoring/alerts",
    "/event_logs",
    "/fault_logs",
    "/audit_logs",
    "/remote_providers",
    "/users",
    "/roles",
    "/logs_upload",
    "/tenants",
    "/tenants/:tenant_path",
    "/initiators",
    "/initiators/:id",
    "/initiator_groups",
    "/initiator_groups/:group_name",
    "/initiator_groups/:group_name/members",
    "/access_network_ip_pools",
    "/access_network_ip_pools/:pool_name",
    "/access_network_ip_pools/:pool_name/network_paths",
    "/app_templates",
    "/app_templates/:name",
    "/app_templates/:name/snapshot_policies",
    "/app_templates/:name/storage_templates",
    "/app_templates/:name/storage_templates/:storage_template_name",
    "/app_templates/:name/storage_templates/:storage_template_name/auth",
    "/app_templates/:name/storage_templates/:storage_template_name/volume_templates",
    "/app_templates/:name/storage_templates/:storage_template_name/volume_templates/:volume_template_name",
    "/app_templates/:name/storage_templates/:storage_template_name/volume_templates/:volume_template_name/performance_policy",
    "/app_instances",
    "/app_instances/:id",
    "/app_instances/:id/metadata",
    "/app_instances/:id/snapshots",
    "/app_instances/:id/snapshots/:timestamp",
    "/app_instances/:id/storage_instances",
    "/app_instances/:id/storage_instances/:storage_instance_name",
    "/app_instances/:id/storage_instances/:storage_instance_name/access",
    "/app_instances/:id/storage_instances/:storage_instance_name/acl_policy",
    "/app_instances/:id/storage_instances/:storage_instance_name/acl_policy/initiators",
    "/app_instances/:id/storage_instances/:storage_instance_name/acl_policy/initiator_groups",
    "/app_instances/:id/storage_instances/:storage_instance_name/auth",
    "/app_instances/:id/storage_instances/:storage_instance_name/metadata",
    "/app_instances/:id/storage_instances/:storage_instance_name/volumes",
    "/app_instances/:id/storage_instances/:storage_instance_name/volumes/:volume_name",
    "/app_instances/:id/storage_instances/:storage_instance_name/volumes/:volume_name/performance_policy",
    "/app_instances/:id/storage_instances/:storage_instance_name/volumes/:volume_name/snapshots",
    "/app_instances/:id/storage_instances/:storage_instance_name/volumes/:volume_name/snapshots/:timestamp",
];

/// Routes from 3.3.0.0 on.
const ROUTES_33: [&str; 6] = [
    "/app_instances/:id/int_ecosystem_data",
    "/app_instance_int_ecosystem_data",
    "/placement_policies",
    "/placement_policies/:name",
    "/media_policies",
    "/media_policies/:name",
];

fn routes(version: ApiVersion, is_33: bool) -> impl Iterator<Item = &'static str> {
    let newer: &[&str] = if is_33 && version >= ApiVersion::V22 {
        &ROUTES_33
    } else {
        &[]
    };
    ROUTES.iter().chain(newer).copied()
}

/// The self-description. Clients look for the names of routes, for the metrics, and whether a template can be
/// overridden.
pub(super) fn api(version: ApiVersion, is_33: bool) -> Value {
    let mut api = Map::new();
    for route in routes(version, is_33) {
        api.insert(route.to_owned(), json!({}));
    }
    for (kind, metrics) in [("io", &IO_METRICS[..]), ("hw", &HW_METRICS[..])] {
        let schema = json!({ "read": { "urlParamSchema": { "metric": { "enum": metrics } } } });
        api.insert(format!("/metrics/{kind}/:metric"), schema);
    }
    let mut properties = Map::new();
    for member in [
        "name",
        "descr",
        "create_mode",
        "uuid",
        "access_control_mode",
        "app_template",
        "clone_src",
        "clone_volume_src",
        "clone_snapshot_src",
        "storage_instances",
        "snapshot_policies",
    ] {
        properties.insert(member.to_owned(), json!({}));
    }
    if is_33 && version >= ApiVersion::V22 {
        properties.insert("template_override".to_owned(), json!({}));
    }
    let create = json!({ "create": { "bodyParamSchema": {
        "properties": properties, "additionalProperties": false, "required": ["name"],
    } } });
    api.insert("/app_instances".to_owned(), create);
    api.insert("version".to_owned(), version.text().into());
    Value::Object(api)
}

/// Whether a path is one of the routes.
pub(super) fn is_route(segments: &[String], version: ApiVersion, is_33: bool) -> bool {
    routes(version, is_33).any(|route| {
        let parts: Vec<&str> = route.split('/').skip(1).collect();
        let mut pairs = parts.iter().zip(segments);
        parts.len() == segments.len()
            && pairs.all(|(part, segment)| part.starts_with(':') || part == segment)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_look_for_is_there() {
        let old = api(ApiVersion::V22, false);
        assert!(old["/metrics/io/:metric"]["read"]["urlParamSchema"]["metric"]["enum"].is_array());
        assert!(old["/metrics/hw/:metric"]["read"]["urlParamSchema"]["metric"]["enum"].is_array());
        assert!(old.get("/placement_policies").is_none());
        let members = |api: &Value| {
            api["/app_instances"]["create"]["bodyParamSchema"]["properties"]
                .get("template_override")
                .is_some()
        };
        assert!(!members(&old));
        let new = api(ApiVersion::V22, true);
        assert!(members(&new) && new.get("/placement_policies").is_some());
    }

    #[test]
    fn a_wrong_verb_is_told_from_a_wrong_path() {
        let segments = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
        let is = |path: &str| is_route(&segments(path), ApiVersion::V22, false);
        assert!(is("app_instances/x/snapshots") && !is("app_instances/x/y"));
        assert!(!is("placement_policies"));
    }
}
