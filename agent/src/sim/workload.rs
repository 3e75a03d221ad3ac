//! Data written, read back and compared through NBD.
//!
//! The contents follow from the seed and the place alone, so a block that is lost, old or in the wrong
//! place is found when it is read back, whoever misplaced it.

use std::time::{Duration, Instant};

use berth_iobuf::Payload;
use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::block::{Op, Output};
use crate::nbd::client::{ClientError, Completed, Connection, Wishes};
use crate::nbd::uri::Uri;

/// Size of one request of the sequential phases, in bytes.
const CHUNK_BYTES: u64 = 256 << 10;
/// Requests in flight in the sequential phases.
const SEQUENTIAL_DEPTH: usize = 16;
/// Size of one request of the random phase, in bytes.
const RANDOM_BYTES: u32 = 4096;
/// Requests in flight in the random phase.
const RANDOM_DEPTH: usize = 32;

/// Why the workload stopped.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The export cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was read is not what was written.
    #[error("the data at byte {offset_bytes} is not what was written there")]
    Different {
        /// Start of the 4 KiB block.
        offset_bytes: u64,
    },
    /// The server answered something else than what was asked for.
    #[error("the answer does not fit the request")]
    Answer,
}

/// How fast a phase was.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Bytes moved.
    pub bytes: u64,
    /// Requests.
    pub requests: u64,
    /// Time taken.
    pub elapsed: Duration,
    /// Latency of the requests, in microseconds.
    pub latency_us: Histogram<u64>,
}

impl Pace {
    fn new() -> Self {
        let latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("valid bounds");
        Self {
            bytes: 0,
            requests: 0,
            elapsed: Duration::ZERO,
            latency_us,
        }
    }

    /// Bytes per second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Requests per second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A generator of pseudo-random numbers (splitmix64): fast, and the same everywhere.
#[derive(Debug, Clone, Copy)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Contents of the 4 KiB block at `offset_bytes`.
fn block(seed: u64, offset_bytes: u64) -> [u8; RANDOM_BYTES as usize] {
    let mut numbers = Numbers(seed ^ offset_bytes.wrapping_mul(0xd6e8_feb8_6659_fd93));
    let mut block = [0; RANDOM_BYTES as usize];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&numbers.next().to_le_bytes());
    }
    block
}

fn contents(seed: u64, offset_bytes: u64, len_bytes: u64) -> Payload {
    let mut bytes = Vec::with_capacity(len_bytes as usize);
    for at in (0..len_bytes).step_by(RANDOM_BYTES as usize) {
        bytes.extend_from_slice(&block(seed, offset_bytes + at));
    }
    bytes.truncate(len_bytes as usize);
    Payload::from(Bytes::from(bytes))
}

fn compare(seed: u64, offset_bytes: u64, data: &Payload) -> Result<(), WorkloadError> {
    let bytes = data.to_bytes();
    for (index, found) in bytes.chunks(RANDOM_BYTES as usize).enumerate() {
        let at = offset_bytes + (index * RANDOM_BYTES as usize) as u64;
        if block(seed, at)[..found.len()] != *found {
            return Err(WorkloadError::Different { offset_bytes: at });
        }
    }
    Ok(())
}

/// Writes the first `len_bytes` of the export sequentially and flushes it. `progress` gets the bytes done.
///
/// # Errors
/// When a request fails.
pub async fn write_all(
    uri: &Uri,
    seed: u64,
    len_bytes: u64,
    mut progress: impl FnMut(u64),
) -> Result<Pace, WorkloadError> {
    let mut connection = Connection::connect(uri, Wishes::default()).await?;
    let size = len_bytes.min(connection.facts().size_bytes);
    let write = |offset_bytes, len_bytes| Op::Write {
        offset_bytes,
        data: contents(seed, offset_bytes, len_bytes),
        fua: false,
    };
    let pace = sequential(
        &mut connection,
        size,
        write,
        |_, output| match output {
            Output::Done => Ok(()),
            _ => Err(WorkloadError::Answer),
        },
        &mut progress,
    )
    .await?;
    connection.flush().await?;
    connection.disconnect().await?;
    Ok(pace)
}

/// Reads the first `len_bytes` of the export sequentially and compares every byte. `progress` gets the bytes done.
///
/// # Errors
/// When a request fails or a byte differs.
pub async fn verify_all(
    uri: &Uri,
    seed: u64,
    len_bytes: u64,
    mut progress: impl FnMut(u64),
) -> Result<Pace, WorkloadError> {
    let mut connection = Connection::connect(uri, Wishes::default()).await?;
    let size = len_bytes.min(connection.facts().size_bytes);
    let read = |offset_bytes, len_bytes| Op::Read {
        offset_bytes,
        len_bytes: len_bytes as u32,
    };
    let pace = sequential(
        &mut connection,
        size,
        read,
        |offset, output| match output {
            Output::Data(data) => compare(seed, offset, &data),
            _ => Err(WorkloadError::Answer),
        },
        &mut progress,
    )
    .await?;
    connection.disconnect().await?;
    Ok(pace)
}

/// Reads 4 KiB at random places of the first `len_bytes` for this long, and compares every byte.
///
/// # Errors
/// When a request fails or a byte differs.
pub async fn random_reads(
    uri: &Uri,
    seed: u64,
    len_bytes: u64,
    length: Duration,
) -> Result<Pace, WorkloadError> {
    let mut connection = Connection::connect(uri, Wishes::default()).await?;
    let size = len_bytes.min(connection.facts().size_bytes);
    let blocks = (size / u64::from(RANDOM_BYTES)).max(1);
    let mut numbers = Numbers(seed);
    let mut flights = Flights::default();
    let mut pace = Pace::new();
    let started = Instant::now();
    while started.elapsed() < length || connection.in_flight() > 0 {
        while connection.in_flight() < RANDOM_DEPTH && started.elapsed() < length {
            let offset_bytes = numbers.next() % blocks * u64::from(RANDOM_BYTES);
            let op = Op::Read {
                offset_bytes,
                len_bytes: RANDOM_BYTES,
            };
            flights.submit(&mut connection, &op, offset_bytes)?;
        }
        if connection.in_flight() == 0 {
            break;
        }
        let (offset, output) = flights.land(connection.next().await?, &mut pace)?;
        let Output::Data(data) = output else {
            return Err(WorkloadError::Answer);
        };
        compare(seed, offset, &data)?;
        pace.bytes += data.len() as u64;
    }
    pace.elapsed = started.elapsed();
    connection.disconnect().await?;
    Ok(pace)
}

async fn sequential(
    connection: &mut Connection,
    size: u64,
    op: impl Fn(u64, u64) -> Op,
    mut check: impl FnMut(u64, Output) -> Result<(), WorkloadError>,
    progress: &mut impl FnMut(u64),
) -> Result<Pace, WorkloadError> {
    let mut pace = Pace::new();
    let mut flights = Flights::default();
    let mut at = 0;
    let started = Instant::now();
    while at < size || connection.in_flight() > 0 {
        while at < size && connection.in_flight() < SEQUENTIAL_DEPTH {
            let len = CHUNK_BYTES.min(size - at);
            flights.submit(connection, &op(at, len), at)?;
            at += len;
        }
        let (offset, output) = flights.land(connection.next().await?, &mut pace)?;
        check(offset, output)?;
        pace.bytes += CHUNK_BYTES.min(size - offset);
        progress(pace.bytes);
    }
    pace.elapsed = started.elapsed();
    Ok(pace)
}

/// What is in flight: where it goes and since when.
#[derive(Default)]
struct Flights(Vec<(crate::nbd::client::Token, u64, Instant)>);

impl Flights {
    fn submit(&mut self, connection: &mut Connection, op: &Op, at: u64) -> Result<(), ClientError> {
        let token = connection.submit(op)?;
        self.0.push((token, at, Instant::now()));
        Ok(())
    }

    fn land(
        &mut self,
        completed: Completed,
        pace: &mut Pace,
    ) -> Result<(u64, Output), WorkloadError> {
        let index = self
            .0
            .iter()
            .position(|(token, ..)| *token == completed.token);
        let (_, at, since) = self.0.swap_remove(index.ok_or(WorkloadError::Answer)?);
        let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        pace.latency_us.saturating_record(us.max(1));
        pace.requests += 1;
        Ok((at, completed.result.map_err(ClientError::from)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_depend_on_seed_and_place() {
        assert_eq!(contents(1, 0, 8192), contents(1, 0, 8192));
        assert_ne!(block(1, 0), block(1, 4096));
        assert_ne!(block(1, 0), block(2, 0));
    }

    #[test]
    fn one_wrong_bit_is_found_with_its_place() {
        let mut bytes = contents(7, 65536, 12288).to_bytes().to_vec();
        assert!(compare(7, 65536, &Payload::from(bytes.clone())).is_ok());
        bytes[4096 + 17] ^= 1;
        let found = compare(7, 65536, &Payload::from(bytes));
        assert!(matches!(
            found,
            Err(WorkloadError::Different {
                offset_bytes: 69632
            })
        ));
    }
}
