//! The calls of other clients, one after the other, and what they take from the answers.
//!
//! Each fixture is the conversation of one client. A string that begins with `=` is to be there literally; any other value stands
//! for its kind. `{name}` is what an answer before was kept as.

use std::collections::HashMap;

use serde::Deserialize;

use super::shapes::same_shape;
use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exchange {
    /// Method and path.
    r#do: String,
    #[serde(default)]
    body: Value,
    /// A body that is no JSON, and its type.
    #[serde(default)]
    raw: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    code: Option<u64>,
    /// What the message contains.
    #[serde(default)]
    says: Option<String>,
    #[serde(default)]
    answer: Value,
    /// Names for values of the answer, by JSON pointer.
    #[serde(default)]
    keep: HashMap<String, String>,
}

/// Puts what was kept in its places.
fn fill(text: &str, kept: &HashMap<String, String>) -> String {
    let mut text = text.to_owned();
    for (name, value) in kept {
        text = text.replace(&format!("{{{name}}}"), value);
    }
    text
}

fn fill_all(value: &Value, kept: &HashMap<String, String>) -> Value {
    serde_json::from_str(&fill(&value.to_string(), kept)).unwrap()
}

/// Splits an expectation into its kinds and its literals.
fn literals(at: &str, wanted: &Value, found: &Value) {
    match wanted {
        Value::String(text) => {
            if let Some(text) = text.strip_prefix('=') {
                assert_eq!(found, text, "{at}");
            }
        }
        Value::Object(members) => {
            for (name, wanted) in members {
                literals(&format!("{at}.{name}"), wanted, &found[name]);
            }
        }
        Value::Array(rows) if rows.is_empty() => assert_eq!(found, &json!([]), "{at}"),
        Value::Array(rows) => literals(&format!("{at}[0]"), &rows[0], &found[0]),
        _ => {}
    }
}

fn replay(name: &str, conversation: &str) {
    let mut rig = Rig::new();
    // Without the connection of its own this client would be JSON all over.
    let login = rig.client.exchange(
        "PUT",
        "/v2.2/login",
        "application/x-www-form-urlencoded",
        "name=admin&password=password",
    );
    assert_eq!(login.unwrap().0, 200);
    let exchanges: Vec<Exchange> = serde_json::from_str(conversation).unwrap();
    let mut kept = HashMap::new();
    for (number, exchange) in exchanges.iter().enumerate() {
        let at = format!("{name}[{number}] {}", exchange.r#do);
        let (method, path) = exchange.r#do.split_once(' ').unwrap();
        let path = format!("/v2.2{}", fill(path, &kept));
        let body = match (&exchange.raw, &exchange.body) {
            (Some(raw), _) => raw.clone(),
            (None, Value::Null) => String::new(),
            (None, body) => fill_all(body, &kept).to_string(),
        };
        let kind = exchange
            .kind
            .as_deref()
            .unwrap_or("application/json; charset=utf-8");
        rig.client.tenant.clone_from(&exchange.tenant);
        let (status, bytes) = rig.client.exchange(method, &path, kind, &body).expect(&at);
        let answer: Value = serde_json::from_slice(&bytes).expect(&at);
        assert_eq!(status, exchange.status.unwrap_or(200), "{at}: {answer}");
        if let Some(error) = &exchange.error {
            assert_eq!(answer["name"], **error, "{at}");
        }
        if let Some(code) = exchange.code {
            assert_eq!(answer["code"], code, "{at}");
        }
        if let Some(text) = &exchange.says {
            assert!(
                answer["message"].as_str().unwrap().contains(text),
                "{at}: {answer}"
            );
        }
        if !exchange.answer.is_null() {
            let wanted = fill_all(&exchange.answer, &kept);
            same_shape(&at, &answer, &wanted);
            literals(&at, &wanted, &answer);
        }
        for (name, pointer) in &exchange.keep {
            let value = answer.pointer(pointer).and_then(Value::as_str);
            kept.insert(name.clone(), value.expect(&at).to_owned());
        }
    }
    let left = std::fs::read_dir(rig.dir.path().join("data")).unwrap();
    assert_eq!(left.count(), 0, "{name} leaves data behind");
}

#[test]
fn cinder_gets_what_it_needs() {
    replay("cinder", include_str!("../fixtures/clients/cinder.json"));
}

#[test]
fn the_csi_driver_gets_what_it_needs() {
    replay("csi", include_str!("../fixtures/clients/csi.json"));
}

#[test]
fn the_docker_driver_gets_what_it_needs() {
    replay("docker", include_str!("../fixtures/clients/docker.json"));
}

#[test]
fn dbmp_gets_what_it_needs() {
    replay("dbmp", include_str!("../fixtures/clients/dbmp.json"));
}
