//! NBD clients that others wrote, on our server: libnbd's tools, QEMU's and fio.
//!
//! nbd-tester-client is not among them: Debian ships nbd-client and nbd-server without it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::peers::{Digests, Peer, Portal, Spec, Tgt};
use berth_tests::{Berthd, tool};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 256 * MIB;
const DEADLINE: Duration = Duration::from_secs(120);

/// A daemon with one attachment called `disk`.
struct Setup {
    daemon: Berthd,
    peer: Box<dyn Peer>,
}

impl Setup {
    fn on(peer: Box<dyn Peer>) -> Result<Self> {
        let daemon = Berthd::start()?;
        daemon.attach("disk", peer.as_ref(), Digests::Prefer)?;
        Ok(Self { daemon, peer })
    }

    fn new() -> Result<Self> {
        Self::on(Box::new(Tgt::start(Spec::open(SIZE_BYTES))?))
    }

    /// On a target that others wrote, and on ours with blocks of 4096 bytes and a write cache: clients need not know.
    fn both() -> Result<[Self; 2]> {
        let options = ["--block-bytes", "4096", "--write-cache"];
        let ours = Portal::start_with(Spec::open(SIZE_BYTES), &options)?;
        Ok([Self::new()?, Self::on(Box::new(ours))?])
    }

    fn uri(&self) -> String {
        self.daemon.nbd_uri("disk")
    }

    /// Everything is still well: the daemon lives, has logged no defect, and detaches and stops cleanly.
    fn finish(self) -> Result<()> {
        let log = self.daemon.log();
        ensure!(!log.contains("panicked"), "{log}");
        self.daemon.detach("disk")?;
        self.daemon.stop()
    }
}

fn json(name: &str, args: &[&str]) -> Result<Value> {
    let output = tool::run(name, args, DEADLINE)?;
    serde_json::from_str(&output.text).with_context(|| output.text)
}

#[test]
fn nbdinfo_lists_and_describes_exports() -> Result<()> {
    let setup = Setup::new()?;
    setup
        .daemon
        .attach("second", setup.peer.as_ref(), Digests::Off)?;
    let socket = setup.daemon.nbd_socket();
    let list = json(
        "nbdinfo",
        &[
            "--json",
            "--list",
            &format!("nbd+unix:///?socket={}", socket.display()),
        ],
    )?;
    assert_eq!(list["protocol"], "newstyle-fixed");
    let mut names: Vec<&str> = list["exports"]
        .as_array()
        .context("exports")?
        .iter()
        .filter_map(|export| export["export-name"].as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["disk", "second"]);

    let info = json("nbdinfo", &["--json", &setup.uri()])?;
    let export = &info["exports"][0];
    assert_eq!(info["structured"], true, "{info:#}");
    assert_eq!(export["export-size"], SIZE_BYTES);
    assert_eq!(export["is_read_only"], false);
    for ability in [
        "can_flush",
        "can_fua",
        "can_multi_conn",
        "can_trim",
        "can_zero",
        "can_df",
        "can_cache",
    ] {
        assert_eq!(export[ability], true, "{ability}: {info:#}");
    }
    let contexts = export["contexts"].as_array().context("contexts")?;
    assert!(contexts.contains(&"base:allocation".into()), "{info:#}");
    let unknown = tool::try_run("nbdinfo", &[setup.daemon.nbd_uri("nobody")], DEADLINE)?;
    assert!(
        !unknown.status.success(),
        "an export that is not there: {}",
        unknown.text
    );
    setup.daemon.detach("second")?;
    setup.finish()
}

#[test]
fn nbdinfo_maps_holes_and_data() -> Result<()> {
    Setup::both()?.into_iter().try_for_each(|setup| {
        let peer = setup.peer.target().to_owned();
        nbdinfo_maps_holes_and_data_on(setup).with_context(|| peer)
    })
}

fn nbdinfo_maps_holes_and_data_on(setup: Setup) -> Result<()> {
    let uri = setup.uri();
    tool::run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0x11 64M 1M",
            "-c",
            "flush",
            &uri,
        ],
        DEADLINE,
    )?;
    let map = json("nbdinfo", &["--json", "--map", &uri])?;
    let extents = map.as_array().context("extents")?;
    let mut end = 0;
    let mut written = false;
    for extent in extents {
        assert_eq!(extent["offset"], end, "a gap or an overlap: {map:#}");
        let len = extent["length"].as_u64().context("length")?;
        let hole = extent["type"].as_u64().context("type")? & 1 != 0;
        let covers = end <= 64 * MIB && 65 * MIB <= end + len;
        written |= covers && !hole;
        end += len;
    }
    assert_eq!(end, SIZE_BYTES, "the map covers the export: {map:#}");
    assert!(written, "data that was written is no hole: {map:#}");
    setup.finish()
}

#[test]
fn qemu_img_converts_in_and_out_and_compares() -> Result<()> {
    Setup::both()?.into_iter().try_for_each(|setup| {
        let peer = setup.peer.target().to_owned();
        qemu_img_converts_in_and_out_and_compares_on(setup).with_context(|| peer)
    })
}

fn qemu_img_converts_in_and_out_and_compares_on(setup: Setup) -> Result<()> {
    let uri = setup.uri();
    let info = json("qemu-img", &["info", "--output", "json", &uri])?;
    assert_eq!(info["virtual-size"], SIZE_BYTES);

    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (raw, copy) = (path("raw"), path("copy.qcow2"));
    // Data, zeroes that are written, holes.
    let size = SIZE_BYTES.to_string();
    tool::run("qemu-img", &["create", "-f", "raw", &raw, &size], DEADLINE)?;
    let patterns = [
        "write -P 0x21 0 3M",
        "write -z 5M 2M",
        "write -P 0x22 100M 33k",
        "write -P 0x23 255M 1M",
    ];
    let mut command = vec!["-f", "raw"];
    for pattern in &patterns {
        command.extend(["-c", pattern]);
    }
    command.push(&raw);
    tool::run("qemu-io", &command, DEADLINE)?;
    // What was there before must not shine through the holes of the source.
    tool::run(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0xee 0 200M", &uri],
        DEADLINE,
    )?;

    tool::run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", &raw, &uri],
        DEADLINE,
    )?;
    let compared = tool::run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &raw, &uri],
        DEADLINE,
    )?;
    assert!(compared.text.contains("identical"), "{}", compared.text);
    tool::run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &uri, &copy],
        DEADLINE,
    )?;
    let compared = tool::run(
        "qemu-img",
        &["compare", "-f", "qcow2", "-F", "raw", &copy, &raw],
        DEADLINE,
    )?;
    assert!(compared.text.contains("identical"), "{}", compared.text);
    setup.finish()
}

#[test]
fn qemu_io_patterns_zeroes_discards_and_odd_places() -> Result<()> {
    Setup::both()?.into_iter().try_for_each(|setup| {
        let peer = setup.peer.target().to_owned();
        qemu_io_patterns_zeroes_discards_and_odd_places_on(setup).with_context(|| peer)
    })
}

fn qemu_io_patterns_zeroes_discards_and_odd_places_on(setup: Setup) -> Result<()> {
    let steps = [
        "write -P 0x5a 0 4M",
        "write -z 512k 64k",       // zeroes, space kept
        "write -z -u 1M 64k",      // zeroes, space may be given back
        "write -f -P 0x07 3M 4k",  // FUA
        "write -P 0x33 2097153 1", // one byte at an odd place
        "write -P 0x44 2101247 3", // over a block's edge
        "aio_write -P 0x55 8M 1M",
        "aio_write -P 0x66 9M 1M",
        "aio_flush",
        "flush",
        "read -P 0x5a 0 512k",
        "read -P 0 512k 64k",
        "read -P 0x5a 589824 448k",
        "read -P 0 1M 64k",
        "read -P 0x07 3M 4k",
        "read -P 0x5a 2097152 1",
        "read -P 0x33 2097153 1",
        "read -P 0x5a 2097154 4093",
        "read -P 0x44 2101247 3",
        "read -P 0x5a 2101250 1000",
        "read -P 0x55 8M 1M",
        "read -P 0x66 9M 1M",
        "discard 8M 1M",
        "read -P 0x66 9M 1M",
        "write -P 0x77 268435455 1", // the last byte
        "read -P 0x77 268435455 1",
    ];
    let uri = setup.uri();
    let mut command = vec!["-f", "raw"];
    for step in &steps {
        command.extend(["-c", step]);
    }
    command.push(&uri);
    let output = tool::run("qemu-io", &command, DEADLINE)?;
    assert!(
        !output.text.contains("Pattern verification failed"),
        "{}",
        output.text
    );
    assert!(
        !output.text.to_lowercase().contains("error"),
        "{}",
        output.text
    );
    setup.finish()
}

/// Random and sequential, sizes from a sector to a mebibyte, every block checked by its CRC after it was written.
fn fio_verify(setup: &Setup, extra: &[&str]) -> Result<()> {
    let uri = format!("--uri={}", setup.uri());
    let mut command = vec![
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--thread",
        "--size=96m",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_backlog=256",
        "--randrepeat=0",
        "--verify_state_save=0",
    ];
    command.extend(extra);
    let output = tool::run("fio", &command, DEADLINE)?;
    assert!(!output.text.contains("verify: bad"), "{}", output.text);
    assert!(output.text.contains("err= 0"), "{}", output.text);
    Ok(())
}

#[test]
fn fio_verifies_mixed_sizes_and_offsets() -> Result<()> {
    Setup::both()?.into_iter().try_for_each(|setup| {
        let peer = setup.peer.target().to_owned();
        fio_verifies_mixed_sizes_and_offsets_on(setup).with_context(|| peer)
    })
}

fn fio_verifies_mixed_sizes_and_offsets_on(setup: Setup) -> Result<()> {
    // fio's client sends nothing smaller than the block size that it was told.
    if setup.peer.target().contains("tgt") {
        let mixed = "--bssplit=512/15:4k/40:12k/15:64k/15:256k/10:1m/5";
        fio_verify(&setup, &["--rw=randrw", mixed])?;
        let odd = ["--bsrange=512-128k", "--blockalign=512", "--size=32m"];
        fio_verify(&setup, &[&["--rw=randwrite"], &odd[..]].concat())?;
    }
    let mixed = "--bssplit=4k/50:12k/20:64k/15:256k/10:1m/5";
    fio_verify(&setup, &["--rw=randrw", mixed])?;
    fio_verify(
        &setup,
        &["--rw=randwrite", mixed, "--offset=128m", "--fsync=64"],
    )?;
    fio_verify(&setup, &["--rw=write", "--bs=1m", "--iodepth=4"])?;
    setup.finish()
}

#[test]
fn nbdcopy_between_two_attachments_over_many_connections() -> Result<()> {
    let setup = Setup::new()?;
    let other = Tgt::start(Spec::open(SIZE_BYTES))?;
    setup.daemon.attach("other", &other, Digests::Off)?;
    tool::run(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0x91 0 150M",
            "-c",
            "flush",
            &setup.uri(),
        ],
        DEADLINE,
    )?;
    let other_uri = setup.daemon.nbd_uri("other");
    tool::run(
        "nbdcopy",
        &[
            "--connections=4",
            "--requests=32",
            "--flush",
            &setup.uri(),
            &other_uri,
        ],
        DEADLINE,
    )?;
    let compared = tool::run(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &setup.uri(),
            &other_uri,
        ],
        DEADLINE,
    )?;
    assert!(compared.text.contains("identical"), "{}", compared.text);
    let (a, b) = (
        setup.peer.backing().context("file")?,
        other.backing().context("file")?,
    );
    assert_eq!(tool::sha256(a, DEADLINE)?, tool::sha256(b, DEADLINE)?);
    setup.daemon.detach("other")?;
    setup.finish()
}
