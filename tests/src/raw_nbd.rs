//! An NBD client that does what it is told, also what clients must not do. Simple replies only.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const OPT_GO: u32 = 7;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;

/// `NBD_CMD_READ`.
pub const CMD_READ: u16 = 0;
/// `NBD_CMD_WRITE`.
pub const CMD_WRITE: u16 = 1;
/// `NBD_EINVAL`.
pub const EINVAL: u32 = 22;

/// A connection that has read the greeting.
#[derive(Debug)]
pub struct RawClient(pub UnixStream);

impl RawClient {
    /// Connects and reads the greeting. No answer may take longer than `within`.
    ///
    /// # Errors
    /// When nobody listens or the greeting is none.
    pub fn connect(socket: &Path, within: Duration) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        let mut client = Self(stream);
        let greeting = client.read::<18>().context("greeting")?;
        ensure!(
            greeting[..16] == *b"NBDMAGICIHAVEOPT",
            "greeting {greeting:02x?}"
        );
        Ok(client)
    }

    /// Chooses an export: fixed newstyle, no zeroes, GO. Gives its size in bytes.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn go(&mut self, export: &str) -> Result<u64> {
        let mut size = None;
        self.0.write_all(&3_u32.to_be_bytes())?;
        let mut data = (export.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(export.as_bytes());
        data.extend_from_slice(&0_u16.to_be_bytes());
        self.option(OPT_GO, &data)?;
        loop {
            let header = self.read::<20>().context("option reply")?;
            let reply = u32::from_be_bytes(header[12..16].try_into()?);
            let len = u32::from_be_bytes(header[16..20].try_into()?);
            ensure!(len < 65536, "reply of {len} bytes");
            let mut data = vec![0; len as usize];
            self.0.read_exact(&mut data)?;
            ensure!(
                reply & 1 << 31 == 0,
                "GO: {}",
                String::from_utf8_lossy(&data)
            );
            // NBD_REP_INFO with NBD_INFO_EXPORT.
            if reply == 3 && data.len() >= 10 && data[..2] == [0, 0] {
                size = Some(u64::from_be_bytes(data[2..10].try_into()?));
            }
            if reply == 1 {
                return size.context("the size of the export");
            }
        }
    }

    /// Sends an option with its data.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn option(&mut self, option: u32, data: &[u8]) -> Result<()> {
        let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&(data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        Ok(self.0.write_all(&bytes)?)
    }

    /// Sends a request without payload.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn request(&mut self, command: u16, cookie: u64, offset: u64, len: u32) -> Result<()> {
        let mut bytes = REQUEST.to_be_bytes().to_vec();
        bytes.extend_from_slice(&0_u16.to_be_bytes());
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        Ok(self.0.write_all(&bytes)?)
    }

    /// A simple reply's error and cookie.
    ///
    /// # Errors
    /// When none comes, or something else.
    pub fn reply(&mut self) -> Result<(u32, u64)> {
        let header = self.read::<16>().context("simple reply")?;
        let magic = u32::from_be_bytes(header[..4].try_into()?);
        ensure!(magic == SIMPLE_REPLY, "magic {magic:#x}");
        Ok((
            u32::from_be_bytes(header[4..8].try_into()?),
            u64::from_be_bytes(header[8..].try_into()?),
        ))
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// When they do not come.
    pub fn read<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// The server hangs up, after at most a few replies.
    ///
    /// # Errors
    /// When it does not.
    pub fn expect_closed(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        match std::io::Read::take(&mut self.0, 1 << 20).read_to_end(&mut rest) {
            Ok(len) if len < 1 << 20 => Ok(()),
            Ok(_) => anyhow::bail!("the server goes on talking"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("the server does not hang up"),
        }
    }
}
