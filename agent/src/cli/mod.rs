//! `berthctl`: the command line for people and scripts.
//!
//! It speaks only the daemon's HTTP API. Tables and words go to people, `-o json` gives programs the
//! objects of the API as they are; errors go to standard error in the same form. Exit codes are part
//! of the contract: see `berthctl --help`.

mod args;
mod attachment;
mod bench;
mod discover;
mod error;
mod events;
mod node;
mod output;
mod secret;
mod show;
mod stats;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Arguments, Command};
use berth_api::client::Client;
use error::Failure;
use output::Output;

/// Runs `berthctl` with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    // clap itself exits with 2 when the arguments do not fit.
    let arguments = Arguments::parse();
    let output = Output::new(arguments.global.output);
    let result = match arguments.command {
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "berthctl", &mut text);
            output.bytes(&text)
        }
        command => run(command, &arguments.global, &output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`berthctl list | head`).
        Err(Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(command: Command, global: &args::Global, output: &Output) -> Result<(), Failure> {
    let client = connect(global)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("cannot start the runtime", error))?;
    runtime.block_on(async {
        match command {
            Command::Attach(arguments) => attachment::attach(&client, output, arguments).await,
            Command::Set(arguments) => attachment::set(&client, output, arguments).await,
            Command::Detach(arguments) => attachment::detach(&client, output, &arguments).await,
            Command::List => attachment::list(&client, output).await,
            Command::Show { name } => attachment::show(&client, output, &name).await,
            Command::Discover(arguments) => discover::run(&client, output, arguments).await,
            Command::Events(arguments) => events::run(&client, output, &arguments).await,
            Command::Stats(arguments) => stats::run(&client, output, &arguments).await,
            Command::Bench(arguments) => bench::run(&client, output, &arguments).await,
            Command::Volume(command) => volume::run(&client, output, command).await,
            Command::Template(command) => volume::run_template(&client, output, &command).await,
            Command::Fabric(command) => volume::run_fabric(&client, output, &command).await,
            Command::Node => node::run(&client, output).await,
            Command::Completions { .. } => Ok(()),
        }
    })
}

fn connect(global: &args::Global) -> Result<Client, Failure> {
    let Some(url) = &global.url else {
        return Ok(Client::unix(&global.socket));
    };
    let Some(path) = &global.token_file else {
        return Err(Failure::Usage(
            "--url needs --token-file (or BERTH_TOKEN_FILE): over TCP every call needs the token"
                .to_owned(),
        ));
    };
    let token = secret::from_file(path)?;
    Ok(Client::tcp(url, token)?)
}
