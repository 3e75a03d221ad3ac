//! `berth-csi`, the CSI driver: arguments, logging, signals, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use berth_api::client::Client;
use berth_plugin::csi::host::RealHost;
use berth_plugin::csi::migrate::{self, MigrateOptions};
use berth_plugin::csi::options::Options;
use berth_plugin::csi::{Driver, server};
use berth_plugin::filesystem::helper;
use berth_plugin::limits::Limits;
use clap::Parser as _;

fn main() -> ExitCode {
    helper::run_if_asked();
    let mut words = std::env::args_os();
    if words.nth(1).is_some_and(|word| word == "migrate") {
        let words = std::iter::once("berth-csi migrate".into()).chain(words);
        return end(migrate::run(&MigrateOptions::parse_from(words)));
    }
    let options = Options::parse();
    let settings = match options.settings() {
        Ok(settings) => settings,
        Err(error) => {
            eprintln!("berth-csi: {error}");
            return ExitCode::from(2);
        }
    };
    let driver = Driver::new(settings, Client::unix(&options.socket));
    let host = RealHost::new(Limits::default());
    end(server::run(&options, driver, Arc::new(host)))
}

fn end(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}
