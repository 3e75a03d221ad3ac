//! The peers themselves: somebody else's initiator can use them, so what fails with berth is berth's.

use std::time::Duration;

use anyhow::Result;
use berth_tests::berthd::INITIATOR;
use berth_tests::peers::{Istgt, Lio, Peer, Spec, Tgt};
use berth_tests::{process, tool};

const MIB: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(60);

/// libiscsi has no data digests, so the peers of this file do not demand any.
fn spec() -> Spec {
    Spec {
        digests_required: false,
        ..Spec::chap(64 * MIB)
    }
}

/// Writes a pattern through QEMU's initiator, reads it back, and looks for it in the file behind the LUN.
fn check(peer: &dyn Peer) -> Result<()> {
    let chap = peer
        .spec()
        .chap
        .as_ref()
        .expect("the spec of this file has CHAP");
    let image = format!(
        "driver=iscsi,transport=tcp,portal={},target={},lun={},initiator-name={INITIATOR},user={},password={}",
        peer.portal(),
        peer.target(),
        peer.lun(),
        chap.user,
        chap.secret
    );
    let mut command = vec!["--kill-after=1", "50", "qemu-io", "--image-opts", &image];
    command.extend([
        "-c",
        "write -P 0xb7 1M 3M",
        "-c",
        "flush",
        "-c",
        "read -P 0xb7 1M 3M",
    ]);
    let output = match peer.netns() {
        None => tool::run("timeout", &command, DEADLINE)?,
        Some(netns) => {
            let inside = [&["netns", "exec", netns, "timeout"], command.as_slice()].concat();
            tool::run("ip", &inside, DEADLINE)?
        }
    };
    assert!(
        !output.text.contains("Pattern verification failed"),
        "{}",
        output.text
    );
    let file = std::fs::read(peer.backing().expect("these peers serve files"))?;
    assert!(file[..MIB as usize].iter().all(|byte| *byte == 0));
    assert!(
        file[MIB as usize..4 * MIB as usize]
            .iter()
            .all(|byte| *byte == 0xb7)
    );
    Ok(())
}

#[test]
fn tgt_serves_and_is_gone_when_dropped() -> Result<()> {
    let tgt = Tgt::start(spec())?;
    check(&tgt)?;
    let pid = tgt.pid();
    process::usage(pid)?;
    drop(tgt);
    process::usage(pid).unwrap_err();
    Ok(())
}

#[test]
fn istgt_serves() -> Result<()> {
    check(&Istgt::start(spec())?)
}

#[test]
fn lio_serves() -> Result<()> {
    let lio = Lio::start(spec())?;
    check(&lio)?;
    let netns = lio.netns().expect("LIO is in a namespace").to_owned();
    drop(lio);
    let list = tool::run("ip", &["netns", "list"], DEADLINE)?.text;
    assert!(!list.contains(&netns), "{list}");
    Ok(())
}
