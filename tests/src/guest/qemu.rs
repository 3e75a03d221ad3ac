//! QEMU without hardware virtualisation: a machine with systemd as PID 1, which may reboot.

use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::Booted;
use super::debian::Debian;
use super::run::{OUTPUT, STATUS};
use crate::process::Process;
use crate::{programs, tool};

/// What a machine shall be like.
#[derive(Debug)]
pub struct Qemu<'a> {
    /// Its disk at first; what it writes there lasts until the machine is switched off, and over reboots.
    pub debian: &'a Debian,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What the machine finds in /lab, read-only. Its program `main` is run at each start, as a service; what that writes to
    /// /dev/ttyS1 arrives in [`OUTPUT`], what it writes to /dev/ttyS2 in [`STATUS`].
    pub payload: &'a Path,
    /// Takes both.
    pub folder: &'a Path,
}

impl Qemu<'_> {
    /// Starts the machine.
    ///
    /// # Errors
    /// When QEMU is not installed or the payload does not fit.
    pub fn boot(&self) -> Result<Booted> {
        let home = TempDir::with_prefix("qemu-")?;
        let payload = home.path().join("payload.img");
        image(self.payload, &payload)?;
        let log = home.path().join("qemu.log");
        let words = self.words(&payload);
        let program = programs::system("qemu-system-x86_64")?;
        let process = Process::start("qemu", &program, words, &[], &log)?;
        Ok(Booted::new(process, home))
    }

    fn words(&self, payload: &Path) -> Vec<String> {
        let (root, kernel) = (self.debian.root(), self.debian.kernel());
        let port = |file: &str| format!("-serial file:{}", self.folder.join(file).display());
        let drive = |device: &str, file: &Path| {
            format!(
                "-drive if=none,id={device},format=raw,snapshot=on,cache=unsafe,file={} -device {device},drive={device}",
                file.display()
            )
        };
        let mut words = [
            // cmpxchg16b sets wrong flags in some versions of the emulator, and the kernel's allocator crashes on it.
            "-accel tcg,thread=multi -smp 2 -cpu max,-cx16 -machine q35 -nodefaults -display none -monitor none"
                .to_owned(),
            format!("-m {}M -kernel {}", self.memory_mib, kernel.display()),
            "-device virtio-rng-pci -serial stdio".to_owned(),
            port(OUTPUT),
            port(STATUS),
            // Of two kinds: the kernel numbers drives of one kind as it happens to find them.
            drive("nvme", &root) + ",serial=root",
            drive("virtio-blk-pci", payload),
        ]
        .join(" ")
        .split_whitespace()
        .map(str::to_owned)
        .collect::<Vec<_>>();
        words.push("-append".to_owned());
        words.push(
            "console=ttyS0 root=/dev/nvme0n1 rootfstype=ext4 rw panic=-1 tsc=reliable no_timer_check quiet log_buf_len=4M \
             net.ifnames=0 systemd.unit=lab.target systemd.show_status=no"
                .to_owned(),
        );
        words
    }
}

/// An ext4 file system with what is in `folder`.
fn image(folder: &Path, file: &Path) -> Result<()> {
    /// For what the file system needs itself.
    const ROOM_BYTES: u64 = 32 << 20;
    let mut bytes = ROOM_BYTES;
    for entry in std::fs::read_dir(folder)? {
        bytes += std::fs::metadata(entry?.path())?.len();
    }
    let mib = (bytes >> 20) + 1;
    let words = ["-q", "-t", "ext4", "-O", "^has_journal", "-d"];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    for path in [folder, file] {
        words.push(path.to_str().context("path is text")?.to_owned());
    }
    words.push(format!("{mib}M"));
    tool::run("mke2fs", &words, std::time::Duration::from_secs(120)).map(drop)
}
