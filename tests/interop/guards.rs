//! The peers themselves: somebody else's initiator can use them, so what fails with berth is berth's.

use std::time::Duration;

use anyhow::{Result, ensure};
use berth_tests::berthd::INITIATOR;
use berth_tests::net::Network;
use berth_tests::peers::{Istgt, Lio, Mortal, Peer, Spec, Tgt};
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

/// QEMU's initiator on the LUN, with commands of qemu-io.
fn qemu_io(peer: &dyn Peer, commands: &[&str]) -> Result<tool::Output> {
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
    let mut command = vec!["--kill-after=1", "10", "qemu-io", "--image-opts", &image];
    for line in commands {
        command.extend(["-c", line]);
    }
    let output = match peer.netns() {
        None => tool::try_run("timeout", &command, DEADLINE)?,
        Some(netns) => {
            let inside = [&["netns", "exec", netns, "timeout"], command.as_slice()].concat();
            tool::try_run("ip", &inside, DEADLINE)?
        }
    };
    ensure!(
        !output.text.contains("Pattern verification failed"),
        "{}",
        output.text
    );
    Ok(output)
}

/// Writes a pattern through QEMU's initiator, reads it back, and looks for it in the file behind the LUN.
fn check(peer: &dyn Peer) -> Result<()> {
    let commands = ["write -P 0xb7 1M 3M", "flush", "read -P 0xb7 1M 3M"];
    let output = qemu_io(peer, &commands)?;
    ensure!(output.status.success(), "{}", output.text);
    let file = std::fs::read(peer.backing().expect("these peers serve files"))?;
    assert!(file[..MIB as usize].iter().all(|byte| *byte == 0));
    assert!(
        file[MIB as usize..4 * MIB as usize]
            .iter()
            .all(|byte| *byte == 0xb7)
    );
    Ok(())
}

/// What was written is there after `kill -9`, and a target that is suspended serves nobody until it is resumed.
fn dies_and_comes_back(target: &mut dyn Mortal) -> Result<()> {
    check(target)?;
    for _ in 0..2 {
        target.kill()?;
        ensure!(!qemu_io(target, &["read 0 4k"])?.status.success());
        target.revive()?;
        let output = qemu_io(target, &["read -P 0xb7 1M 3M", "read -P 0 0 1M"])?;
        ensure!(output.status.success(), "{}", output.text);
    }
    target.suspend()?;
    // A frozen target accepts the connection and never answers: `timeout` ends that.
    ensure!(!qemu_io(target, &["read 0 4k"])?.status.success());
    target.resume()?;
    check(target)
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

#[test]
fn tgt_dies_and_comes_back() -> Result<()> {
    let network = Network::new(2)?;
    dies_and_comes_back(&mut Tgt::start_on(spec(), &network)?)
}

#[test]
fn lio_dies_and_comes_back() -> Result<()> {
    let mut lio = Lio::start(Spec {
        durable: true,
        ..spec()
    })?;
    let _network = lio.move_behind(1)?;
    dies_and_comes_back(&mut lio)
}
