//! `berth-flexvolume`.

fn main() {
    berth_plugin::filesystem::helper::run_if_asked();
}
