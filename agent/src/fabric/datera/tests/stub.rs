//! A scripted fabric: routes of the REST API over a little state, with faults on demand. It knows only what the tests
//! need, by the reference's examples.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::config;

/// What goes wrong with the next request that it is about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// It is done, and the answer is cut off.
    Lost,
    /// It is not done.
    Status(u16, Value),
    /// Nothing like JSON.
    Garbage,
    /// Half of a JSON answer.
    Half,
    /// No answer for so long; it is done only if somebody still waits then.
    Slow(Duration),
    /// It is done, and never answered.
    Silent,
}

#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) instances: Vec<Value>,
    pub(crate) initiators: Vec<String>,
    pub(crate) templates: Vec<Value>,
    /// Requests, as `PUT /v2.2/login`, with their bodies.
    pub(crate) log: Vec<(String, Value)>,
    /// `(start of "METHOD path", fault)`; each is met once.
    pub(crate) faults: VecDeque<(String, Fault)>,
    /// The key that is good now.
    pub(crate) key: u32,
    pub(crate) sw_version: String,
    pub(crate) versions: Vec<&'static str>,
    pub(crate) password: String,
    /// Times that a new storage instance is looked at before it is available.
    pub(crate) slow_to_come: u32,
    /// Target and address of every volume; nothing: made up.
    pub(crate) place: Option<(String, String)>,
    /// After each page of volumes the first one of so many is deleted.
    pub(crate) vanishing: usize,
    /// Entries of one page, at most.
    pub(crate) page_max: usize,
}

/// The stub: served until it is dropped.
pub(crate) struct Stub {
    pub(crate) model: Arc<Mutex<Model>>,
    pub(crate) url: String,
    /// Told when a fault is met.
    pub(crate) met: Arc<tokio::sync::Notify>,
    server: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stub {
    pub(crate) async fn start() -> Self {
        let model = Arc::new(Mutex::new(Model {
            key: 1,
            sw_version: "3.3.0.0".into(),
            versions: vec!["v2", "v2.1", "v2.2"],
            password: "secret-pw".into(),
            page_max: 100,
            ..Model::default()
        }));
        let met = Arc::new(tokio::sync::Notify::new());
        let app = axum::Router::new()
            .fallback(answer)
            .with_state((Arc::clone(&model), Arc::clone(&met)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("password"), "secret-pw\n").unwrap();
        Self {
            model,
            url,
            met,
            server,
            dir,
        }
    }

    /// A configuration that is quick.
    pub(crate) fn settings(&self) -> config::Fabric {
        let ms = |ms| config::Span(Duration::from_millis(ms));
        config::Fabric {
            url: Some(self.url.clone()),
            user: Some("admin".into()),
            password_file: Some(self.dir.path().join("password")),
            connect_timeout: ms(500),
            request_timeout: ms(500),
            call_timeout: ms(5000),
            poll_interval: ms(1),
            retry_first: ms(1),
            retry_max: ms(5),
            breaker_pause: ms(100),
            breaker_failures: 50,
            ..config::Fabric::default()
        }
    }

    pub(crate) fn set_password(&self, password: &str) {
        std::fs::write(self.dir.path().join("password"), password).unwrap();
    }

    pub(crate) fn fault(&self, at: &str, fault: Fault) {
        self.model().faults.push_back((at.to_owned(), fault));
    }

    pub(crate) fn model(&self) -> std::sync::MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Requests that begin so.
    pub(crate) fn count(&self, start: &str) -> usize {
        self.model()
            .log
            .iter()
            .filter(|(what, _)| what.starts_with(start))
            .count()
    }
}

async fn answer(
    State((model, met)): State<(Arc<Mutex<Model>>, Arc<tokio::sync::Notify>)>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let what = format!("{method} {}", uri.path());
    let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let fault = {
        let mut model = model.lock().unwrap();
        model.log.push((what.clone(), body.clone()));
        let at = model
            .faults
            .iter()
            .position(|(start, _)| what.starts_with(start.as_str()));
        at.and_then(|at| model.faults.remove(at))
            .map(|(_, fault)| fault)
    };
    if fault.is_some() {
        met.notify_one();
    }
    match &fault {
        Some(Fault::Status(status, body)) => {
            return (
                StatusCode::from_u16(*status).unwrap(),
                axum::Json(body.clone()),
            )
                .into_response();
        }
        Some(Fault::Garbage) => return "<html>proxy</html>".into_response(),
        Some(Fault::Slow(time)) => tokio::time::sleep(*time).await,
        _ => {}
    }
    let (status, value) = model
        .lock()
        .unwrap()
        .handle(&what, uri.query(), &headers, &body);
    let text = value.to_string();
    if fault == Some(Fault::Silent) {
        std::future::pending::<()>().await;
    }
    match fault {
        Some(Fault::Half) => text[..text.len() / 2].to_owned().into_response(),
        Some(Fault::Lost) => {
            // The length promises more than there is: the connection breaks in the middle.
            let mut response = Response::new(Body::from_stream(cut()));
            *response.status_mut() = StatusCode::OK;
            response
        }
        _ => (status, [("content-type", "application/json")], text).into_response(),
    }
}

/// A body that breaks off.
fn cut() -> tokio_stream::Once<Result<Bytes, std::io::Error>> {
    tokio_stream::once(Err(std::io::Error::other("cut off")))
}

type Reply = (StatusCode, Value);

pub(crate) fn refusal(status: u16, name: &str, code: i64, message: &str) -> Reply {
    let value =
        json!({ "name": name, "code": code, "http": status, "message": message, "errors": [] });
    (StatusCode::from_u16(status).unwrap(), value)
}

fn not_found(what: &str) -> Reply {
    refusal(404, "NotFoundError", 14, &format!("{what} does not exist"))
}

fn found(data: Value) -> Reply {
    let mut envelope = json!({ "tenant": "/root", "version": "v2.2", "metadata": {} });
    envelope["data"] = data;
    (StatusCode::OK, envelope)
}

impl Model {
    fn handle(
        &mut self,
        what: &str,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &Value,
    ) -> Reply {
        let (method, path) = what.split_once(' ').unwrap();
        if path == "/api_versions" {
            return (StatusCode::OK, json!({ "api_versions": self.versions }));
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (version, segments) = segments.split_first().unwrap();
        if !self.versions.contains(version) {
            return refusal(404, "InvalidRouteError", 1, "no such version");
        }
        if segments == ["login"] {
            if body["password"] != self.password.as_str() || body["name"] != "admin" {
                return refusal(401, "AuthFailedError", 2, "Authentication failed");
            }
            let key = format!("{:032x}", self.key);
            return (
                StatusCode::OK,
                json!({ "key": key, "version": version, "request_time": 12 }),
            );
        }
        let key = headers.get("auth-token").and_then(|key| key.to_str().ok());
        if key != Some(&format!("{:032x}", self.key)) {
            let message =
                "The key provided with the request does not correspond to a valid session.";
            return refusal(401, "InvalidSessionKeyError", 3, message);
        }
        assert_eq!(headers["tenant"], "/root");
        assert!(
            headers["datera-driver"]
                .to_str()
                .unwrap()
                .starts_with("berth")
        );
        match (method, segments) {
            ("GET", ["system"]) => found(json!({
                "name": "stub", "sw_version": self.sw_version, "health": "ok", "op_state": "running",
                "total_capacity": 1000, "available_capacity": 900, "total_provisioned_capacity": 5000,
            })),
            ("GET", ["app_templates"]) => self.page(&self.templates, query),
            ("GET", ["app_templates", name]) => {
                let template = self.templates.iter().find(|t| t["name"] == *name);
                template.map_or_else(|| not_found("template"), |t| found(t.clone()))
            }
            ("GET", ["app_instances"]) => {
                let page = self.page(&self.instances, query);
                if self.vanishing > 0 {
                    self.vanishing -= 1;
                    self.instances.remove(0);
                }
                page
            }
            ("POST", ["app_instances"]) => self.create(body),
            ("GET", ["initiators", id]) => match self.initiators.iter().any(|i| i == id) {
                true => found(
                    json!({ "id": id, "tenant": "/root", "path": format!("/initiators/{id}") }),
                ),
                false => not_found("initiator"),
            },
            ("POST", ["initiators"]) => {
                let id = body["id"].as_str().unwrap().to_owned();
                if self.initiators.contains(&id) {
                    return refusal(409, "ConflictError", 5, "it exists");
                }
                self.initiators.push(id);
                found(json!({}))
            }
            (_, ["app_instances", name, rest @ ..]) => {
                let Some(at) = self.instances.iter().position(|i| i["name"] == *name) else {
                    return not_found("App instance");
                };
                self.instance(method, at, rest, body)
            }
            _ => refusal(404, "InvalidRouteError", 1, &format!("no route {what}")),
        }
    }

    fn page(&self, all: &[Value], query: Option<&str>) -> Reply {
        let number = |name: &str| {
            let pairs = query
                .unwrap_or_default()
                .split('&')
                .filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(key, _)| *key == name)
                .find_map(|(_, value)| value.parse().ok())
        };
        let offset = number("offset").unwrap_or(0);
        let limit = number("limit").unwrap_or(100).min(self.page_max);
        let rows: Vec<_> = all.iter().skip(offset).take(limit).cloned().collect();
        let metadata = json!({
            "limit": limit, "offset": offset, "request_count": rows.len(), "total_count": all.len(),
        });
        (
            StatusCode::OK,
            json!({ "metadata": metadata, "data": rows }),
        )
    }

    fn create(&mut self, body: &Value) -> Reply {
        if self.instances.iter().any(|i| i["name"] == body["name"]) {
            return refusal(409, "ConflictError", 5, "the name is taken");
        }
        let number = self.instances.len();
        let id = format!("00000000-0000-4000-8000-{number:012}");
        let path = format!("/app_instances/{id}");
        let wanted = &body["storage_instances"][0]["volumes"][0];
        let overridden = &body["template_override"]["storage_instances"]["storage-1"]["volumes"]["volume-1"]
            ["size"];
        let size = match (wanted["size"].as_u64(), overridden.as_str()) {
            (Some(size), _) => size,
            (None, Some(size)) => size.parse().unwrap(),
            (None, None) => 10,
        };
        let volume_path = format!("{path}/storage_instances/storage-1/volumes/volume-1");
        let mut volume = json!({
            "path": volume_path, "name": "volume-1", "size": size, "op_state": "available", "snapshots": [],
            "replica_count": wanted["replica_count"].as_u64().unwrap_or(3),
            "placement_mode": wanted["placement_mode"].as_str().unwrap_or("hybrid"),
        });
        for member in ["performance_policy", "placement_policy"] {
            if !wanted[member].is_null() {
                volume[member] = wanted[member].clone();
            }
        }
        let auth = body["storage_instances"][0]["auth"]["type"]
            .as_str()
            .unwrap_or("none");
        let (iqn, ips) = match &self.place {
            Some((iqn, ip)) => (iqn.clone(), vec![ip.clone()]),
            None => (
                format!("iqn.2013-05.com.daterainc:tc:01:sn:{number:016x}"),
                vec!["127.0.0.1".to_owned(), "127.0.0.2".to_owned()],
            ),
        };
        let storage = json!({
            "name": "storage-1", "op_state": if self.slow_to_come > 0 { "unavailable" } else { "available" },
            "admin_state": "online", "volumes": [volume], "access_control_mode": "deny_all",
            "acl_policy": { "path": "acl", "initiators": [], "initiator_groups": [] },
            "access": { "ips": ips, "iqn": iqn },
            "auth": { "type": auth }, "active_initiators": [],
        });
        let template = body["app_template"]["path"].as_str().unwrap_or_default();
        let instance = json!({
            "path": path, "id": id, "name": body["name"], "descr": body["descr"].as_str().unwrap_or_default(),
            "health": "ok", "admin_state": "online", "deployment_state": "deployed",
            "app_template": { "path": template }, "storage_instances": [storage],
        });
        self.instances.push(instance.clone());
        found(instance)
    }

    fn instance(&mut self, method: &str, at: usize, rest: &[&str], body: &Value) -> Reply {
        if self.slow_to_come > 0 {
            self.slow_to_come -= 1;
            if self.slow_to_come == 0 {
                self.instances[at]["storage_instances"][0]["op_state"] = "available".into();
            }
        }
        let instance = &mut self.instances[at];
        match (method, rest) {
            ("GET", []) => return found(instance.clone()),
            ("PUT", []) => {
                instance["admin_state"] = body["admin_state"].clone();
                return found(instance.clone());
            }
            ("DELETE", []) => {
                if instance["admin_state"] != "offline" {
                    return refusal(400, "InvalidRequestError", 9, "it is online");
                }
                return found(self.instances.remove(at));
            }
            _ => {}
        }
        let storage = &mut instance["storage_instances"][0];
        match (method, &rest[2..]) {
            ("PUT", ["auth"]) => {
                storage["auth"]["type"] = body["type"].clone();
                found(json!({}))
            }
            ("GET", ["acl_policy"]) => found(storage["acl_policy"].clone()),
            ("PUT", ["acl_policy", "initiators"]) => {
                let entry = json!({ "path": body["path"] });
                let list = storage["acl_policy"]["initiators"].as_array_mut().unwrap();
                let there = list.contains(&entry);
                match (body["op"].as_str(), there) {
                    (Some("add"), true) => return refusal(409, "ConflictError", 5, "it is there"),
                    (Some("add"), false) => list.push(entry),
                    (Some("remove"), false) => {
                        return refusal(404, "NotFoundError", 14, "it is not there");
                    }
                    _ => list.retain(|one| *one != entry),
                }
                found(json!({}))
            }
            (_, ["volumes", _, rest @ ..]) => {
                Self::volume(method, &mut storage["volumes"][0], rest, body)
            }
            _ => refusal(404, "InvalidRouteError", 1, "no such route"),
        }
    }

    fn volume(method: &str, volume: &mut Value, rest: &[&str], body: &Value) -> Reply {
        match (method, rest) {
            ("PUT", []) => {
                for (member, value) in body.as_object().unwrap() {
                    volume[member] = value.clone();
                }
                found(volume.clone())
            }
            ("GET", ["performance_policy"]) => match volume.get("performance_policy") {
                Some(policy) => found(policy.clone()),
                None => not_found("policy"),
            },
            ("POST" | "PUT", ["performance_policy"]) => {
                volume["performance_policy"] = body.clone();
                found(body.clone())
            }
            ("DELETE", ["performance_policy"]) => {
                volume.as_object_mut().unwrap().remove("performance_policy");
                found(json!({}))
            }
            ("GET", ["snapshots"]) => found(volume["snapshots"].clone()),
            ("POST", ["snapshots"]) => {
                let snapshots = volume["snapshots"].as_array_mut().unwrap();
                if snapshots.iter().any(|s| s["uuid"] == body["uuid"]) {
                    return refusal(
                        400,
                        "InvalidRequestError",
                        15,
                        "a snapshot with this uuid exists",
                    );
                }
                let time = format!("16000000{:02}.123456789", snapshots.len());
                let path = format!("{}/snapshots/{time}", volume["path"].as_str().unwrap());
                let snapshot = json!({ "path": path, "utc_ts": time, "uuid": body["uuid"], "op_state": "available" });
                let snapshots = volume["snapshots"].as_array_mut().unwrap();
                snapshots.push(snapshot.clone());
                found(snapshot)
            }
            ("DELETE", ["snapshots", time]) => {
                let snapshots = volume["snapshots"].as_array_mut().unwrap();
                snapshots.retain(|s| s["utc_ts"] != *time);
                found(json!({}))
            }
            _ => refusal(404, "InvalidRouteError", 1, "no such route"),
        }
    }
}
