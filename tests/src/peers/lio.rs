//! LIO, the target of the Linux kernel, in a guest kernel (user-mode Linux) behind a tap device in a network namespace.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use tempfile::TempDir;

use super::{Peer, Spec};
use crate::berthd::INITIATOR;
use crate::process::Process;
use crate::{programs, tool};

const TARGET: &str = "iqn.2026-11.example:lio";
/// Addresses of the documentation range: they lead nowhere outside the namespace.
const HOST: &str = "192.0.2.1/24";
const GUEST: &str = "192.0.2.2";
/// A boot takes 5 to 8 s on two idle cores.
const DEADLINE: Duration = Duration::from_secs(90);
const NETNS_PREFIX: &str = "berth-lio-";

/// A guest kernel with one LIO target and one LUN.
#[derive(Debug)]
pub struct Lio {
    // The guest goes before its network and its folder.
    process: Process,
    netns: Netns,
    spec: Spec,
    backing: PathBuf,
    _dir: TempDir,
}

impl Lio {
    /// Boots the guest and waits until its target serves. Needs root (a namespace and a tap device).
    ///
    /// # Errors
    /// When user-mode Linux is not installed or the guest does not get ready; with its log.
    pub fn start(spec: Spec) -> Result<Self> {
        let dir = TempDir::with_prefix("lio-")?;
        let lab = dir.path().join("lab");
        std::fs::create_dir(&lab)?;
        let backing = lab.join("lun");
        std::fs::File::create(&backing)?.set_len(spec.size_bytes)?;
        std::fs::write(lab.join("target.sh"), configuration(&spec))?;
        let init = lab.join("init");
        std::fs::write(&init, include_str!("lio-init.sh"))?;
        std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?;

        let netns = Netns::create()?;
        let uml = programs::system("linux.uml")?;
        let words = [
            "mem=512M root=/dev/root rootfstype=hostfs rootflags=/ ro".to_owned(),
            format!(
                "init={} uml_dir={}/ umid=lio",
                init.display(),
                dir.path().display()
            ),
            "con=null ssl=null con0=null,fd:1 quiet loglevel=4 panic=1".to_owned(),
            "vec0:transport=tap,ifname=tap0,depth=128,gro=1".to_owned(),
            format!("LAB={} ADDRESS={GUEST}/24", lab.display()),
        ]
        .join(" ");
        let uml = uml.to_string_lossy();
        let command = ["netns", "exec", netns.name.as_str(), &uml].into_iter();
        let process = Process::start(
            "LIO guest",
            &programs::system("ip")?,
            command.chain(words.split(' ')),
            &[],
            &dir.path().join("console.log"),
        )?;
        let mut lio = Self {
            process,
            netns,
            spec,
            backing,
            _dir: dir,
        };
        lio.wait_ready(&lab)?;
        Ok(lio)
    }

    fn wait_ready(&mut self, lab: &Path) -> Result<()> {
        self.process
            .wait_ready("target in the guest", DEADLINE, || {
                if let Ok(step) = std::fs::read_to_string(lab.join("failed")) {
                    let log = std::fs::read_to_string(lab.join("guest.log")).unwrap_or_default();
                    bail!("the guest failed at {}\n{log}", step.trim());
                }
                Ok(lab.join("ready").exists().then_some(()))
            })
    }
}

/// Plain configfs: quicker than targetcli, and the guest needs neither Python nor D-Bus.
fn configuration(spec: &Spec) -> String {
    let acl = format!("$T/acls/{INITIATOR}");
    let mut script = format!(
        "D=$C/core/fileio_0/lun; mkdir -p $D\n\
         echo fd_dev_name=/mnt/lun,fd_dev_size={},fd_buffered_io=1 > $D/control\n\
         echo 11111111-2222-3333-4444-555555555555 > $D/wwn/vpd_unit_serial\n\
         echo 1 > $D/enable\n\
         echo 1 > $D/attrib/emulate_write_cache\n\
         mkdir -p $C/iscsi; mkdir $C/iscsi/{TARGET}; T=$C/iscsi/{TARGET}/tpgt_1; mkdir $T $T/np/{GUEST}:3260\n\
         mkdir $T/lun/lun_0; ln -s $D $T/lun/lun_0/lun\n\
         mkdir {acl}; mkdir {acl}/lun_0; ln -s $T/lun/lun_0 {acl}/lun_0/lun\n\
         echo 0 > {acl}/lun_0/write_protect\n",
        spec.size_bytes
    );
    let _ = writeln!(
        script,
        "echo {} > $T/attrib/authentication",
        u8::from(spec.chap.is_some())
    );
    // printf, not echo: a newline would become part of the secret.
    if let Some(chap) = &spec.chap {
        let _ = writeln!(script, "printf '{}' > {acl}/auth/userid", chap.user);
        let _ = writeln!(script, "printf '{}' > {acl}/auth/password", chap.secret);
    }
    if let Some(mutual) = &spec.mutual {
        let _ = writeln!(
            script,
            "printf '{}' > {acl}/auth/userid_mutual",
            mutual.user
        );
        let _ = writeln!(
            script,
            "printf '{}' > {acl}/auth/password_mutual",
            mutual.secret
        );
    }
    if spec.digests_required {
        script += "echo CRC32C > $T/param/HeaderDigest; echo CRC32C > $T/param/DataDigest\n";
    }
    script + "echo 1 > $T/enable\n"
}

impl Peer for Lio {
    fn portal(&self) -> String {
        format!("{GUEST}:3260")
    }
    fn target(&self) -> &str {
        TARGET
    }
    fn lun(&self) -> u64 {
        0
    }
    fn spec(&self) -> &Spec {
        &self.spec
    }
    fn backing(&self) -> Option<&Path> {
        Some(&self.backing)
    }
    fn netns(&self) -> Option<&str> {
        Some(&self.netns.name)
    }
}

/// A network namespace with a tap device for the guest.
#[derive(Debug)]
struct Netns {
    name: String,
}

impl Netns {
    fn create() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{NETNS_PREFIX}{}-{number}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let netns = Self { name };
        let name = &netns.name;
        ip(&format!("-n {name} link set lo up"))?;
        ip(&format!("-n {name} tuntap add tap0 mode tap"))?;
        ip(&format!("-n {name} addr add {HOST} dev tap0"))?;
        ip(&format!("-n {name} link set tap0 up"))?;
        Ok(netns)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(args: &str) -> Result<tool::Output> {
    let args: Vec<_> = args.split(' ').collect();
    tool::run("ip", &args, Duration::from_secs(20))
}

/// Namespaces outlive a test program that was killed; its process id is in their names.
fn remove_stale() {
    let Ok(list) = ip("netns list") else { return };
    for name in list
        .text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let Some(owner) = name
            .strip_prefix(NETNS_PREFIX)
            .and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        if !Path::new("/proc").join(owner).exists() {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}
