//! The arguments of `berthctl`.

use std::path::PathBuf;

use berth_api::types::{DeviceWish, DigestPolicy, Fence, IscsiSource, RecoveryTimeout};
use berth_api::{AttachmentName, Portal, TargetName, VolumeName};
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::bench::Bench;
use super::output::Format;

/// What the exit code says; shown by `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the daemon or the target refused
  2  the arguments do not fit
  3  there is no such attachment, target or logical unit
  4  the daemon cannot be reached
  5  it took too long; what was asked for may still happen

The daemon is found at --socket, or BERTH_SOCKET, or /run/berth/api.sock.
Secrets are never arguments: give a file, \"-\" for standard input, or answer the prompt.";

/// Attach volumes of iSCSI storage to this node as block devices.
#[derive(Debug, Parser)]
#[command(name = "berthctl", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Args)]
pub(super) struct Global {
    /// Socket of the daemon
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "BERTH_SOCKET",
        default_value = "/run/berth/api.sock"
    )]
    pub(super) socket: PathBuf,
    /// Address of the daemon over TCP, as http://127.0.0.1:7780
    #[arg(long, global = true, value_name = "URL", env = "BERTH_URL")]
    pub(super) url: Option<String>,
    /// File that holds the token for --url
    #[arg(long, global = true, value_name = "FILE", env = "BERTH_TOKEN_FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Form of the output
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Attach a logical unit and wait until it is there; repeating it is safe
    Attach(Attach),
    /// Change an attachment while it is attached
    Set(Set),
    /// Detach and wait until it is gone; succeeds when it was not there
    Detach(Detach),
    /// List the attachments
    #[command(visible_alias = "ls")]
    List,
    /// Show everything about one attachment
    Show {
        /// Name of the attachment
        name: AttachmentName,
    },
    /// Ask a portal for its targets
    Discover(Discover),
    /// Show what happened
    Events(Events),
    /// Show what goes through attachments
    Stats(Stats),
    /// Measure an attachment with our own NBD client
    Bench(Bench),
    /// Make, change and delete volumes on the storage fabric
    #[command(subcommand, visible_alias = "vol")]
    Volume(super::volume::args::Volume),
    /// Look at the AppTemplates of the storage fabric
    #[command(subcommand)]
    Template(super::volume::args::Template),
    /// Look at the storage fabric as a whole
    #[command(subcommand)]
    Fabric(super::volume::args::Fabric),
    /// Show facts, limits and health of this node
    Node,
    /// Print completions, as in: source <(berthctl completions bash)
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(super) struct Attach {
    /// Name of the attachment and of its NBD export
    pub(super) name: AttachmentName,
    /// Where the target listens, HOST[:PORT] or [V6][:PORT]; repeat it for several paths
    #[arg(
        long = "portal",
        value_name = "HOST:PORT",
        required_unless_present = "volume",
        conflicts_with = "volume"
    )]
    pub(super) portals: Vec<Portal>,
    /// Name of the target (iqn, eui or naa)
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "volume",
        conflicts_with = "volume"
    )]
    pub(super) target: Option<TargetName>,
    /// Number of the logical unit
    #[arg(long, required_unless_present = "volume", conflicts_with = "volume",
        value_parser = clap::value_parser!(u16).range(0..=i64::from(IscsiSource::LUN_MAX)))]
    pub(super) lun: Option<u16>,
    /// A volume of the storage fabric, which says where its target is and has this node admitted
    #[arg(long, value_name = "NAME", help_heading = "Fabric")]
    pub(super) volume: Option<VolumeName>,
    /// Which of the volume's units, as storage-1/volume-1
    #[arg(
        long,
        value_name = "NAME",
        requires = "volume",
        help_heading = "Fabric"
    )]
    pub(super) unit: Option<String>,
    /// Make the volume if it does not exist, so large
    #[arg(long, value_name = "SIZE", requires = "volume", value_parser = super::volume::args::size, help_heading = "Fabric")]
    pub(super) create_size: Option<u64>,
    /// Make the volume if it does not exist, from this AppTemplate
    #[arg(
        long,
        value_name = "NAME",
        requires = "volume",
        help_heading = "Fabric"
    )]
    pub(super) create_template: Option<String>,
    /// With --create-size or --create-template: copies that the fabric keeps
    #[arg(long, value_name = "N", requires = "volume", value_parser = clap::value_parser!(u8).range(1..=5), help_heading = "Fabric")]
    pub(super) create_replicas: Option<u8>,
    /// Somebody else has this node admitted; fail if it is not
    #[arg(long, requires = "volume", help_heading = "Fabric")]
    pub(super) no_grant: bool,
    /// When it is detached, this node is not admitted to the volume any more
    #[arg(long, requires = "volume", help_heading = "Fabric")]
    pub(super) revoke_on_detach: bool,
    #[command(flatten)]
    pub(super) chap: Chap,
    /// What to make of it
    #[arg(long, value_enum, default_value_t = DeviceArgument::Auto)]
    pub(super) device: DeviceArgument,
    /// Refuse writes on this node
    #[arg(long)]
    pub(super) read_only: bool,
    /// CRC32C over iSCSI headers
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = DigestArgument::Prefer)]
    pub(super) header_digest: DigestArgument,
    /// CRC32C over iSCSI data
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = DigestArgument::Prefer)]
    pub(super) data_digest: DigestArgument,
    /// How other nodes are kept from writing
    #[arg(long, value_enum, value_name = "HOW", default_value_t = FenceArgument::None)]
    pub(super) fence: FenceArgument,
    /// Take the volume from the node that holds it: its writes are refused from then on
    #[arg(long)]
    pub(super) takeover: bool,
    /// How long I/O waits while no path works: seconds or "forever" [default: as the daemon is configured]
    #[arg(long, value_name = "SECONDS", value_parser = recovery_timeout)]
    pub(super) recovery_timeout: Option<RecoveryTimeout>,
    /// How long the attach may take
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub(super) timeout: u32,
    /// Do not wait: print the operation and leave
    #[arg(long)]
    pub(super) no_wait: bool,
}

/// CHAP credentials. Secrets come from files, standard input, the environment or a prompt.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "CHAP")]
pub(super) struct Chap {
    /// Log in with CHAP as this user
    #[arg(long, value_name = "USER")]
    pub(super) chap_user: Option<String>,
    /// File with the secret, or "-"; else BERTH_CHAP_SECRET, else a prompt
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub(super) chap_secret_file: Option<PathBuf>,
    /// Have the target prove that it is this user
    #[arg(long, value_name = "USER", requires = "chap_user")]
    pub(super) mutual_user: Option<String>,
    /// File with the target's secret, or "-"; else BERTH_MUTUAL_SECRET, else a prompt
    #[arg(long, value_name = "FILE", requires = "chap_user")]
    pub(super) mutual_secret_file: Option<PathBuf>,
    /// Accept secrets below 12 bytes
    #[arg(long, requires = "chap_user")]
    pub(super) allow_short_secret: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(super) struct Set {
    /// Name of the attachment
    pub(super) name: AttachmentName,
    /// How long I/O waits while no path works: seconds, "forever", or "default" for what the daemon's
    /// configuration says
    #[arg(long, value_name = "SECONDS", value_parser = new_recovery_timeout, group = "change")]
    pub(super) recovery_timeout: Option<NewTimeout>,
    /// One more path to the volume, HOST[:PORT] or [V6][:PORT]; repeat it for several
    #[arg(long = "add-portal", value_name = "HOST:PORT", group = "change")]
    pub(super) add_portals: Vec<Portal>,
    /// A path that is not to be used any more; repeat it for several
    #[arg(long = "remove-portal", value_name = "HOST:PORT", group = "change")]
    pub(super) remove_portals: Vec<Portal>,
}

#[derive(Debug, Args)]
pub(super) struct Detach {
    /// Name of the attachment
    pub(super) name: AttachmentName,
    /// Also while it is in use: I/O that waits fails
    #[arg(long)]
    pub(super) force: bool,
    /// Do not wait: print the operation and leave
    #[arg(long)]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct Discover {
    /// The portal to ask, HOST[:PORT] or [V6][:PORT]
    pub(super) portal: Portal,
    #[command(flatten)]
    pub(super) chap: Chap,
    /// How long it may take
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=120))]
    pub(super) timeout: u32,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Only of this attachment
    pub(super) name: Option<AttachmentName>,
    /// Go on with what happens, also over restarts of the daemon
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Args)]
pub(super) struct Stats {
    /// Only of this attachment
    pub(super) name: Option<AttachmentName>,
    /// Show rates, again and again, every so many seconds
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1",
        value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(super) watch: Option<u32>,
    /// With --watch: stop after so many times
    #[arg(long, value_name = "TIMES", requires = "watch", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) count: Option<u32>,
}

/// [`DeviceWish`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DeviceArgument {
    /// A kernel device if the kernel has NBD, else the socket only
    Auto,
    /// A kernel device, or fail
    Kernel,
    /// An export on the NBD socket only
    Socket,
}

impl From<DeviceArgument> for DeviceWish {
    fn from(argument: DeviceArgument) -> Self {
        match argument {
            DeviceArgument::Auto => Self::Auto,
            DeviceArgument::Kernel => Self::Kernel,
            DeviceArgument::Socket => Self::Socket,
        }
    }
}

/// [`DigestPolicy`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DigestArgument {
    /// Not used
    Off,
    /// Used if the target can
    Prefer,
    /// Used, or the target is refused
    Require,
}

impl From<DigestArgument> for DigestPolicy {
    fn from(argument: DigestArgument) -> Self {
        match argument {
            DigestArgument::Off => Self::Off,
            DigestArgument::Prefer => Self::Prefer,
            DigestArgument::Require => Self::Require,
        }
    }
}

/// [`Fence`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum FenceArgument {
    /// They are not
    None,
    /// SCSI-3 persistent reservation: the volume refuses their writes
    Reservation,
    /// The fabric admits this node and nobody else
    Acl,
}

impl From<FenceArgument> for Fence {
    fn from(argument: FenceArgument) -> Self {
        match argument {
            FenceArgument::None => Self::None,
            FenceArgument::Reservation => Self::Reservation,
            FenceArgument::Acl => Self::Acl,
        }
    }
}

/// A recovery timeout, or nothing for that of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NewTimeout(pub(super) Option<RecoveryTimeout>);

fn new_recovery_timeout(text: &str) -> Result<NewTimeout, String> {
    if text == "default" {
        return Ok(NewTimeout(None));
    }
    recovery_timeout(text)
        .map(|timeout| NewTimeout(Some(timeout)))
        .map_err(|expected| format!("{expected}, or \"default\""))
}

fn recovery_timeout(text: &str) -> Result<RecoveryTimeout, String> {
    if text == "forever" {
        return Ok(RecoveryTimeout::Forever);
    }
    text.parse()
        .map(RecoveryTimeout::Seconds)
        .map_err(|_| "expected whole seconds or \"forever\"".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace()).map(|arguments| arguments.command)
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn attach_with_everything() {
        let line = "berthctl attach pvc-1 --portal 192.0.2.10 --portal [2001:db8::1]:3261 \
                    --target IQN.2026-11.example:disk0 --lun 1 --chap-user u --chap-secret-file - \
                    --mutual-user t --mutual-secret-file /s --header-digest require \
                    --data-digest off --device kernel --read-only --recovery-timeout forever \
                    --fence reservation --takeover --timeout 600 --no-wait";
        let Command::Attach(attach) = parse(line).unwrap() else {
            panic!("attach is attach");
        };
        assert_eq!(attach.name.as_str(), "pvc-1");
        let portals: Vec<_> = attach.portals.iter().map(ToString::to_string).collect();
        assert_eq!(portals, ["192.0.2.10:3260", "[2001:db8::1]:3261"]);
        assert_eq!(
            attach.target.as_ref().unwrap().as_str(),
            "iqn.2026-11.example:disk0"
        );
        assert_eq!(attach.lun, Some(1));
        assert_eq!(attach.chap.chap_user.as_deref(), Some("u"));
        assert_eq!(attach.chap.mutual_user.as_deref(), Some("t"));
        assert_eq!(attach.header_digest, DigestArgument::Require);
        assert_eq!(attach.data_digest, DigestArgument::Off);
        assert_eq!(attach.device, DeviceArgument::Kernel);
        assert_eq!(attach.recovery_timeout, Some(RecoveryTimeout::Forever));
        assert_eq!(attach.fence, FenceArgument::Reservation);
        assert!(attach.takeover);
        assert_eq!(attach.timeout, 600);
        assert!(attach.read_only && attach.no_wait);
    }

    #[test]
    fn set_takes_any_change_and_at_least_one() {
        let Command::Set(set) = parse(
            "berthctl set a --recovery-timeout default --add-portal 192.0.2.1 --add-portal 192.0.2.2 \
             --remove-portal 192.0.2.3",
        )
        .unwrap() else {
            panic!("set is set");
        };
        assert_eq!(set.recovery_timeout, Some(NewTimeout(None)));
        assert_eq!((set.add_portals.len(), set.remove_portals.len()), (2, 1));
        let Command::Set(set) = parse("berthctl set a --recovery-timeout 5").unwrap() else {
            panic!("set is set");
        };
        let five = RecoveryTimeout::Seconds(5);
        assert_eq!(set.recovery_timeout, Some(NewTimeout(Some(five))));
        let error = parse("berthctl set a").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument);
        assert!(error.to_string().contains("--add-portal"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let attach = "berthctl attach a --portal h --target iqn.2026-11.example:a --lun 1";
        assert!(parse(attach).is_ok());
        for (line, kind, told) in [
            (
                "berthctl attach a",
                ErrorKind::MissingRequiredArgument,
                "--portal",
            ),
            (
                "berthctl attach a/b",
                ErrorKind::ValueValidation,
                "letters, digits",
            ),
            (
                "berthctl show ..",
                ErrorKind::ValueValidation,
                "begins with a letter",
            ),
            (
                "berthctl discover ::1",
                ErrorKind::ValueValidation,
                "[2001:db8::1]:3260",
            ),
            (
                &format!("{attach} --timeout 601"),
                ErrorKind::ValueValidation,
                "1..=600",
            ),
            (
                &format!("{attach} --recovery-timeout soon"),
                ErrorKind::ValueValidation,
                "forever",
            ),
            (
                &format!("{attach} --chap-secret-file s"),
                ErrorKind::MissingRequiredArgument,
                "--chap-user",
            ),
            (
                &format!("{attach} --header-digest maybe"),
                ErrorKind::InvalidValue,
                "prefer",
            ),
            (
                &format!("{attach} --lun 1"),
                ErrorKind::ArgumentConflict,
                "--lun",
            ),
            (
                &attach.replace("--lun 1", "--lun 16384"),
                ErrorKind::ValueValidation,
                "16383",
            ),
            (
                &attach.replace("iqn.2026-11.example:a", "disk"),
                ErrorKind::ValueValidation,
                "iqn.",
            ),
            (
                "berthctl stats --watch=0",
                ErrorKind::ValueValidation,
                "1..=3600",
            ),
            (
                "berthctl stats --count 3",
                ErrorKind::MissingRequiredArgument,
                "--watch",
            ),
            (
                "berthctl bench a --size 100",
                ErrorKind::ValueValidation,
                "multiple of 512",
            ),
            (
                "berthctl bench a --pattern trim",
                ErrorKind::InvalidValue,
                "randread",
            ),
            (
                "berthctl bench a --depth 0",
                ErrorKind::ValueValidation,
                "1..=1024",
            ),
            ("berthctl list -o yaml", ErrorKind::InvalidValue, "json"),
            (
                "berthctl",
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
                "attach",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}: {error}");
            assert!(error.to_string().contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn watch_takes_a_number_or_none() {
        for (line, watch) in [
            ("berthctl stats", None),
            ("berthctl stats -w", Some(1)),
            ("berthctl stats --watch=5", Some(5)),
            ("berthctl stats --watch disk0", Some(1)),
        ] {
            let Command::Stats(stats) = parse(line).unwrap() else {
                panic!("stats is stats");
            };
            assert_eq!(stats.watch, watch, "{line}");
        }
    }
}
