//! `berth-flexvolume`: the executable that kubelet runs for volumes of type `flexVolume`.
//!
//! One process for each call, which ends with one JSON object on standard output and nothing else, whatever happens. Both dialects
//! are spoken ([`call`]). The driver itself knows nothing that is not in the call, in berthd or in the records of what is mounted
//! ([`record`]), so each call can be repeated, and comes to the same end.
//!
//! ```text
//! argv -> call, options -> driver --+--> daemon (berthd: make the volume, attach, detach, grow)
//!                                   +--> mounting --> host (file systems and mounts of this node)
//!                                   +--> record (what is mounted where, and for whom)
//! ```

pub mod call;
pub mod config;
pub mod daemon;
pub mod driver;
mod host;
pub mod install;
mod log;
mod mounting;
pub mod options;
pub mod record;
pub mod reply;
pub mod size;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use tokio::time::timeout_at;

use call::Call;
use config::Config;
use driver::{Budget, Driver};
use host::ThisHost;
use record::Store;
use reply::{Reply, Status, chain};

/// How long beyond its time a call may take to say that its time is over.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Does one call and prints its answer.
#[must_use]
pub fn main() -> ExitCode {
    // kubelet would read what a panic prints.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let reply = catch_unwind(AssertUnwindSafe(|| answer(&arguments))).unwrap_or_else(|_| {
        Reply::failure("berth-flexvolume has a bug that ended this call; its log has the place")
    });
    // Nobody is there to be told if this fails.
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(reply.line().as_bytes());
    let _ = stdout.flush();
    ExitCode::from(reply.exit_code())
}

fn answer(arguments: &[OsString]) -> Reply {
    let began = Instant::now();
    let config = Config::load();
    if let Ok(config) = &config {
        log::begin(config);
    }
    let call = Call::parse(arguments);
    let word = arguments.first().map(|word| word.to_string_lossy());
    let word = word.as_deref().unwrap_or_default();
    let about = call.as_ref().map(Call::about).unwrap_or_default();
    let request_id = request_id(&about);
    let reply = match (call, config) {
        (Err(error), _) => Reply::failure(chain(&error)),
        (Ok(Call::Unknown), _) => Reply::not_supported(),
        // A kubelet of Kubernetes 1.3 does not start when this fails.
        (Ok(Call::Init), config) => driver::init(&config.unwrap_or_default()),
        (Ok(Call::Install(words)), _) => installed(&words),
        (Ok(_), Err(error)) => Reply::failure(chain(&error)),
        (Ok(call), Ok(config)) => run(call, config, &request_id),
    };
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    let message = reply.message.as_deref().unwrap_or_default();
    match reply.status {
        Status::Failure => {
            tracing::error!(%request_id, took_ms, "{word} {about}: failed: {message}");
        }
        status => tracing::info!(%request_id, took_ms, "{word} {about}: {status:?} {message}"),
    }
    reply
}

fn installed(words: &[String]) -> Reply {
    match install::install(words) {
        Ok(places) => {
            let places: Vec<_> = places
                .iter()
                .map(|place| place.display().to_string())
                .collect();
            Reply::success().with_message(format!("installed as {}", places.join(" and ")))
        }
        Err(error) => Reply::failure(chain(&error)),
    }
}

fn run(call: Call, config: Config, request_id: &str) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Reply::failure(format!("cannot begin: {error}")),
    };
    let reply = runtime.block_on(async {
        let budget = Budget::of(config.deadline());
        let store = match Store::open(&config.state_dir) {
            Ok(store) => store,
            Err(error) => return Reply::failure(chain(&error)),
        };
        let driver = Driver::new(config, ThisHost, store, request_id, budget);
        match timeout_at(budget.end + LAST_WORDS, driver.answer(call)).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => Reply::failure(chain(&error)),
            Err(_) => Reply::failure("the time of this call is over; it may be repeated"),
        }
    });
    runtime.shutdown_background();
    reply
}

/// By this the log of berthd and our own can be read together. Different for each call.
fn request_id(about: &str) -> String {
    let mut digest = Sha256::new();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    digest.update(now.unwrap_or_default().as_nanos().to_le_bytes());
    digest.update(std::process::id().to_le_bytes());
    digest.update(about);
    let mut id = String::from("flex-");
    for byte in &digest.finalize()[..8] {
        id.push_str(&format!("{byte:02x}"));
    }
    id
}
