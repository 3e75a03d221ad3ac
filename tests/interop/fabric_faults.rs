//! Whatever goes wrong with the fabric's REST API: I/O of what is attached goes on, calls end in time with the right code, and
//! everything works again when it does. Whom the daemon takes for the fabric is checked, always.

use std::io::{ErrorKind, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_agent::sim::fabric::{FaultAction, FaultRule};
use berth_tests::Berthd;
use berth_tests::berthd::INITIATOR;
use berth_tests::prober::{Prober, percentile};
use berth_tests::process::wait_for;
use serde_json::{Value, json};

use crate::fabric_site::{DEADLINE, GIB, Site, attach_body, call, check_data};

const NAME: &str = "data";
/// As configured below.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// What a call may take besides, on two busy cores.
const SLACK: Duration = Duration::from_secs(2);
/// A request of 4 KiB, 50 times a second. Without any fault the longest is some ten milliseconds on a quiet machine; a request
/// that waited for a call to the fabric would take seconds.
const INTERVAL: Duration = Duration::from_millis(20);
/// Requests while something is wrong, at least.
const PROBES_MIN: usize = 75;
const IO_WAIT_MAX: Duration = Duration::from_millis(1000);

/// Connections to wherever the fabric is said to be; nowhere: they are closed.
struct Forward {
    address: SocketAddr,
    shared: Arc<ForwardState>,
    thread: Option<JoinHandle<()>>,
}

struct ForwardState {
    to: Mutex<Option<SocketAddr>>,
    open: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

impl Forward {
    fn start(from: &str, to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(from)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(ForwardState {
            to: Mutex::new(Some(to)),
            open: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut copies = Vec::new();
            for stream in listener.incoming().flatten() {
                if theirs.stop.load(Ordering::Acquire) {
                    break;
                }
                let Some(to) = *lock(&theirs.to) else {
                    continue; // Dropping it closes the connection.
                };
                if let Ok(both) = join(stream, to, &theirs) {
                    copies.extend(both);
                }
            }
            theirs.cut();
            for thread in copies {
                let _ = thread.join();
            }
        });
        Ok(Self {
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// From now on connections lead there; those that are open end.
    fn lead(&self, to: Option<SocketAddr>) {
        *lock(&self.shared.to) = to;
        self.shared.cut();
    }
}

impl ForwardState {
    fn cut(&self) {
        for stream in lock(&self.open).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.cut();
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn join(from: TcpStream, to: SocketAddr, shared: &ForwardState) -> Result<[JoinHandle<()>; 2]> {
    let to = TcpStream::connect(to)?;
    lock(&shared.open).extend([from.try_clone()?, to.try_clone()?]);
    let one_way = |mut from: TcpStream, mut to: TcpStream| {
        std::thread::spawn(move || {
            let _ = copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        })
    };
    let there = one_way(from.try_clone()?, to.try_clone()?);
    Ok([there, one_way(to, from)])
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that goes wrong with the fabric.
struct Trouble {
    what: &'static str,
    begin: fn(&Stage) -> Result<()>,
    /// Codes of calls while it lasts.
    codes: &'static [&'static str],
    /// A word that has to be in the text of the first one.
    word: &'static str,
}

struct Stage {
    forward: Forward,
    node: Berthd,
    site: Site,
    /// Another fabric, with a certificate of its own.
    stranger: Site,
}

impl Stage {
    fn new() -> Result<Self> {
        let (site, stranger) = (Site::start()?, Site::start()?);
        let forward = Forward::start("127.0.0.1:0", site.fabric.https().context("HTTPS")?)?;
        let url = format!("https://{}", forward.address);
        let pinned = format!("fingerprint = \"{}\"", fingerprint(&site)?);
        let limits = "connect_timeout = \"1s\"\nrequest_timeout = \"2s\"\ncall_timeout = \"3s\"\n\
                      breaker_pause = \"500ms\"\n";
        let config = site.config(&url, &format!("{pinned}\n{limits}"));
        let node = Berthd::start_with(&config, None)?;
        let source = json!({ "volume": "vol-1", "create": { "size_bytes": GIB } });
        node.attach_with(NAME, &attach_body(&source))?;
        Ok(Self {
            forward,
            node,
            site,
            stranger,
        })
    }

    fn rule(&self, rule: FaultRule) -> Result<()> {
        Ok(self.site.fabric.set_faults(vec![rule])?)
    }

    fn heal(&self) -> Result<()> {
        self.site.fabric.set_faults(Vec::new())?;
        let https = self.site.fabric.https();
        if *lock(&self.forward.shared.to) != https {
            self.forward.lead(https);
        }
        Ok(())
    }

    /// A call that has to fail in time; the problem.
    fn fails(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let begun = Instant::now();
        let answer = self.node.request(method, path, body, DEADLINE)?;
        let took = begun.elapsed();
        ensure!(
            took < CALL_TIMEOUT + SLACK,
            "{method} {path} took {took:?}: {}",
            answer.text()
        );
        ensure!(answer.status >= 500, "{method} {path}: {}", answer.text());
        answer.json()
    }

    fn play(&self, trouble: &Trouble) -> Result<()> {
        let prober = Prober::start(&self.node.nbd_socket(), NAME, GIB / 2, INTERVAL)?;
        let begun = Instant::now();
        (trouble.begin)(self)?;
        let body = json!({ "size_bytes": GIB });
        let source = json!({ "volume": "vol-2", "create": { "size_bytes": GIB } });
        let mut attach = attach_body(&source);
        attach["attach_timeout_seconds"] = 3.into();
        let first = self.fails("GET", "/v1/volumes", None)?;
        let text = first["detail"].as_str().unwrap_or_default();
        ensure!(text.contains(trouble.word), "{first:#}");
        let others = [
            self.fails("PUT", "/v1/volumes/vol-2", Some(&body))?,
            self.fails("DELETE", "/v1/volumes/vol-1", None)?,
            self.fails("PUT", "/v1/attachments/other", Some(&attach))?,
        ];
        for problem in others.iter().chain([&first]) {
            let code = problem["code"].as_str().unwrap_or_default();
            ensure!(trouble.codes.contains(&code), "{problem:#}");
            ensure!(problem["retryable"] == true, "{problem:#}");
        }
        let attachment = self.node.attachment(NAME)?;
        ensure!(attachment["state"] == "attached", "{attachment:#}");
        let status = call(&self.node, "GET", "/v1/fabric", None, &[200])?.json()?;
        ensure!(
            status["reachable"] == false && status["reason"]["code"].is_string(),
            "{status:#}"
        );
        call(&self.node, "GET", "/readyz", None, &[200])?;
        wait_for("I/O while it lasts", DEADLINE, || {
            let enough = prober.probes_since(begun).len() >= PROBES_MIN;
            Ok(enough.then_some(()))
        })?;
        let lasted = begun.elapsed();
        self.heal()?;
        let healed = Instant::now();
        wait_for("the fabric to be used again", DEADLINE, || {
            let answer = self.node.request("GET", "/v1/volumes", None, DEADLINE)?;
            Ok((answer.status == 200).then_some(()))
        })?;
        let healed = healed.elapsed();
        call(
            &self.node,
            "PUT",
            "/v1/attachments/other",
            Some(&attach),
            &[200, 201],
        )?;
        check_data(&self.node, "other", 0x77)?;
        self.node.detach("other")?;
        call(&self.node, "DELETE", "/v1/volumes/vol-2", None, &[204])?;
        let probes = prober.finish()?;
        let longest = percentile(&probes, 100);
        println!(
            "{:18} {} for {:.1} s; longest I/O wait {} ms of {} requests; used again after {} ms",
            trouble.what,
            first["code"].as_str().unwrap_or_default(),
            lasted.as_secs_f32(),
            longest.as_millis(),
            probes.len(),
            healed.as_millis()
        );
        ensure!(
            longest < IO_WAIT_MAX,
            "{}: I/O waited {longest:?}",
            trouble.what
        );
        Ok(())
    }
}

fn fingerprint(site: &Site) -> Result<&str> {
    site.fabric.fingerprint().context("HTTPS is served")
}

#[test]
fn whatever_the_fabric_does_attached_volumes_go_on() -> Result<()> {
    let stage = Stage::new()?;
    let away: &[&str] = &["fabric-unavailable"];
    let late: &[&str] = &["deadline", "fabric-unavailable"];
    for trouble in [
        Trouble {
            what: "down",
            begin: |stage| {
                stage.forward.lead(None);
                Ok(())
            },
            codes: away,
            word: "does not answer",
        },
        Trouble {
            what: "slow, 30 s",
            begin: |stage| stage.rule(FaultRule::delay(Duration::from_secs(30))),
            codes: late,
            word: "in time",
        },
        Trouble {
            what: "401",
            begin: |stage| stage.rule(FaultRule::status(401)),
            codes: away,
            word: "does not accept user",
        },
        Trouble {
            what: "500",
            begin: |stage| stage.rule(FaultRule::status(500)),
            codes: away,
            word: "status 500",
        },
        Trouble {
            what: "garbage",
            begin: |stage| stage.rule(FaultRule::new(FaultAction::Garbage)),
            codes: away,
            word: "no JSON",
        },
        Trouble {
            what: "half a JSON",
            begin: |stage| stage.rule(FaultRule::new(FaultAction::HalfJson)),
            codes: away,
            word: "no JSON",
        },
        Trouble {
            what: "cut connections",
            begin: |stage| stage.rule(FaultRule::new(FaultAction::Cut)),
            codes: away,
            word: "the connection broke",
        },
        Trouble {
            what: "wrong certificate",
            begin: |stage| {
                stage.forward.lead(stage.stranger.fabric.https());
                Ok(())
            },
            codes: away,
            word: "fingerprint",
        },
    ] {
        stage
            .play(&trouble)
            .with_context(|| format!("{}\n{}", trouble.what, stage.node.log()))?;
    }
    stage.node.stop()
}

/// Asks a fabric that is trusted as `trust` says; what the daemon makes of it.
fn asked(site: &Site, url: &str, trust: &str) -> Result<Value> {
    let node = Berthd::start_node(INITIATOR, &site.config(url, trust))?;
    let status = call(&node, "GET", "/v1/fabric", None, &[200])?.json()?;
    let answer = node.request("GET", "/v1/templates", None, DEADLINE)?;
    ensure!(
        (answer.status == 200) == (status["reachable"] == true),
        "{}",
        answer.text()
    );
    node.stop()?;
    Ok(status)
}

#[test]
fn whom_the_daemon_takes_for_the_fabric_is_checked() -> Result<()> {
    let (site, stranger) = (Site::start()?, Site::start()?);
    let https = site.fabric.https().context("HTTPS is served")?;
    let elsewhere = Forward::start("127.0.0.2:0", https)?;
    let (url, other_name) = (
        format!("https://{https}"),
        format!("https://{}", elsewhere.address),
    );
    let pinned =
        |of: &Site| Ok::<_, anyhow::Error>(format!("fingerprint = \"{}\"", fingerprint(of)?));
    let authority = |of: &Site| {
        let file = of.dir.path().join("fabric/tls/cert.pem");
        format!("ca_file = \"{}\"", file.display())
    };
    for (what, url, trust, word) in [
        ("the pinned certificate", &url, pinned(&site)?, None),
        (
            "the pinned certificate, whatever its name",
            &other_name,
            pinned(&site)?,
            None,
        ),
        (
            "another certificate",
            &url,
            pinned(&stranger)?,
            Some("SHA-256 fingerprint"),
        ),
        ("its authority", &url, authority(&site), None),
        (
            "another authority",
            &url,
            authority(&stranger),
            Some("not trusted"),
        ),
        (
            "its authority, another name",
            &other_name,
            authority(&site),
            Some("not valid for name"),
        ),
        (
            "the authorities of the system",
            &url,
            String::new(),
            Some("not trusted"),
        ),
    ] {
        let status = asked(&site, url, &trust).context(what)?;
        match word {
            None => ensure!(status["reachable"] == true, "{what}: {status:#}"),
            Some(word) => {
                let text = status["reason"]["detail"].as_str().unwrap_or_default();
                ensure!(
                    status["reachable"] == false && text.contains(word),
                    "{what}: {status:#}"
                );
            }
        }
    }
    // Clear text over a network is refused before anything is sent.
    let config = site.config("http://192.0.2.1:7717", "");
    let refused = Berthd::start_node(INITIATOR, &config);
    let text = refused
        .err()
        .map_or_else(String::new, |error| format!("{error:#}"));
    ensure!(text.contains("sends the password in clear text"), "{text}");
    // And nothing that is no HTTP at all is taken for the fabric.
    let mute = TcpListener::bind("127.0.0.1:0")?;
    mute.set_nonblocking(true)?;
    let trust = format!("{}\nrequest_timeout = \"1s\"", pinned(&site)?);
    let status = asked(&site, &format!("https://{}", mute.local_addr()?), &trust)?;
    ensure!(status["reachable"] == false, "{status:#}");
    let accepted = mute.accept();
    ensure!(
        accepted.as_ref().err().map(std::io::Error::kind) != Some(ErrorKind::WouldBlock),
        "it was asked: {accepted:?}"
    );
    Ok(())
}
