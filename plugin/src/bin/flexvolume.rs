//! `berth-flexvolume`, see [`berth_plugin::flexvolume`].

use std::process::ExitCode;

fn main() -> ExitCode {
    berth_plugin::filesystem::helper::run_if_asked();
    berth_plugin::flexvolume::main()
}
