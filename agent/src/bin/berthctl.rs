//! `berthctl`, the command line for people.

fn main() -> std::process::ExitCode {
    berth_agent::cli::main()
}
