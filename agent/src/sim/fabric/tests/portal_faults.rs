//! What goes wrong on the iSCSI side when `/sim` says so.

use berth_iobuf::Payload;

use super::data_path::NodeDaemon;
use super::*;

/// A request to `/sim`.
fn sim(rig: &Rig, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let answer = rig.client.exchange(method, path, "application/json", &body);
    let (status, bytes) = answer.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

/// Ends by the deadline.
async fn timely<T>(io: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, io)
        .await
        .expect("it ends in time")
}

/// Sessions that are logged in.
fn logins(rig: &Rig) -> usize {
    let (_, logins) = sim(
        rig,
        "GET",
        &format!("/sim/portals?initiator={NODE}"),
        Value::Null,
    );
    logins.as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_fail_as_they_are_told() {
    let rig = Rig::new();
    let host = NodeDaemon::start().await;
    let instance = rig.client.volume("pv-1");
    rig.client.grant("pv-1", NODE);
    let target = storage(&instance).clone();
    let faults = format!(
        "/sim/volumes/{}/faults",
        target["volumes"][0]["uuid"].as_str().unwrap()
    );
    let mut disk = host.attach("pv", &rig, &target, 0).await;
    let set = |body: Value| assert_eq!(sim(&rig, "PUT", &faults, body).0, 204);

    // Blocks of 512 bytes: 8 KiB is 16 of them.
    set(json!({"unreadable": [[16, 32]]}));
    assert!(timely(disk.read(8192, 4096)).await.is_err());
    assert_eq!(timely(disk.read(0, 8192)).await.unwrap().len(), 8192);
    let data = Payload::from(vec![5; 8192]);
    timely(disk.write(8192, data.clone(), false)).await.unwrap();
    assert_eq!(
        timely(disk.read(8192, 4096)).await.unwrap().len(),
        4096,
        "writing repairs"
    );

    set(json!({"space_full": true}));
    assert!(
        timely(disk.write(1 << 20, data.clone(), true))
            .await
            .is_err()
    );
    timely(disk.write(8192, data.clone(), true)).await.unwrap();

    // BUSY, and a unit attention: both are tried again by the node.
    set(json!({"status": [8, 2], "senses": [[6, 0x29, 0]]}));
    timely(disk.write(1 << 20, data.clone(), true))
        .await
        .unwrap();

    set(json!({"unwritable": [[0, 8]]}));
    assert!(timely(disk.write(0, data.clone(), true)).await.is_err());
    assert_eq!(sim(&rig, "DELETE", &faults, Value::Null).0, 204);
    timely(disk.write(0, data, true)).await.unwrap();

    assert_eq!(
        sim(&rig, "PUT", "/sim/volumes/none/faults", json!({})).0,
        404
    );
    assert_eq!(sim(&rig, "PUT", &faults, json!({"nonsense": 1})).0, 422);
    drop(disk);
    host.detach("pv").await;
    host.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_fail_as_they_are_told_and_heal() {
    let rig = Rig::new();
    let host = NodeDaemon::start().await;
    let instance = rig.client.volume("pv-1");
    rig.client.grant("pv-1", NODE);
    let target = storage(&instance).clone();
    let mut disk = host.attach("pv", &rig, &target, 0).await;
    let data = Payload::from(vec![7; 8192]);
    let faults = "/sim/portals/faults";
    let set = |body: Value| assert_eq!(sim(&rig, "PUT", faults, body).0, 204);
    let clear = || assert_eq!(sim(&rig, "DELETE", faults, Value::Null).0, 204);

    // Sessions are cut; the write waits for the next ones.
    let (status, ended) = sim(
        &rig,
        "DELETE",
        &format!("/sim/portals?initiator={NODE}"),
        Value::Null,
    );
    assert_eq!(status, 200);
    assert!(ended["ended"].as_u64().unwrap() >= 1, "{ended}");
    timely(disk.write(0, data.clone(), true)).await.unwrap();

    // A command is executed and the connection cut: the answer is lost, the data is not.
    set(json!({"once": true, "commands": [
        {"scsi_opcode": 0x8a, "times": 1, "fault": "execute_then_cut"},
        {"scsi_opcode": 0x2a, "times": 1, "fault": "execute_then_cut"},
    ]}));
    timely(disk.write(8192, data.clone(), true)).await.unwrap();
    clear();

    // Held back until it is released, and then answered.
    set(
        json!({"commands": [{"scsi_opcode": 0x8a, "fault": "hold_answer"},
                            {"scsi_opcode": 0x2a, "fault": "hold_answer"}]}),
    );
    let (written, ()) = tokio::join!(timely(disk.write(16384, data.clone(), false)), async {
        tokio::task::yield_now().await;
        clear();
    });
    written.unwrap();

    // Asked to log out, the node does, and comes again.
    let (_, told) = sim(
        &rig,
        "POST",
        "/sim/portals/messages",
        json!({"event": 1, "parameters": [0, 0, 3]}),
    );
    assert!(told["told"].as_u64().unwrap() >= 1);
    timely(disk.write(0, data.clone(), true)).await.unwrap();
    // The write may have gone over a session that was about to end: the next ones come.
    timely(async {
        while logins(&rig) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    for wrong in [
        json!({"sends": [{"fault": {"field": {"offset": 47, "len": 2, "value": 1}}}]}),
        json!({"sends": [{"fault": {"add": {"offset": 45, "delta": 1}}}]}),
        json!({"commands": [{"lun": 65535, "fault": "hold"}]}),
    ] {
        assert_eq!(sim(&rig, "PUT", faults, wrong.clone()).0, 400, "{wrong}");
    }
    assert_eq!(
        sim(
            &rig,
            "PUT",
            faults,
            json!({"commands": [{"fault": "explode"}]})
        )
        .0,
        422
    );

    // No login gets through; the volume heals when one may.
    set(json!({"login": {"status": [3, 1]}}));
    sim(&rig, "DELETE", "/sim/portals", Value::Null);
    assert_eq!(logins(&rig), 0);
    let (written, ()) = tokio::join!(timely(disk.write(0, data, true)), async {
        tokio::task::yield_now().await;
        clear();
    });
    written.unwrap();
    drop(disk);
    host.detach("pv").await;
    host.daemon.stop().await;
}
