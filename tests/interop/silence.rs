//! Portals that are no targets: one that accepts and says nothing, one that talks garbage.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Result;

/// What such a portal does with a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// Reads and never answers.
    Silent,
    /// Answers whatever comes with bytes that are no PDU.
    Garbage,
}

/// A listener that ends, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct BadPortal {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadPortal {
    pub(crate) fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut open: Vec<(TcpStream, JoinHandle<()>)> = Vec::new();
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                open.retain(|(_, thread)| !thread.is_finished());
                if let Ok(ours) = stream.try_clone() {
                    open.push((ours, std::thread::spawn(move || serve(stream, manner))));
                }
            }
            for (stream, thread) in open {
                let _ = stream.shutdown(Shutdown::Both);
                let _ = thread.join();
            }
        });
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    pub(crate) fn portal(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for BadPortal {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listener.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, manner: Manner) {
    let mut buffer = [0; 4096];
    // A response opcode with a length that no login has, then more of the like.
    let garbage: Vec<u8> = (0..4096_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    while let Ok(1..) = stream.read(&mut buffer) {
        if matches!(manner, Manner::Garbage) && stream.write_all(&garbage).is_err() {
            return;
        }
    }
}
