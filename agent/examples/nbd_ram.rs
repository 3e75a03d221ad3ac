//! Serves a disk in memory over NBD: `nbd_ram SOCKET [SIZE_MIB]`. For trying clients, and for measuring
//! the NBD side alone.

use std::path::Path;
use std::sync::Arc;

use berth_agent::block::{Client, Hub, hub::DynHub, ram::RamDevice};
use berth_agent::nbd::connection::{Handover, Stop, serve};
use berth_agent::nbd::export::{ExportInfo, ExportSummary, Exports};
use berth_agent::nbd::server::{Server, ServerLimits};
use berth_agent::nbd::transmission::Limits;

struct One(ExportInfo);

impl Exports for One {
    fn list(&self) -> Vec<ExportSummary> {
        vec![ExportSummary {
            name: self.0.name.clone(),
            description: self.0.description.clone(),
        }]
    }

    fn open(&self, name: &str) -> Option<ExportInfo> {
        (name.is_empty() || name == self.0.name).then(|| self.0.clone())
    }
}

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().unwrap_or_else(|| "nbd.sock".into());
    let size_mib: u64 = args.next().map_or(Ok(64), |n| n.parse())?;
    let mut device = RamDevice::new(size_mib * 1024 * 1024);
    device.geometry_mut().write_cache = false;
    let info = {
        use berth_agent::block::BlockDevice as _;
        ExportInfo::new("ram", "a disk in memory", device.geometry())
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let hub: std::rc::Rc<std::cell::RefCell<DynHub>> = Hub::new(device);
        let server = Server::bind(Path::new(&path), 0o600, ServerLimits::default())?;
        println!("nbd+unix:///ram?socket={path}");
        let (to_volume, mut handovers) = tokio::sync::mpsc::channel::<Handover>(16);
        let hand_over = move |handover| {
            // A full queue closes the connection; the volume's thread is stuck then.
            let _ = to_volume.try_send(handover);
        };
        let connections = async {
            while let Some(handover) = handovers.recv().await {
                let client = Client::new(hub.clone());
                tokio::task::spawn_local(async move {
                    let end = serve(handover, client, Limits::default(), Stop::new()).await;
                    eprintln!("connection ended: {}", end.0);
                });
            }
        };
        tokio::select! {
            () = server.run(Arc::new(One(info)), hand_over) => {}
            () = connections => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}
