//! One connection between the kernel and the daemon: a pair of sockets.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, sockopt};
use tokio::sync::oneshot;

use crate::nbd::connection::End;

/// What the kernel may have sent that we have not read, at most: several whole requests, so that it seldom stops in
/// the midst of one. Kernels before 6.13 could go on with another request there.
const SEND_BUFFER_MOST_BYTES: usize = 8 << 20;
/// At least: one request of 128 KiB, and then some.
const SEND_BUFFER_LEAST_BYTES: usize = 256 << 10;
/// The driver may fill the buffer from the reserves of a kernel that is short of memory, which must not run out:
/// nothing works then, and sends fail with ENOBUFS. So it is this part of them; the kernel doubles
/// it, and counts its own overhead in it.
const SEND_BUFFER_PART_OF_RESERVES: usize = 16;
/// The size of the reserves, in KiB.
const RESERVES: &str = "/proc/sys/vm/min_free_kbytes";

/// A connection that is served.
#[derive(Debug)]
pub struct Link {
    /// Another handle of our end; the thread of the volume has the one that it serves.
    anchor: UnixStream,
    /// How it ended, once it has.
    ended: oneshot::Receiver<End>,
}

impl Link {
    /// A connection over our end of a pair, given to `serve`.
    pub(super) fn start(
        ours: UnixStream,
        serve: impl FnOnce(UnixStream) -> io::Result<oneshot::Receiver<End>>,
    ) -> io::Result<Self> {
        let anchor = ours.try_clone()?;
        let ended = serve(ours)?;
        Ok(Self { anchor, ended })
    }

    /// Waits for its end, and says whether it is parked: everything that was read of it is answered, and
    /// nothing was read in part. Can be dropped and called again; after it has returned only once more.
    pub async fn wait_ended(&mut self) -> Ending {
        match (&mut self.ended).await {
            Ok(End::Parked) => Ending::Parked,
            Ok(End::Disconnected) => {
                self.shut();
                Ending::Disconnected
            }
            Ok(end) => {
                self.shut();
                Ending::Over(end.to_string())
            }
            Err(_) => {
                self.shut();
                Ending::Over("it was not served".to_owned())
            }
        }
    }

    /// Ends the connection for both sides, whoever else has handles of it.
    pub fn shut(&self) {
        let _ = self.anchor.shutdown(Shutdown::Both);
    }

    /// Our end, for the service manager to keep.
    pub(super) fn anchor(&self) -> &UnixStream {
        &self.anchor
    }
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// At a message boundary with nothing unanswered: whoever has its socket can go on.
    Parked,
    /// The kernel has said goodbye: somebody disconnected the device.
    Disconnected,
    /// In any other way: it can only be replaced.
    Over(String),
}

/// A pair of sockets: our end, non-blocking, and the kernel's.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let bytes = send_buffer_bytes(std::fs::read_to_string(RESERVES).ok().as_deref());
    if sockopt::set_socket_send_buffer_size_force(&theirs, bytes).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&theirs, bytes);
    }
    Ok((ours, theirs.into()))
}

/// Send buffer of the kernel's end, for reserves of so many KiB in text.
fn send_buffer_bytes(reserves: Option<&str>) -> usize {
    let kib: usize = reserves
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0);
    (kib.saturating_mul(1024) / SEND_BUFFER_PART_OF_RESERVES)
        .clamp(SEND_BUFFER_LEAST_BYTES, SEND_BUFFER_MOST_BYTES)
}

/// Whether nobody has the other end any more. Reads nothing.
pub(super) fn is_abandoned(socket: impl AsFd) -> bool {
    let mut byte = [0];
    match rustix::net::recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((_, 0)) => true,
        Ok(_) => false,
        Err(error) => error != rustix::io::Errno::AGAIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_kernels_end_does_not_use_up_its_reserves() {
        // Machines of 1 GiB, 16 GiB with transparent huge pages, and one that somebody has spoilt.
        assert_eq!(send_buffer_bytes(Some("4022\n")), SEND_BUFFER_LEAST_BYTES);
        assert_eq!(send_buffer_bytes(Some("67584\n")), 67_584 * 1024 / 16);
        assert_eq!(send_buffer_bytes(Some("9999999\n")), SEND_BUFFER_MOST_BYTES);
        assert_eq!(
            send_buffer_bytes(Some("no number")),
            SEND_BUFFER_LEAST_BYTES
        );
        assert_eq!(send_buffer_bytes(None), SEND_BUFFER_LEAST_BYTES);
    }

    #[test]
    fn a_dropped_end_shows_at_once() {
        let (ours, theirs) = pair().expect("a pair");
        assert!(!is_abandoned(&ours));
        let kept = theirs.try_clone().expect("another handle");
        drop(theirs);
        assert!(!is_abandoned(&ours), "the kernel's own reference counts");
        UnixStream::from(kept).write_all(b"x").expect("sends");
        assert!(!is_abandoned(&ours), "what was sent is still to be read");
        let mut byte = [0];
        rustix::net::recv(&ours, &mut byte, RecvFlags::empty()).expect("reads");
        assert!(is_abandoned(&ours));
    }
}
