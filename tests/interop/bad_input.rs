//! Wrong input of every kind: a clear error within its deadline, and the daemon goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::berthd::{attach_body, basic_config};
use berth_tests::http::Answer;
use berth_tests::peers::{Digests, Peer, Spec, Tgt};
use berth_tests::ports::free_port;
use berth_tests::{Berthd, Process, programs, tool};
use serde_json::{Value, json};

use crate::raw_nbd::{CMD_READ, CMD_WRITE, EINVAL, RawClient};
use crate::silence::{BadPortal, Manner};

const MIB: u64 = 1 << 20;
/// What an answer may take that waits for nobody.
const SOON: Duration = Duration::from_secs(8);
/// What the attaches of this file allow themselves.
const ATTACH_TIMEOUT_S: u64 = 3;

/// One kind of wrong attach, and what the caller must learn.
pub(crate) struct BadAttach {
    pub(crate) what: &'static str,
    pub(crate) body: Value,
    /// HTTP status and code; several where the peer's behaviour may be seen in more ways than one.
    pub(crate) expected: &'static [(u16, &'static str)],
    /// A word that the explanation must hold.
    pub(crate) word: String,
}

/// The portals that are no targets; they must live as long as the table is used.
pub(crate) struct BadPeers {
    silent: BadPortal,
    garbage: BadPortal,
}

impl BadPeers {
    pub(crate) fn start() -> Result<Self> {
        Ok(Self {
            silent: BadPortal::start(Manner::Silent)?,
            garbage: BadPortal::start(Manner::Garbage)?,
        })
    }
}

/// The table. `tgt` wants CHAP.
pub(crate) fn bad_attaches(tgt: &Tgt, peers: &BadPeers, attach_timeout_s: u64) -> Vec<BadAttach> {
    let good = || {
        let mut body = attach_body(tgt, Digests::Prefer);
        body["attach_timeout_seconds"] = attach_timeout_s.into();
        body
    };
    let changed = |field: &str, value: Value| {
        let mut body = good();
        body["source"]["iscsi"][field] = value;
        body
    };
    let case = |what, body, expected, word: &str| BadAttach {
        what,
        body,
        expected,
        word: word.to_owned(),
    };
    let mut wrong_secret = good();
    wrong_secret["source"]["iscsi"]["auth"]["chap"]["secret"] = "not-the-secret!!".into();
    let closed = format!("127.0.0.1:{}", free_port());
    vec![
        case(
            "wrong CHAP secret",
            wrong_secret,
            &[(422, "authentication-failed")],
            "secret",
        ),
        case(
            "no CHAP where it is demanded",
            changed("auth", Value::Null),
            &[(422, "authentication-failed")],
            "",
        ),
        case(
            "unknown target",
            changed("target", "iqn.2026-11.example:nobody".into()),
            &[(422, "target-not-found")],
            "iqn.2026-11.example:nobody",
        ),
        case(
            "LUN that is not there",
            changed("lun", 77.into()),
            &[(422, "lun-not-found")],
            "77",
        ),
        case(
            "closed portal",
            changed("portals", json!([closed])),
            &[(503, "target-unreachable")],
            &closed,
        ),
        case(
            "silent portal",
            changed("portals", json!([peers.silent.portal()])),
            &[(503, "target-unreachable"), (504, "deadline")],
            "",
        ),
        case(
            "garbage from the portal",
            changed("portals", json!([peers.garbage.portal()])),
            &[(502, "target-incompatible")],
            "",
        ),
    ]
}

/// Sends a wrong attach and checks the problem document.
pub(crate) fn refuse(daemon: &Berthd, name: &str, bad: &BadAttach, within: Duration) -> Result<()> {
    let path = format!("/v1/attachments/{name}");
    let started = Instant::now();
    let answer = daemon
        .request("PUT", &path, Some(&bad.body), within)
        .with_context(|| bad.what)?;
    ensure!(
        started.elapsed() <= within,
        "{}: after {:?}",
        bad.what,
        started.elapsed()
    );
    let problem = problem(&answer).with_context(|| bad.what)?;
    let got = (answer.status, problem["code"].as_str().unwrap_or_default());
    ensure!(
        bad.expected.contains(&got),
        "{}: {got:?} instead of {:?}: {problem:#}",
        bad.what,
        bad.expected
    );
    let detail = problem["detail"].as_str().unwrap_or_default();
    ensure!(
        !detail.is_empty() && detail.contains(&bad.word),
        "{}: {detail:?} lacks {:?}",
        bad.what,
        bad.word
    );
    // Whatever is left of it, the way out is to detach.
    let answer = daemon.request("DELETE", &path, None, within)?;
    ensure!(
        answer.status == 204,
        "{}: detach: {}",
        bad.what,
        answer.text()
    );
    Ok(())
}

fn problem(answer: &Answer) -> Result<Value> {
    ensure!(answer.status >= 400, "accepted: {}", answer.text());
    let kind = answer.header("content-type").unwrap_or_default();
    ensure!(
        kind.starts_with("application/problem+json"),
        "content type {kind}: {}",
        answer.text()
    );
    let problem = answer.json()?;
    for field in ["type", "title", "status", "detail", "code", "retryable"] {
        ensure!(!problem[field].is_null(), "{field} is missing: {problem:#}");
    }
    ensure!(problem["status"] == answer.status, "{problem:#}");
    Ok(problem)
}

#[test]
fn wrong_attaches_are_refused_with_the_reason() -> Result<()> {
    let tgt = Tgt::start(Spec::chap(16 * MIB))?;
    let peers = BadPeers::start()?;
    let daemon = Berthd::start()?;
    for bad in bad_attaches(&tgt, &peers, ATTACH_TIMEOUT_S) {
        refuse(&daemon, "bad", &bad, SOON)?;
        let log = daemon.log();
        ensure!(!log.contains("not-the-secret"), "a secret is logged");
        ensure!(!log.contains("panicked"), "{}: {log}", bad.what);
    }
    // The same daemon still does its work.
    daemon.attach("good", &tgt, Digests::Require)?;
    daemon.detach("good")?;
    daemon.stop()
}

#[test]
fn a_second_attach_with_another_body_is_a_conflict_and_the_first_goes_on() -> Result<()> {
    let tgt = Tgt::start(Spec::open(16 * MIB))?;
    let daemon = Berthd::start()?;
    daemon.attach("disk", &tgt, Digests::Off)?;
    let mut other = attach_body(&tgt, Digests::Off);
    other["read_only"] = true.into();
    let answer = daemon.request("PUT", "/v1/attachments/disk", Some(&other), SOON)?;
    let problem = problem(&answer)?;
    assert_eq!(
        (answer.status, problem["code"].as_str()),
        (409, Some("conflict-incompatible")),
        "{problem:#}"
    );
    assert!(
        problem["detail"]
            .as_str()
            .unwrap_or_default()
            .contains("read_only"),
        "{problem:#}"
    );
    let same = attach_body(&tgt, Digests::Off);
    assert_eq!(
        daemon
            .request("PUT", "/v1/attachments/disk", Some(&same), SOON)?
            .status,
        200
    );
    let uri = daemon.nbd_uri("disk");
    tool::run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 1 0 1M",
            "-c",
            "read -P 1 0 1M",
            &uri,
        ],
        SOON,
    )?;
    daemon.detach("disk")?;
    daemon.stop()
}

#[test]
fn requests_that_make_no_sense_are_named() -> Result<()> {
    let tgt = Tgt::start(Spec::open(16 * MIB))?;
    let daemon = Berthd::start()?;
    let good = attach_body(&tgt, Digests::Off);
    let with = |change: fn(&mut Value)| {
        let mut body = good.clone();
        change(&mut body);
        body
    };
    let bodies = [
        (
            "unknown field",
            with(|body| body["fense"] = "acl".into()),
            "fense",
        ),
        (
            "unknown word",
            with(|body| body["digests"]["header"] = "maybe".into()),
            "maybe",
        ),
        (
            "bad target name",
            with(|body| body["source"]["iscsi"]["target"] = "disk0".into()),
            "source.iscsi.target",
        ),
        (
            "bad portal",
            with(|body| body["source"]["iscsi"]["portals"] = json!(["host:port"])),
            "source.iscsi.portals[0]",
        ),
        (
            "no portal",
            with(|body| body["source"]["iscsi"]["portals"] = json!([])),
            "portal",
        ),
        (
            "no source",
            with(|body| body["source"] = json!({})),
            "source",
        ),
    ];
    for (what, body, word) in bodies {
        let answer = daemon.request("PUT", "/v1/attachments/disk", Some(&body), SOON)?;
        let problem = problem(&answer).with_context(|| what)?;
        assert_eq!(
            (answer.status, problem["code"].as_str()),
            (400, Some("invalid-argument")),
            "{what}: {problem:#}"
        );
        let all = problem.to_string();
        assert!(
            all.contains(word),
            "{what}: {word:?} is not named: {problem:#}"
        );
    }
    for path in [
        "/v1/attachments/..%2f..%2fetc",
        "/v1/attachments/",
        "/v1/nothing",
    ] {
        let answer = daemon.request("PUT", path, Some(&good), SOON)?;
        assert!(
            (400..500).contains(&answer.status),
            "{path}: {}",
            answer.text()
        );
    }
    daemon.stop()
}

/// Number of the line that contains `word`, from 1.
fn line_with(text: &str, word: &str) -> usize {
    let at = text.lines().position(|line| line.contains(word));
    at.expect("the word is there") + 1
}

#[test]
fn a_configuration_with_a_typo_names_file_line_and_key() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("berth.toml");
    let berthd = programs::ours("berthd")?;
    let good = basic_config(dir.path());
    let lines = good.lines().count();
    let token = "listen = \"127.0.0.1:0\"\ntoken_file = \"/nowhere/token\"\n";
    let added = |line: &str| format!("{good}{line}\n");
    let cases = [
        ("unknown key", added("sokcet = \"/x\""), lines + 1, "sokcet"),
        (
            "wrong type",
            added("connections_max = \"many\""),
            lines + 1,
            "connections_max",
        ),
        (
            "wrong unit",
            added("handshake_timeout = \"10 parsecs\""),
            lines + 1,
            "handshake_timeout",
        ),
        (
            "unknown word",
            added("[log]\nformat = \"xml\""),
            lines + 2,
            "xml",
        ),
        (
            "bad name",
            good.replace("iqn.2026-11.io.berth:test", "test"),
            line_with(&good, "initiator_name"),
            "initiator_name",
        ),
        (
            "unreadable secret",
            good.replace("[nbd]", &format!("{token}[nbd]")),
            line_with(&good, "[nbd]") + 1,
            "api.token_file",
        ),
        ("no TOML", added("[[["), lines + 1, "TOML"),
    ];
    for (what, text, line, word) in cases {
        std::fs::write(&config, &text)?;
        let mut process = Process::start(
            "berthd",
            &berthd,
            [std::path::Path::new("--config"), &config],
            &[],
            &dir.path().join("log"),
        )?;
        let status = process.wait_end(SOON).with_context(|| what)?;
        let log = process.log();
        assert!(!status.success(), "{what}: {log}");
        assert!(
            log.contains("berth.toml"),
            "{what}: the file is not named: {log}"
        );
        assert!(log.contains(word), "{what}: {word} is not named: {log}");
        assert!(
            log.contains(&line.to_string()),
            "{what}: line {line} is not named: {log}"
        );
        assert!(!log.contains("panicked"), "{what}: {log}");
        assert!(
            !dir.path().join("run/api.sock").exists(),
            "{what}: a port was opened"
        );
    }
    Ok(())
}

/// NBD clients that are none, or ask for what cannot be.
pub(crate) fn bad_nbd_clients(daemon: &Berthd, export: &str) -> Result<()> {
    use std::io::Write as _;
    let socket = daemon.nbd_socket();
    // Says nothing and leaves; leaves in the middle of an option.
    drop(RawClient::connect(&socket, SOON)?);
    let mut cut = RawClient::connect(&socket, SOON)?;
    cut.0.write_all(&[0, 0, 0, 3, b'I', b'H'])?;
    drop(cut);
    // Garbage instead of flags, of an option, of a request.
    let mut flags = RawClient::connect(&socket, SOON)?;
    flags.0.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    flags.expect_closed().context("garbage flags")?;
    let mut option = RawClient::connect(&socket, SOON)?;
    option
        .0
        .write_all(&[&[0, 0, 0, 3][..], &[0xa5; 64]].concat())?;
    option.expect_closed().context("garbage option")?;
    let mut request = RawClient::connect(&socket, SOON)?;
    request.go(export)?;
    request.0.write_all(&[0x5a; 64])?;
    request.expect_closed().context("garbage request")?;
    // An export that is not there is an answer, not a hang-up.
    let mut unknown = RawClient::connect(&socket, SOON)?;
    let refused = unknown
        .go("nobody")
        .err()
        .context("an unknown export was opened")?;
    ensure!(format!("{refused:#}").contains("GO:"), "{refused:#}");

    let mut client = RawClient::connect(&socket, SOON)?;
    client.go(export)?;
    // 4 GiB, past the end, at the end of all numbers, an unknown command: refused, and the connection is of use.
    for (cookie, offset, len) in [
        (1, 0, u32::MAX),
        (2, 1 << 40, 4096),
        (3, u64::MAX - 100, 4096),
    ] {
        client.request(CMD_READ, cookie, offset, len)?;
        ensure!(client.reply()? == (EINVAL, cookie), "read {offset}+{len}");
    }
    client.request(99, 4, 0, 0)?;
    ensure!(client.reply()? == (EINVAL, 4), "unknown command");
    client.request(CMD_READ, 5, 0, 512)?;
    ensure!(client.reply()? == (0, 5), "a good read after bad ones");
    client.read::<512>()?;
    // A write that announces 4 GiB: nobody waits for that much. Refused or cut off, but not swallowed.
    client.request(CMD_WRITE, 6, 0, u32::MAX)?;
    client.0.write_all(&[0; 4096])?;
    Ok(())
}

#[test]
fn nbd_clients_that_send_garbage_are_refused_and_the_others_served() -> Result<()> {
    let tgt = Tgt::start(Spec::open(16 * MIB))?;
    let daemon = Berthd::start()?;
    daemon.attach("disk", &tgt, Digests::Off)?;
    let mut bystander = RawClient::connect(&daemon.nbd_socket(), SOON)?;
    bystander.go("disk")?;
    let before = daemon.usage()?.rss_bytes;
    for _ in 0..10 {
        bad_nbd_clients(&daemon, "disk")?;
        bystander.request(CMD_READ, 9, 0, 4096)?;
        ensure!(bystander.reply()? == (0, 9), "the bystander");
        bystander.read::<4096>()?;
    }
    let grown = daemon.usage()?.rss_bytes.saturating_sub(before);
    ensure!(
        grown < 64 * MIB,
        "{grown} bytes were allocated for what was refused"
    );
    ensure!(!daemon.log().contains("panicked"), "{}", daemon.log());
    drop(bystander);
    assert_eq!(tgt.lun(), 1);
    daemon.detach("disk")?;
    daemon.stop()
}
