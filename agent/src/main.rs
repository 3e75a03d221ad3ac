//! `berthd`, the node daemon: arguments, logging, exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use berth_agent::config::{Config, Log, LogFormat};
use berth_agent::service_manager::ServiceManager;
use berth_agent::{app, reclaim};
use clap::{Parser, Subcommand};

/// Gives iSCSI volumes a berth on this node: attaches them over a local HTTP API and serves them over
/// NBD.
#[derive(Parser)]
#[command(name = "berthd", version)]
struct Arguments {
    /// Configuration file [default: /etc/berth/berth.toml, if it exists]
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// What must survive a restart; overrides the configuration
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the sockets are; overrides the configuration
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// Check the configuration and end
    #[arg(long)]
    check: bool,
    /// SIGUSR2 makes the data plane hang for ever, which the watchdog has to find; for tests
    #[arg(long, env = "BERTH_FAULT_SIGNALS", hide = true)]
    fault_signals: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Show everything at work in one process: a simulated portal, two volumes, data written and
    /// verified through NBD with digests. Needs no root and touches nothing outside a temporary
    /// directory.
    #[cfg(feature = "sim")]
    Demo(berth_agent::sim::demo::DemoOptions),
    /// Run a simulated storage fabric: the REST API of a Datera fabric, with real iSCSI portals behind it.
    /// For tests and rehearsals, and to try things against.
    #[cfg(feature = "sim")]
    Sim(berth_agent::sim::fabric::SimOptions),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut config = match Config::load(arguments.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return fail(&error),
    };
    if let Some(dir) = arguments.state_dir {
        config.node.state_dir = dir;
    }
    if let Some(dir) = arguments.runtime_dir {
        config.node.runtime_dir = dir;
    }
    if let Err(error) = config.make_paths_absolute() {
        return fail(&error);
    }
    if arguments.check {
        println!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let result = match arguments.command {
        #[cfg(feature = "sim")]
        Some(Command::Demo(options)) => {
            // The demo speaks for itself; the log says only what went wrong, unless asked for more.
            config.log.filter = "warn".to_owned();
            start_log(&config.log).and_then(|()| run_to_end(berth_agent::sim::demo::run(&options)))
        }
        #[cfg(feature = "sim")]
        Some(Command::Sim(options)) => {
            config.log.filter = "warn".to_owned();
            start_log(&config.log)
                .and_then(|()| run_to_end(berth_agent::sim::fabric::run(&options)))
        }
        None => serve(config, arguments.fault_signals),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// The daemon itself. What belongs to the first thread comes before there are others.
fn serve(config: Config, fault_signals: bool) -> anyhow::Result<()> {
    start_log(&config.log)?;
    let service_manager = ServiceManager::from_environment()?;
    reclaim::prepare(&config.memory)?;
    run_to_end(app::run(config, service_manager, fault_signals))
}

fn run_to_end(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("berth-control")
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    result
}

/// Threads of the control plane; its work is small and mostly waits.
const CONTROL_THREADS: usize = 2;
/// Time for control-plane work that is left at the end.
const SHUTDOWN_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

fn start_log(log: &Log) -> anyhow::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = std::env::var("BERTH_LOG").unwrap_or_else(|_| log.filter.clone());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| anyhow::anyhow!("log.filter: {filter:?} is not a filter: {error}"))?;
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let subscriber = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour);
    match log.format {
        LogFormat::Text => subscriber.init(),
        LogFormat::Json => subscriber.json().init(),
    }
    Ok(())
}

fn fail(error: &(impl std::fmt::Display + ?Sized)) -> ExitCode {
    eprintln!("berthd: {error:#}");
    ExitCode::FAILURE
}
