//! An iSCSI target of its own: what benchmarks and interop tests start, and a peer to try things against.
//!
//! Prints `listening on ADDR` for every address, then serves until SIGTERM or SIGINT. At SIGHUP each LUN takes the size that
//! its file has then, tells its initiators, and `PATH has SIZE bytes` is printed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_iscsi::login::{Account, ChapAlgorithm, DigestPolicy, Offer, Secret, TargetAuth};
use berth_iscsi::name::IscsiName;
use berth_iscsi::net::listener::{Listening, Server, ServerHandle};
use berth_iscsi::target::disk::{Disk, FileDisk, RamDisk, WriteCache};
use berth_iscsi::target::lu::{LogicalUnit, LuConfig};
use berth_iscsi::target::{Access, Portal, PortalGroup, PortalSettings, TargetConfig, UnitId};
use clap::{Parser, ValueEnum};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// An iSCSI target with RAM and file LUNs.
#[derive(Debug, Parser)]
#[command(name = "portal")]
struct Options {
    /// Address to listen on; port 0 takes a free one. The n-th one given is portal group n.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: Vec<SocketAddr>,
    /// Name of the target.
    #[arg(
        long,
        value_name = "IQN",
        default_value = "iqn.2026-11.io.berth:portal"
    )]
    target: String,
    /// A LUN: `ram:SIZE` or `file:PATH:SIZE` (SIZE as 512M, 4G ...; a file that exists may leave it out). The
    /// first one is LUN 0. Without any: one of ram:256M.
    #[arg(long, value_name = "LUN")]
    lun: Vec<String>,
    /// Logical block length in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    block_bytes: u32,
    /// LUNs have a volatile write cache.
    #[arg(long)]
    write_cache: bool,
    /// LUNs are write protected.
    #[arg(long)]
    read_only: bool,
    /// Initiator that may log in; may be given several times. Without any: all.
    #[arg(long, value_name = "IQN")]
    allow: Vec<String>,
    /// CHAP name that initiators must give.
    #[arg(long, value_name = "NAME", requires = "chap_secret_file")]
    chap_user: Option<String>,
    /// File with the CHAP secret, the whole content but one newline at the end.
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    chap_secret_file: Option<PathBuf>,
    /// CHAP name that the target gives when it is asked to prove itself.
    #[arg(long, value_name = "NAME", requires_all = ["mutual_secret_file", "chap_user"])]
    mutual_user: Option<String>,
    /// File with the target's own CHAP secret.
    #[arg(long, value_name = "FILE", requires = "mutual_user")]
    mutual_secret_file: Option<PathBuf>,
    /// Discovery asks for the same credentials.
    #[arg(long, requires = "chap_user")]
    discovery_chap: bool,
    /// Header digests.
    #[arg(long, value_enum, default_value_t = Digest::Prefer)]
    header_digest: Digest,
    /// Data digests.
    #[arg(long, value_enum, default_value_t = Digest::Prefer)]
    data_digest: Digest,
    /// Forbid unsolicited Data-Out.
    #[arg(long)]
    initial_r2t: bool,
    /// Forbid immediate data.
    #[arg(long)]
    no_immediate_data: bool,
    /// FirstBurstLength in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 262_144)]
    first_burst: u32,
    /// MaxBurstLength in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 16_776_192)]
    max_burst: u32,
    /// MaxRecvDataSegmentLength in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 262_144)]
    max_recv_segment: u32,
    /// MaxOutstandingR2T.
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    max_outstanding_r2t: u16,
    /// Commands that a session may have unfinished.
    #[arg(long, value_name = "COUNT", default_value_t = 128)]
    window: u32,
    /// Send status in a PDU of its own, never with the last data.
    #[arg(long)]
    no_phase_collapse: bool,
    /// Ping initiators that are silent for so many seconds; 0: never.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    ping_interval: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Digest {
    /// Refuse them.
    Off,
    /// Take what the initiator prefers.
    Prefer,
    /// No session without.
    Require,
}

impl From<Digest> for DigestPolicy {
    fn from(digest: Digest) -> Self {
        match digest {
            Digest::Off => Self::Off,
            Digest::Prefer => Self::Prefer,
            Digest::Require => Self::Require,
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run(&options))
}

async fn run(options: &Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for (index, address) in options.listen.iter().enumerate() {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        addresses.push(listener.local_addr()?);
        let group = u16::try_from(index + 1).context("too many addresses")?;
        listeners.push(Listening { listener, group });
    }
    let mut hangup = signal(SignalKind::hangup())?;
    let (portal, files) = portal(options, &addresses)?;
    let (server, handle) = Server::new(portal);
    let resizer = handle.clone();
    let resize = async move {
        while hangup.recv().await.is_some() {
            for (unit, file) in &files {
                if let Err(error) = resize(&resizer, *unit, file).await {
                    println!("{}: {error:#}", file.display());
                }
            }
        }
    };
    for address in addresses {
        println!("listening on {address}");
    }
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // An error means that it has stopped by itself.
        let _ = handle.stop().await;
    };
    tokio::select! {
        biased;
        _ = async { tokio::join!(server.serve(listeners), stop) } => {}
        () = resize => {}
    }
    Ok(())
}

/// Gives a unit the size of its file.
async fn resize(handle: &ServerHandle, unit: UnitId, file: &Path) -> Result<()> {
    let size_bytes = std::fs::metadata(file)?.len();
    handle
        .with(move |portal, _now| {
            let unit: &mut LogicalUnit = portal.unit_mut(unit).context("the unit is gone")?;
            unit.resize(size_bytes).map_err(anyhow::Error::from)
        })
        .await??;
    println!("{} has {size_bytes} bytes", file.display());
    Ok(())
}

/// The portal, and the units that are files.
fn portal(options: &Options, addresses: &[SocketAddr]) -> Result<(Portal, Vec<(UnitId, PathBuf)>)> {
    let offer = Offer {
        header_digest: options.header_digest.into(),
        data_digest: options.data_digest.into(),
        initial_r2t: options.initial_r2t,
        immediate_data: !options.no_immediate_data,
        first_burst_bytes: options.first_burst,
        max_burst_bytes: options.max_burst,
        max_recv_data_segment_bytes: options.max_recv_segment,
        max_outstanding_r2t: options.max_outstanding_r2t,
        ..Offer::default()
    };
    if let Err((field, right)) = offer.check() {
        bail!("{field} must be {right}");
    }
    ensure!(
        options.block_bytes.is_power_of_two() && (512..=65_536).contains(&options.block_bytes),
        "--block-bytes must be a power of two from 512 to 65536"
    );
    let auth = auth(options)?;
    let single = addresses.len() == 1;
    let mut portal = Portal::new(PortalSettings {
        groups: (1..)
            .zip(addresses)
            .map(|(tag, address)| PortalGroup {
                tag,
                // One address is reported as the initiator sees it, which also works behind a wildcard.
                addresses: if single {
                    Vec::new()
                } else {
                    vec![address.to_string()]
                },
            })
            .collect(),
        discovery_auth: if options.discovery_chap {
            auth.clone()
        } else {
            TargetAuth::None
        },
        offer,
        window: options.window,
        phase_collapse: !options.no_phase_collapse,
        ping_interval: (options.ping_interval > 0)
            .then(|| Duration::from_secs(options.ping_interval)),
        ..PortalSettings::default()
    });
    let mut target = TargetConfig::new(name(&options.target)?);
    target.auth = auth;
    if !options.allow.is_empty() {
        let names: Result<_> = options.allow.iter().map(|text| name(text)).collect();
        target.access = Access::Only(names?);
    }
    let default = [String::from("ram:256M")];
    let luns: &[String] = if options.lun.is_empty() {
        &default
    } else {
        &options.lun
    };
    let mut files = Vec::new();
    for (number, text) in (0..).zip(luns) {
        let disk = disk(text, options).with_context(|| format!("--lun {text}"))?;
        let unit = LogicalUnit::new(
            LuConfig {
                block_bytes: options.block_bytes,
                read_only: options.read_only,
                write_cache: options.write_cache,
                ..LuConfig::new(&format!(
                    "berth-{:08x}-{number}",
                    fingerprint(&options.target)
                ))
            },
            disk,
        );
        let unit = portal.add_unit(Box::new(unit));
        target.luns.insert(number, unit);
        if let Some(file) = text.strip_prefix("file:") {
            let path = file.rsplit_once(':').map_or(file, |(path, _)| path);
            files.push((unit, path.into()));
        }
    }
    portal.add_target(target)?;
    Ok((portal, files))
}

/// Keeps the identity of a LUN over restarts and apart from those of other targets (FNV-1a).
fn fingerprint(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

fn name(text: &str) -> Result<IscsiName> {
    IscsiName::parse(text).with_context(|| format!("{text} is not an iSCSI name"))
}

fn auth(options: &Options) -> Result<TargetAuth> {
    let account = |user: &Option<String>, file: &Option<PathBuf>| -> Result<Option<Account>> {
        let (Some(user), Some(file)) = (user, file) else {
            return Ok(None);
        };
        let mut secret =
            std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        if secret.last() == Some(&b'\n') {
            secret.pop();
        }
        ensure!(!secret.is_empty(), "{} is empty", file.display());
        Ok(Some(Account {
            user: user.clone(),
            secret: Secret::new(secret),
        }))
    };
    Ok(
        match account(&options.chap_user, &options.chap_secret_file)? {
            None => TargetAuth::None,
            Some(own) => TargetAuth::Chap {
                accounts: vec![own],
                mutual: account(&options.mutual_user, &options.mutual_secret_file)?,
                algorithms: ChapAlgorithm::STRONGEST_FIRST.to_vec(),
                required: true,
            },
        },
    )
}

fn disk(text: &str, options: &Options) -> Result<Box<dyn Disk>> {
    match text.split_once(':') {
        Some(("ram", size)) => Ok(cached(RamDisk::new(size_bytes(size)?), options)),
        Some(("file", rest)) => {
            let (path, size) = match rest.rsplit_once(':') {
                Some((path, size)) => (path, size_bytes(size)?),
                None => (
                    rest,
                    std::fs::metadata(rest).context(rest.to_owned())?.len(),
                ),
            };
            Ok(cached(FileDisk::open(path.as_ref(), size)?, options))
        }
        _ => bail!("must be ram:SIZE or file:PATH:SIZE"),
    }
}

fn cached(disk: impl Disk + 'static, options: &Options) -> Box<dyn Disk> {
    if options.write_cache {
        Box::new(WriteCache::new(disk, options.block_bytes))
    } else {
        Box::new(disk)
    }
}

/// `4096`, `512K`, `256M`, `4G`, `1T`.
fn size_bytes(text: &str) -> Result<u64> {
    let wrong = || format!("{text} is not a size such as 256M");
    let (digits, shift) = match text.trim_end_matches(|c: char| c.is_ascii_alphabetic()) {
        digits if digits.len() == text.len() => (digits, 0),
        digits => match text[digits.len()..].to_ascii_uppercase().as_str() {
            "K" | "KIB" => (digits, 10),
            "M" | "MIB" => (digits, 20),
            "G" | "GIB" => (digits, 30),
            "T" | "TIB" => (digits, 40),
            _ => bail!(wrong()),
        },
    };
    let number: u64 = digits.parse().with_context(wrong)?;
    let size = number
        .checked_shl(shift)
        .filter(|size| size >> shift == number);
    let size = size.with_context(wrong)?;
    ensure!(size > 0, wrong());
    Ok(size)
}
