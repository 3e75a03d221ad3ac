//! The Unix socket of a client, without the wake-ups that are for nothing.
//!
//! A Unix socket that is watched for room to write tells of room whenever the other end has read something
//! (`unix_write_space` in Linux): about once for each answer, and nearly always nobody waits for it. At depth
//! 1 that was up to one context switch of three. So this one is watched for input alone, and for room only
//! after a write that found none.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

/// A connected, non-blocking Unix socket on the runtime of its thread.
#[derive(Debug)]
pub(super) struct Socket {
    /// tokio's sockets are always watched for both directions, its ends of pipes for one. To `read` and to
    /// epoll a socket is the same.
    input: pipe::Receiver,
    /// While a write waits: the same socket again, watched for room.
    room: Option<pipe::Sender>,
}

impl Socket {
    /// Gives the socket to the runtime of this thread.
    ///
    /// # Errors
    /// If the runtime cannot watch it.
    pub(super) fn register(stream: UnixStream) -> io::Result<Self> {
        let input = pipe::Receiver::from_owned_fd_unchecked(OwnedFd::from(stream))?;
        Ok(Self { input, room: None })
    }

    fn write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match rustix::io::writev(&self.input, slices) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, into)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.room.is_none() {
            match self.write(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let again = self.input.as_fd().try_clone_to_owned()?;
                    self.room = Some(pipe::Sender::from_owned_fd_unchecked(again)?);
                }
                result => return Poll::Ready(result),
            }
        }
        let room = self.room.as_mut().expect("it was just made, if not before");
        let written = ready!(Pin::new(room).poll_write_vectored(cx, slices));
        self.room = None;
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::os::fd::{AsRawFd as _, BorrowedFd};
    use std::task::Waker;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn pair() -> (Socket, tokio::net::UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        theirs.set_nonblocking(true).expect("non-blocking");
        let theirs = tokio::net::UnixStream::from_std(theirs).expect("registers");
        (Socket::register(ours).expect("registers"), theirs)
    }

    /// A write that waits goes on when there is room, byte by byte as it was given.
    #[tokio::test]
    async fn more_than_the_socket_holds() {
        let (mut ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
        let write = async {
            ours.write_all(&sent).await.expect("writes");
            ours
        };
        let read = async {
            let mut read = vec![0; sent.len()];
            theirs.read_exact(&mut read).await.expect("reads");
            read
        };
        let (ours, read) = tokio::join!(write, read);
        assert!(read == sent);
        assert!(ours.room.is_none(), "nothing waits");
    }

    /// Both directions wait at once, each is woken.
    #[tokio::test]
    async fn input_comes_while_a_write_waits() {
        let (mut ours, mut theirs) = pair();
        let full = vec![7; 1 << 20];
        let mut cx = Context::from_waker(Waker::noop());
        let mut held = 0;
        while let Poll::Ready(written) = Pin::new(&mut ours).poll_write(&mut cx, &full) {
            held += written.expect("writes");
        }
        assert!(ours.room.is_some());
        theirs.write_all(b"hello").await.expect("writes");
        let mut hello = [0; 5];
        ours.read_exact(&mut hello).await.expect("reads");
        assert_eq!(&hello, b"hello");
        let mut sink = vec![0; held];
        theirs.read_exact(&mut sink).await.expect("reads");
        let more = poll_fn(|cx| Pin::new(&mut ours).poll_write(cx, &full)).await;
        assert!(more.expect("writes") > 0);
    }

    /// What the kernel was asked to tell about a descriptor: `EPOLLIN` is 1, `EPOLLOUT` is 4 (epoll_ctl(2)).
    fn watched_for(fd: BorrowedFd<'_>) -> u32 {
        let line = format!("tfd: {:>8} events:", fd.as_raw_fd());
        let infos = std::fs::read_dir("/proc/self/fdinfo").expect("there is one");
        infos
            .filter_map(|info| std::fs::read_to_string(info.ok()?.path()).ok())
            .find_map(|info| {
                let mask = info.lines().find_map(|it| it.strip_prefix(&line))?;
                u32::from_str_radix(mask.split_whitespace().next()?, 16).ok()
            })
            .expect("some epoll instance watches it")
    }

    /// That the client has read an answer is no news: nobody waits for room.
    #[tokio::test]
    async fn room_is_watched_for_only_while_a_write_waits() {
        let (mut ours, mut theirs) = pair();
        ours.write_all(&[1; 4096]).await.expect("writes");
        assert_eq!(watched_for(ours.input.as_fd()) & 5, 1);
        let mut cx = Context::from_waker(Waker::noop());
        let full = vec![7; 1 << 20];
        let mut held = 4096;
        while let Poll::Ready(written) = Pin::new(&mut ours).poll_write(&mut cx, &full) {
            held += written.expect("writes");
        }
        let room = ours.room.as_ref().expect("a write waits");
        assert_eq!(watched_for(room.as_fd()) & 5, 4);
        theirs.read_exact(&mut vec![0; held]).await.expect("reads");
        ours.write_all(&[1]).await.expect("writes");
        assert!(ours.room.is_none());
    }

    #[tokio::test]
    async fn the_end_of_the_other_side_is_the_end_of_input() {
        let (mut ours, theirs) = pair();
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 8]).await.expect("the end"), 0);
        let error = ours.write_all(&[1]).await.expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
