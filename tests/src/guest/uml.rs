//! User-mode Linux: a kernel that is a process of the host.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use tempfile::TempDir;

use super::Booted;
use crate::net::Netns;
use crate::process::Process;
use crate::programs;

/// Addresses of the documentation range: they lead nowhere outside the namespace.
pub const HOST: &str = "192.0.2.1";
/// The guest's end of the cable.
pub const GUEST: &str = "192.0.2.2";

/// What a guest shall be like.
#[derive(Debug)]
pub struct Uml<'a> {
    /// A word for people who list processes.
    pub name: &'a str,
    /// Memory in MiB; the host gives it page by page, when it is used.
    pub memory_mib: u32,
    /// The script that runs as PID 1 once the root stands; it must not end, but may power off.
    pub main: &'a str,
    /// Host and guest both see it; /mnt of the guest. May be anywhere but in a folder whose host path changes.
    pub folder: &'a Path,
    /// Words for the environment of `main`.
    pub environment: &'a [(&'a str, &'a str)],
    /// Where the guest's network card is plugged in; `None`: it has none.
    pub tap: Option<&'a Tap>,
}

/// A guest's cable into a network namespace: there the namespace is [`HOST`], and the guest has an address of its own.
#[derive(Debug)]
pub struct Tap {
    netns: Arc<Netns>,
    device: String,
    address: String,
}

impl Tap {
    /// Makes a namespace with one cable, to [`GUEST`]; it also routes. Needs root.
    ///
    /// # Errors
    /// When the kernel or the rights do not allow it.
    pub fn new(kind: &str) -> Result<Self> {
        let tap = Self::lay(&Arc::new(Netns::create(kind)?), 0)?;
        let netns = &tap.netns;
        netns.ip(&format!("addr add {HOST}/24 dev {}", tap.device))?;
        netns.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        Ok(tap)
    }

    /// Makes a namespace with so many cables (up to 97), to 192.0.2.2, 192.0.2.3 and so on, all on one switch.
    /// `addresses` are others that the namespace has in the same network. Needs root, and of the kernel the bridge.
    ///
    /// # Errors
    /// When the kernel or the rights do not allow it.
    pub fn on_a_switch(kind: &str, cables: u8, addresses: &[&str]) -> Result<Vec<Self>> {
        let netns = Arc::new(Netns::create(kind)?);
        netns.ip("link add switch type bridge")?;
        for address in [HOST].iter().chain(addresses) {
            netns.ip(&format!("addr add {address}/24 dev switch"))?;
        }
        netns.ip("link set switch up")?;
        let cable = |number| {
            let tap = Self::lay(&netns, number)?;
            netns.ip(&format!("link set {} master switch", tap.device))?;
            Ok(tap)
        };
        (0..cables).map(cable).collect()
    }

    fn lay(netns: &Arc<Netns>, number: u8) -> Result<Self> {
        let device = format!("tap{number}");
        netns.ip(&format!("tuntap add {device} mode tap"))?;
        netns.ip(&format!("link set {device} up"))?;
        let address = format!("192.0.2.{}", number + 2);
        let netns = Arc::clone(netns);
        Ok(Self {
            netns,
            device,
            address,
        })
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> &Arc<Netns> {
        &self.netns
    }

    /// The guest's address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on every packet between the guest and `addresses` is lost, both ways, without a word.
    ///
    /// # Errors
    /// When the kernel cannot do it.
    pub fn cut_from(&self, addresses: &[&str]) -> Result<()> {
        let (device, addresses) = (&self.device, addresses.join(", "));
        let script = format!(
            "add table netdev {device}; \
             add chain netdev {device} in {{ type filter hook ingress device {device} priority 0; }}; \
             add chain netdev {device} out {{ type filter hook egress device {device} priority 0; }}; \
             add rule netdev {device} in ip daddr {{ {addresses} }} counter drop; \
             add rule netdev {device} out ip saddr {{ {addresses} }} counter drop"
        );
        self.netns.run("nft", &[&script]).map(drop)
    }

    /// Ends [`Tap::cut_from`].
    ///
    /// # Errors
    /// When nothing was cut.
    pub fn heal(&self) -> Result<()> {
        let script = format!("delete table netdev {}", self.device);
        self.netns.run("nft", &[&script]).map(drop)
    }
}

impl Uml<'_> {
    /// Starts the guest. A step of its start that fails is named in the file `failed` of the folder.
    ///
    /// # Errors
    /// When user-mode Linux is not installed.
    pub fn boot(&self) -> Result<Booted> {
        // Not in the folder, which may be below /dev: the guest's /dev is its own.
        let home = TempDir::with_prefix("uml-")?;
        executable(&home.path().join("init"), include_str!("uml-init.sh"))?;
        executable(&self.folder.join("main"), self.main)?;
        let mut command = match self.tap {
            Some(tap) => tap.netns.prefix()?,
            None => Vec::new(),
        };
        // The guest is many processes. As a process-id namespace they end together with the first of them, also when this
        // program is killed and takes only that one along.
        let system =
            |word| programs::system(word).map(|program| program.to_string_lossy().into_owned());
        command.push(system("unshare")?);
        command.extend(["--pid", "--fork", "--kill-child"].map(str::to_owned));
        // A guest that panics aborts itself, which the first process of a namespace cannot: the shell is it.
        command.push(system("sh")?);
        command.extend(["-c", "\"$@\"; exit $?", "sh"].map(str::to_owned));
        command.push(system("linux.uml")?);
        command.extend(self.words(home.path()).split(' ').map(str::to_owned));
        let log = home.path().join("console.log");
        let program = Path::new(&command[0]);
        let process = Process::start(self.name, program, &command[1..], &[], &log)?;
        Ok(Booted::new(process, home))
    }

    fn words(&self, home: &Path) -> String {
        let Self {
            name, memory_mib, ..
        } = self;
        let (home, folder) = (home.display(), self.folder.display());
        let mut words = format!(
            "mem={memory_mib}M root=/dev/root rootfstype=hostfs rootflags=/ ro init={home}/init \
             uml_dir={home}/ umid={name} con=null ssl=null con0=null,fd:1 quiet loglevel=5 log_buf_len=4M panic=1 FOLDER={folder}"
        );
        if let Some(tap) = self.tap {
            let (device, address) = (&tap.device, &tap.address);
            let _ = write!(
                words,
                " vec0:transport=tap,ifname={device},depth=128,gro=1 ADDRESS={address}/24 GATEWAY={HOST}"
            );
        }
        // What the kernel does not know becomes the environment of init.
        for (name, value) in self.environment {
            let _ = write!(words, " {name}={value}");
        }
        words
    }
}

fn executable(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
