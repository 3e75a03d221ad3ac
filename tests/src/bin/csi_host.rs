//! `berth-csi` on a pretended host: file systems and mounts are those of [`berth_tests::csi::host`], all else is real.

use std::process::ExitCode;
use std::sync::Arc;

use berth_api::client::Client;
use berth_plugin::csi::options::Options;
use berth_plugin::csi::{Driver, server};
use berth_tests::csi::host::PretendedHost;
use clap::Parser as _;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = options
        .settings()
        .map_err(anyhow::Error::msg)
        .and_then(|settings| {
            let host = PretendedHost::open(&settings.run_dir.join("pretended"))?;
            let driver = Driver::new(settings, Client::unix(&options.socket));
            server::run(&options, driver, Arc::new(host))
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("csi-host: {error:#}");
            ExitCode::FAILURE
        }
    }
}
