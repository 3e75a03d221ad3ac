//! The daemon is killed after every single request to the fabric, carried out or not, and what was asked for is asked for
//! again: everything is there once, admitted exactly, and works.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use berth_tests::Berthd;
use berth_tests::berthd::INITIATOR;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fabric_proxy::{Hold, Proxy};
use crate::fabric_site::{DEADLINE, GIB, Site, attach_body, call, check_data, volume, volumes};

/// One call to the API that is cut off and repeated.
struct Scene {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: Option<Value>,
    /// Statuses that mean that it is done.
    done: &'static [u16],
    /// Before each time.
    prepare: fn(&Berthd) -> Result<()>,
    /// After the repetition: everything is as it should be.
    check: fn(&Berthd) -> Result<()>,
    /// Requests that it takes at least: else the scene has lost its meaning.
    least: usize,
}

/// Everything that a scene is played on.
struct Stage {
    proxy: Proxy,
    node: Berthd,
    // Last: it ends after its clients.
    site: Site,
}

impl Stage {
    fn new() -> Result<Self> {
        let site = Site::start()?;
        let proxy = Proxy::start(site.fabric.http().context("HTTP is served")?)?;
        let url = format!("http://{}", proxy.address());
        // A request that is held back ends with its daemon, not by itself.
        let config = site.config(&url, "request_timeout = \"10m\"\ncall_timeout = \"10m\"");
        let node = Berthd::start_with(&config, None)?;
        Ok(Self { proxy, node, site })
    }

    fn play(&mut self, scene: &Scene) -> Result<()> {
        let begun = Instant::now();
        // A daemon that has just started logs in, too.
        (scene.prepare)(&self.node)?;
        self.node.restart(Signal::TERM)?;
        self.proxy.disarm();
        let body = scene.body.as_ref();
        call(&self.node, scene.method, scene.path, body, scene.done)?;
        let requests = self.proxy.seen();
        ensure!(
            requests.len() >= scene.least,
            "{}: {requests:?}",
            scene.what
        );
        (scene.check)(&self.node)?;
        self.clean()?;
        let mut points = 0;
        for (number, request) in requests.iter().enumerate() {
            for hold in [Hold::Request, Hold::Answer] {
                let at = format!("{}, request {number} {request}, {hold:?}", scene.what);
                self.cut_off(scene, number, hold)
                    .with_context(|| format!("{at}\n{}", self.node.log()))?;
                points += 1;
            }
        }
        let took = begun.elapsed().as_secs_f32();
        println!("{}: {points} points in {took:.1} s", scene.what);
        Ok(())
    }

    fn cut_off(&mut self, scene: &Scene, number: usize, hold: Hold) -> Result<()> {
        (scene.prepare)(&self.node)?;
        self.node.restart(Signal::TERM)?;
        self.proxy.arm(number, hold);
        let body = scene.body.as_ref();
        let node = &self.node;
        let held = std::thread::scope(|scope| {
            let asked = scope.spawn(|| node.request(scene.method, scene.path, body, DEADLINE));
            let held = self.proxy.wait_held(DEADLINE);
            // Before anything else: the thread ends with the daemon.
            let killed = kill(node.pid());
            let cut_off = asked.join();
            killed?;
            let cut_off = cut_off.map_err(|_| anyhow::anyhow!("the caller panicked"))?;
            ensure!(cut_off.is_err(), "it was answered: {cut_off:?}");
            held
        });
        self.node.end(Signal::KILL).ok();
        held?;
        self.proxy.disarm();
        self.node.begin()?;
        self.node.wait_ready()?;
        call(&self.node, scene.method, scene.path, body, scene.done)?;
        (scene.check)(&self.node)?;
        self.clean()
    }

    /// Takes away what is there: the fabric knows nothing of the node any more.
    fn clean(&self) -> Result<()> {
        self.node.detach(NAME)?;
        for name in volumes(&self.node)? {
            let path = format!("/v1/volumes/{name}?snapshots=true");
            call(&self.node, "DELETE", &path, None, &[204])?;
        }
        let path = format!("/v2.2/initiators/{INITIATOR}");
        let status = self.site.rest("DELETE", &path, &json!({}))?;
        ensure!(matches!(status, 200 | 404), "{status}");
        Ok(())
    }
}

fn kill(pid: u32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    let pid = rustix::process::Pid::from_raw(pid).context("a process")?;
    Ok(rustix::process::kill_process(pid, Signal::KILL)?)
}

const NAME: &str = "data";
const VOLUME: &str = "vol-1";
const ATTACHMENT: &str = "/v1/attachments/data";

fn nothing(_: &Berthd) -> Result<()> {
    Ok(())
}

fn made(node: &Berthd) -> Result<()> {
    let body = json!({ "size_bytes": GIB });
    call(node, "PUT", "/v1/volumes/vol-1", Some(&body), &[200, 201]).map(drop)
}

fn from_options() -> Value {
    let create = json!({ "size_bytes": GIB, "replicas": 2, "qos": { "total_iops": 5000 } });
    attach_body(&json!({ "volume": VOLUME, "create": create, "revoke_on_detach": true }))
}

fn from_template() -> Value {
    // Larger than the template says, and limited: more than one request can say.
    let create =
        json!({ "template": "basic_small", "size_bytes": 200 * GIB, "qos": { "total_iops": 70 } });
    attach_body(&json!({ "volume": VOLUME, "create": create, "revoke_on_detach": true }))
}

fn attached(node: &Berthd) -> Result<()> {
    node.attach_with(NAME, &from_options()).map(drop)
}

/// The volume is there once, admits this node alone, and its data path works.
fn in_use(node: &Berthd) -> Result<Value> {
    let attachment = node.attachment(NAME)?;
    ensure!(attachment["state"] == "attached", "{attachment:#}");
    ensure!(volumes(node)? == [VOLUME], "{:?}", volumes(node)?);
    let volume = volume(node, VOLUME)?;
    let unit = &volume["units"][0];
    ensure!(unit["access"] == json!([INITIATOR]), "{volume:#}");
    ensure!(unit["sessions"] == json!([INITIATOR]), "{volume:#}");
    ensure!(
        volume["units"]
            .as_array()
            .is_some_and(|units| units.len() == 1),
        "{volume:#}"
    );
    check_data(node, NAME, 0x5a)?;
    Ok(volume)
}

fn options_in_use(node: &Berthd) -> Result<()> {
    let volume = in_use(node)?;
    let unit = &volume["units"][0];
    ensure!(
        volume["size_bytes"] == GIB && unit["replicas"] == 2 && unit["qos"]["total_iops"] == 5000,
        "{volume:#}"
    );
    Ok(())
}

fn template_in_use(node: &Berthd) -> Result<()> {
    let volume = in_use(node)?;
    let unit = &volume["units"][0];
    ensure!(
        volume["template"] == "basic_small"
            && volume["size_bytes"] == 200 * GIB
            && unit["qos"]["total_iops"] == 70,
        "{volume:#}"
    );
    Ok(())
}

/// Nothing is attached, nobody is admitted, the volume is there.
fn left(node: &Berthd) -> Result<()> {
    let answer = node.request("GET", ATTACHMENT, None, DEADLINE)?;
    ensure!(answer.status == 404, "{}", answer.text());
    let volume = volume(node, VOLUME)?;
    let unit = &volume["units"][0];
    ensure!(
        unit["access"] == json!([]) && unit["sessions"] == json!([]),
        "{volume:#}"
    );
    ensure!(volume["state"] == "available", "{volume:#}");
    Ok(())
}

fn gone(node: &Berthd) -> Result<()> {
    let all = volumes(node)?;
    ensure!(all.is_empty(), "{all:?}");
    Ok(())
}

fn copied(node: &Berthd) -> Result<()> {
    let all = volumes(node)?;
    ensure!(all == ["copy", VOLUME], "{all:?}");
    let copy = volume(node, "copy")?;
    ensure!(
        copy["size_bytes"] == 2 * GIB
            && copy["state"] == "available"
            && copy["units"][0]["qos"]["total_iops"] == 90,
        "{copy:#}"
    );
    Ok(())
}

#[test]
fn an_attach_that_is_cut_off_anywhere_is_repeated() -> Result<()> {
    let mut stage = Stage::new()?;
    let scene = |what, body, check| Scene {
        what,
        method: "PUT",
        path: ATTACHMENT,
        body: Some(body),
        done: &[200, 201],
        prepare: nothing,
        check,
        least: 12,
    };
    stage.play(&scene(
        "attach from options",
        from_options(),
        options_in_use,
    ))?;
    stage.play(&scene(
        "attach from a template",
        from_template(),
        template_in_use,
    ))?;
    stage.node.stop()
}

#[test]
fn what_ends_and_copies_volumes_is_repeated() -> Result<()> {
    let mut stage = Stage::new()?;
    let scene = |what, method, path, body, done, prepare, check| Scene {
        what,
        method,
        path,
        body,
        done,
        prepare,
        check,
        least: 4,
    };
    let volume = "/v1/volumes/vol-1";
    stage.play(&scene(
        "detach",
        "DELETE",
        ATTACHMENT,
        None,
        &[204],
        attached,
        left,
    ))?;
    stage.play(&scene("delete", "DELETE", volume, None, &[204], made, gone))?;
    let body = json!({ "source": { "volume": VOLUME }, "size_bytes": 2 * GIB, "qos": { "total_iops": 90 } });
    let copy = "/v1/volumes/copy";
    stage.play(&scene(
        "copy",
        "PUT",
        copy,
        Some(body),
        &[200, 201],
        made,
        copied,
    ))?;
    stage.node.stop()
}
