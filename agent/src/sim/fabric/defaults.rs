//! What a new fabric comes with.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::call::ROOT;
use super::model::{
    AppTemplate, Auth, Catalogue, IpPool, Link, MediaPolicy, Performance, Placement,
    PlacementPolicy, SnapshotPolicy, StorageTemplate, Tenant, VolumeTemplate,
};
use super::routes::DEFAULT_POOL;
use super::store::FORMAT;
use super::world::new_uuid;

/// Nodes that the fabric says it has.
const NODES: usize = 3;

/// The catalogue of a new fabric with those portals.
pub(super) fn catalogue(portals: &[SocketAddr; 2]) -> Catalogue {
    Catalogue {
        format: FORMAT,
        name: "berth-sim".to_owned(),
        uuid: new_uuid(),
        nodes: (0..NODES).map(|_| new_uuid()).collect(),
        tenants: vec![Tenant {
            path: ROOT.to_owned(),
            descr: String::new(),
        }],
        initiators: Vec::new(),
        groups: Vec::new(),
        pools: vec![pool(portals)],
        templates: templates(),
        media_policies: [("all-flash", 20), ("hybrid", 10)]
            .map(|(name, priority)| MediaPolicy {
                tenant: ROOT.to_owned(),
                name: name.to_owned(),
                priority,
            })
            .into(),
        placement_policies: [("default", "hybrid"), ("fast", "all-flash")]
            .map(|(name, media)| PlacementPolicy {
                tenant: ROOT.to_owned(),
                name: name.to_owned(),
                descr: String::new(),
                max: vec![format!("/media_policies/{media}"); 3],
                min: vec![format!("/media_policies/{media}"); 3],
            })
            .into(),
    }
}

/// The pool that always exists, with the addresses of the portals.
fn pool(portals: &[SocketAddr; 2]) -> IpPool {
    let blocks = portals.iter().enumerate().map(|(index, portal)| {
        let block = json!({
            "name": format!("access_{}", index + 1), "start_ip": portal.ip(), "netmask": 24,
            "range": 6, "vlan": 0, "mtu": 1500,
        });
        match block {
            Value::Object(block) => block,
            _ => serde_json::Map::new(),
        }
    });
    IpPool {
        tenant: ROOT.to_owned(),
        name: DEFAULT_POOL.to_owned(),
        descr: String::new(),
        network_paths: blocks.collect(),
    }
}

fn templates() -> Vec<AppTemplate> {
    let nightly = SnapshotPolicy {
        name: "nightly".to_owned(),
        retention_count: 7,
        interval: "1day".to_owned(),
        start_time: None,
    };
    let gold = Performance {
        total_iops_max: 20_000,
        ..Performance::default()
    };
    let bronze = Performance {
        total_iops_max: 500,
        total_bandwidth_max: 51_200,
        ..Performance::default()
    };
    vec![
        template(
            "basic",
            "One volume",
            vec![volume("volume-1", 10, 2, "hybrid")],
        ),
        template(
            "basic_small",
            "One small volume",
            vec![volume("volume-1", 1, 1, "hybrid")],
        ),
        template(
            "gold",
            "One fast volume with nightly snapshots",
            vec![VolumeTemplate {
                performance: Some(gold),
                snapshot_policies: vec![nightly],
                ..volume("volume-1", 100, 3, "all_flash")
            }],
        ),
        template(
            "bronze",
            "One slow volume",
            vec![VolumeTemplate {
                performance: Some(bronze),
                ..volume("volume-1", 20, 2, "hybrid")
            }],
        ),
        template(
            "database",
            "Data and log volume of a database behind one target",
            vec![
                volume("data", 100, 3, "hybrid"),
                volume("log", 10, 3, "all_flash"),
            ],
        ),
    ]
}

fn template(name: &str, descr: &str, volume_templates: Vec<VolumeTemplate>) -> AppTemplate {
    AppTemplate {
        tenant: ROOT.to_owned(),
        name: name.to_owned(),
        descr: descr.to_owned(),
        snapshot_policies: Vec::new(),
        storage_templates: vec![StorageTemplate {
            name: "storage-1".to_owned(),
            auth: Auth::default(),
            ip_pool: Link {
                tenant: ROOT.to_owned(),
                key: DEFAULT_POOL.to_owned(),
            },
            volume_templates,
        }],
    }
}

fn volume(name: &str, size_gib: u64, replica_count: u64, mode: &str) -> VolumeTemplate {
    VolumeTemplate {
        name: name.to_owned(),
        size_gib,
        replica_count,
        placement: Placement {
            mode: mode.to_owned(),
            policy: None,
        },
        performance: None,
        snapshot_policies: Vec::new(),
    }
}
