//! The main job on targets that others wrote: attach over HTTP with CHAP and both digests, copy a gibibyte of random data
//! in and out, detach, attach again, and the data is still there.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::peers::{Digests, Istgt, Lio, Peer, Spec, Tgt};
use berth_tests::{Berthd, tool};
use rustix::process::Signal;

const SIZE_BYTES: u64 = 1 << 30;
/// For one pass over the data. LIO in a guest kernel does about 50 MB/s.
const PASS: Duration = Duration::from_secs(180);

/// A gibibyte that nobody can guess, made once; the file has no name and goes with the process.
struct Source {
    path: PathBuf,
    sha256: String,
    _file: File,
}

fn source() -> Result<&'static Source> {
    static SOURCE: OnceLock<Result<Source, String>> = OnceLock::new();
    let make = || -> Result<Source> {
        let mut file = tempfile::tempfile()?;
        let mut random = std::io::Read::take(File::open("/dev/urandom")?, SIZE_BYTES);
        std::io::copy(&mut random, &mut file)?;
        let path: PathBuf = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into();
        let sha256 = tool::sha256(&path, PASS)?;
        Ok(Source {
            path,
            sha256,
            _file: file,
        })
    };
    SOURCE
        .get_or_init(|| make().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// What the export reads as, by a client that others wrote.
fn sha256_of_export(daemon: &Berthd, name: &str) -> Result<String> {
    let copy = tempfile::NamedTempFile::new()?;
    let path = copy.path().to_str().context("temporary path")?;
    tool::run("nbdcopy", &[&daemon.nbd_uri(name), path], PASS)?;
    ensure!(
        copy.as_file().metadata()?.len() == SIZE_BYTES,
        "the copy has another size"
    );
    tool::sha256(copy.path(), PASS)
}

fn round_trip(peer: &dyn Peer) -> Result<()> {
    let source = source()?;
    let mut daemon = Berthd::start_for(peer)?;
    let attachment = daemon.attach("disk", peer, Digests::Require)?;
    assert_eq!(attachment["size_bytes"], SIZE_BYTES, "{attachment:#}");
    assert_eq!(
        attachment["nbd_uri"],
        daemon.nbd_uri("disk"),
        "{attachment:#}"
    );
    let negotiated = &attachment["sessions"][0]["negotiated"];
    assert_eq!(negotiated["HeaderDigest"], "CRC32C", "{attachment:#}");
    assert_eq!(negotiated["DataDigest"], "CRC32C", "{attachment:#}");
    for secret in [&peer.spec().chap, &peer.spec().mutual]
        .into_iter()
        .flatten()
    {
        assert!(
            !attachment.to_string().contains(&secret.secret),
            "a secret is told"
        );
        assert!(!daemon.log().contains(&secret.secret), "a secret is logged");
    }

    let uri = daemon.nbd_uri("disk");
    let path = source.path.to_str().context("temporary path")?;
    tool::run("nbdcopy", &["--flush", path, &uri], PASS)?;
    assert_eq!(
        sha256_of_export(&daemon, "disk")?,
        source.sha256,
        "read back"
    );
    daemon.detach("disk")?;
    let gone = daemon.request("GET", "/v1/attachments/disk", None, PASS)?;
    assert_eq!(gone.status, 404, "{}", gone.text());
    // Flushed and detached: the target has it, whatever berth says.
    let backing = peer.backing().context("these peers serve files")?;
    assert_eq!(
        tool::sha256(backing, PASS)?,
        source.sha256,
        "the file behind the LUN"
    );

    daemon.attach("disk", peer, Digests::Require)?;
    assert_eq!(
        sha256_of_export(&daemon, "disk")?,
        source.sha256,
        "after attaching again"
    );
    // The attachment is intent: a daemon that is started again takes it up by itself.
    daemon.restart(Signal::TERM)?;
    let answer = daemon.request(
        "PUT",
        "/v1/attachments/disk",
        Some(&berth_tests::berthd::attach_body(peer, Digests::Require)),
        PASS,
    )?;
    assert_eq!(
        answer.status,
        200,
        "the attachment was forgotten: {}",
        answer.text()
    );
    assert_eq!(
        sha256_of_export(&daemon, "disk")?,
        source.sha256,
        "after a restart"
    );
    daemon.detach("disk")?;
    // Absent is what was wanted.
    daemon.detach("disk")?;
    daemon.stop()
}

#[test]
fn tgt_with_one_way_chap() -> Result<()> {
    round_trip(&Tgt::start(Spec::chap(SIZE_BYTES))?)
}

#[test]
fn tgt_with_mutual_chap() -> Result<()> {
    round_trip(&Tgt::start(Spec::mutual_chap(SIZE_BYTES))?)
}

#[test]
fn istgt_with_mutual_chap() -> Result<()> {
    round_trip(&Istgt::start(Spec::mutual_chap(SIZE_BYTES))?)
}

#[test]
fn istgt_with_one_way_chap() -> Result<()> {
    round_trip(&Istgt::start(Spec::chap(SIZE_BYTES))?)
}

#[test]
fn lio_with_one_way_chap() -> Result<()> {
    round_trip(&Lio::start(Spec::chap(SIZE_BYTES))?)
}

#[test]
fn lio_with_mutual_chap() -> Result<()> {
    round_trip(&Lio::start(Spec::mutual_chap(SIZE_BYTES))?)
}
