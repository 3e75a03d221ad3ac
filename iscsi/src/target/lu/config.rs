//! What a logical unit is.

use sha2::{Digest as _, Sha256};

use crate::scsi::alua::PortGroup;

/// How a logical unit names itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuIdentity {
    /// NAA designator, 8 or 16 bytes with the type in the first four bits.
    pub naa: Vec<u8>,
    /// Unit serial number, printable ASCII.
    pub serial: String,
}

impl LuIdentity {
    /// An identity that follows from `serial`: a locally assigned NAA (type 3, SPC-4 7.8.6.6.4), which
    /// borrows nobody's company identifier.
    #[must_use]
    pub fn from_serial(serial: &str) -> Self {
        let mut naa = Sha256::digest(serial.as_bytes())[..8].to_vec();
        naa[0] = 0x30 | naa[0] & 0x0f;
        Self {
            naa,
            serial: serial.to_owned(),
        }
    }
}

/// Configuration of a logical unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuConfig {
    /// Its name.
    pub identity: LuIdentity,
    /// T10 vendor identification, cut at 8 bytes.
    pub vendor: String,
    /// Product identification, cut at 16 bytes.
    pub product: String,
    /// Product revision level, cut at 4 bytes.
    pub revision: String,
    /// Logical block length in bytes, a power of two of at least 512.
    pub block_bytes: u32,
    /// Physical block = logical block << this.
    pub physical_exponent: u8,
    /// Write protected.
    pub read_only: bool,
    /// WCE: there is a volatile write cache. Whether it loses anything is up to the disk.
    pub write_cache: bool,
    /// Thin provisioning: UNMAP, WRITE SAME with UNMAP, GET LBA STATUS, and zeroes from what is unmapped.
    pub thin: bool,
    /// The medium rotates.
    pub rotating: bool,
    /// Longest READ, WRITE, VERIFY and ORWRITE in bytes.
    pub transfer_max_bytes: u32,
    /// Longest WRITE SAME in bytes.
    pub write_same_max_bytes: u32,
    /// Most blocks in one UNMAP.
    pub unmap_blocks_max: u32,
    /// Most descriptors in one UNMAP.
    pub unmap_descriptors_max: u32,
    /// Longest COMPARE AND WRITE in blocks; 0: the command is not there.
    pub compare_and_write_max: u8,
    /// Target port groups; the identifier of a group is the portal group tag. Empty: no ALUA.
    pub port_groups: Vec<PortGroup>,
    /// SET TARGET PORT GROUPS works.
    pub explicit_alua: bool,
    /// Implicit transition time told in the extended header, in seconds.
    pub transition_seconds: u8,
}

impl LuConfig {
    /// A thin disk of 512-byte blocks without a volatile cache, named by its serial number.
    #[must_use]
    pub fn new(serial: &str) -> Self {
        Self {
            identity: LuIdentity::from_serial(serial),
            vendor: "BERTH".to_owned(),
            product: "VOLUME".to_owned(),
            revision: env!("CARGO_PKG_VERSION").to_owned(),
            block_bytes: 512,
            physical_exponent: 0,
            read_only: false,
            write_cache: false,
            thin: true,
            rotating: false,
            transfer_max_bytes: 16 << 20,
            write_same_max_bytes: 16 << 20,
            unmap_blocks_max: 1 << 20,
            unmap_descriptors_max: 256,
            compare_and_write_max: 255,
            port_groups: Vec::new(),
            explicit_alua: false,
            transition_seconds: 0,
        }
    }

    pub(super) const fn transfer_max_blocks(&self) -> u32 {
        self.transfer_max_bytes / self.block_bytes
    }

    pub(super) const fn write_same_max_blocks(&self) -> u32 {
        self.write_same_max_bytes / self.block_bytes
    }
}
