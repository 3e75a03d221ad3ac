//! CHAP: secrets, algorithms, the response (RFC 7143 12.1.3, RFC 1994).

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use sha3::Sha3_256;
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize as _, Zeroizing};

/// Shortest secret in bytes that is accepted without an explicit override: 96 bits (RFC 7143 9.2.1).
pub const SECRET_BYTES_MIN: usize = 12;
/// Length in bytes of the challenges that we send; RFC 7143 9.2.1 wants them random and long.
pub const CHALLENGE_BYTES: usize = 32;

/// A CHAP secret: a byte string that is wiped when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes exactly as they are; nothing is trimmed or re-encoded.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the secret has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// In constant time (for secrets of equal length).
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

/// Hash function of a CHAP exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChapAlgorithm {
    /// 5: the one that every peer has.
    Md5 = 5,
    /// 6
    Sha1 = 6,
    /// 7: SHA-256; tgt computes SHA-1 under this number.
    Sha256 = 7,
    /// 8
    Sha3_256 = 8,
}

impl ChapAlgorithm {
    /// The default proposal. SHA-256 is last although it is strong: tgt takes the first number it
    /// knows, knows 5 and 7, and computes SHA-1 for 7, so with 7 before 5 no login there succeeds.
    /// Peers with the whole family take 8.
    pub const DEFAULT_ORDER: [Self; 4] = [Self::Sha3_256, Self::Sha1, Self::Md5, Self::Sha256];
    /// All four, the strongest first; for peers that are known not to be tgt.
    pub const STRONGEST_FIRST: [Self; 4] = [Self::Sha3_256, Self::Sha256, Self::Sha1, Self::Md5];

    /// The number in `CHAP_A`.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The algorithm of a number in `CHAP_A`.
    #[must_use]
    pub const fn from_number(number: u64) -> Option<Self> {
        match number {
            5 => Some(Self::Md5),
            6 => Some(Self::Sha1),
            7 => Some(Self::Sha256),
            8 => Some(Self::Sha3_256),
            _ => None,
        }
    }

    /// Length of a response in bytes.
    #[must_use]
    pub const fn response_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Sha3_256 => 32,
        }
    }

    /// The response: hash of identifier, secret and challenge (RFC 1994 4.1).
    #[must_use]
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> ChapResponse {
        fn hash<D: Digest>(id: u8, secret: &Secret, challenge: &[u8]) -> ChapResponse {
            let digest = D::new()
                .chain_update([id])
                .chain_update(&*secret.0)
                .chain_update(challenge)
                .finalize();
            ChapResponse(Zeroizing::new(digest.to_vec()))
        }
        match self {
            Self::Md5 => hash::<Md5>(id, secret, challenge),
            Self::Sha1 => hash::<Sha1>(id, secret, challenge),
            Self::Sha256 => hash::<Sha256>(id, secret, challenge),
            Self::Sha3_256 => hash::<Sha3_256>(id, secret, challenge),
        }
    }
}

impl fmt::Display for ChapAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Md5 => "MD5",
            Self::Sha1 => "SHA-1",
            Self::Sha256 => "SHA-256",
            Self::Sha3_256 => "SHA3-256",
        })
    }
}

/// A computed response; never printed, because it allows guessing the secret offline.
#[derive(Clone)]
pub struct ChapResponse(Zeroizing<Vec<u8>>);

impl ChapResponse {
    /// The bytes of `CHAP_R`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether a peer's response is this one, in constant time; another length never is.
    #[must_use]
    pub fn matches(&self, other: &[u8]) -> bool {
        self.0.as_slice().ct_eq(other).into()
    }
}

impl fmt::Debug for ChapResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChapResponse")
    }
}

/// Identifier and challenge of one direction.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) id: u8,
    pub(super) bytes: Vec<u8>,
}

impl Challenge {
    /// A fresh challenge from the operating system's random source; `None` when that fails.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; CHALLENGE_BYTES + 1];
        getrandom::fill(&mut bytes).ok()?;
        let challenge = Self {
            id: bytes[CHALLENGE_BYTES],
            bytes: bytes[..CHALLENGE_BYTES].to_vec(),
        };
        bytes.zeroize();
        Some(challenge)
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({} bytes)", self.bytes.len())
    }
}

/// Challenges sent by logins that are under way, shared by the connections to one target.
///
/// A peer that holds no secret can open a second connection and hand back the challenge that it got
/// on the first one (reflection, RFC 7143 9.2.1). Give every login to a target the same log; each
/// refuses a challenge that another one has sent.
#[derive(Clone, Default)]
pub struct ChallengeLog(Arc<Mutex<VecDeque<Vec<u8>>>>);

/// Logins under way whose challenges one log remembers; older ones fall out.
const CHALLENGES_MAX: usize = 256;

impl ChallengeLog {
    /// An empty log.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn contains(&self, challenge: &[u8]) -> bool {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().any(|sent| sent == challenge)
    }

    pub(super) fn insert(&self, challenge: &[u8]) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() == CHALLENGES_MAX {
            log.pop_front();
        }
        log.push_back(challenge.to_vec());
    }

    pub(super) fn remove(&self, challenge: &[u8]) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.retain(|sent| sent != challenge);
    }
}

impl fmt::Debug for ChallengeLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChallengeLog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::login::text::{emit_hex, parse_binary};

    const VECTORS: [(ChapAlgorithm, &str); 4] = [
        (ChapAlgorithm::Md5, "0x0fbee2a235349701655e644832d106bf"),
        (
            ChapAlgorithm::Sha1,
            "0x5617a555f0045171364ed82310b9c08c4d48faeb",
        ),
        (
            ChapAlgorithm::Sha256,
            "0xd8c3aedd13f3e0017b09becc2da9c74a6d001ab22424256ad456063e668f5d14",
        ),
        (
            ChapAlgorithm::Sha3_256,
            "0x972a2f638a858f5d97206e79fdf525a79b427550f3b79af445c6664fea05b508",
        ),
    ];

    /// RFC 1994 4.1: hash of identifier, secret, challenge; vectors computed with another library.
    #[test]
    fn responses_match_known_vectors() {
        let secret = Secret::new(*b"0123456789abcdef");
        let challenge = parse_binary("0bAAECAwQFBgcICQoLDA0ODw==", 1024).unwrap();
        for (algorithm, want) in VECTORS {
            let response = algorithm.response(0x2a, &secret, &challenge);
            assert_eq!(emit_hex(response.as_bytes()), want, "{algorithm}");
            assert_eq!(response.as_bytes().len(), algorithm.response_bytes());
            assert!(response.matches(&parse_binary(want, 1024).unwrap()));
            assert!(!response.matches(&response.as_bytes()[1..]));
            assert!(!response.matches(&[]));
            let mut wrong = response.as_bytes().to_vec();
            wrong[0] ^= 1;
            assert!(!response.matches(&wrong));
        }
    }

    #[test]
    fn a_challenge_is_hashed_whole_up_to_1024_bytes() {
        // An initiator that hashed only the first 255 bytes could not log in where challenges are long.
        let secret = Secret::new(*b"0123456789abcdef");
        let long = vec![7; 1024];
        for algorithm in ChapAlgorithm::STRONGEST_FIRST {
            let whole = algorithm.response(1, &secret, &long);
            assert!(!whole.matches(algorithm.response(1, &secret, &long[..255]).as_bytes()));
        }
    }

    #[test]
    fn numbers_round_trip_and_others_are_unknown() {
        for algorithm in ChapAlgorithm::DEFAULT_ORDER {
            let number = u64::from(algorithm.number());
            assert_eq!(ChapAlgorithm::from_number(number), Some(algorithm));
        }
        assert_eq!(ChapAlgorithm::from_number(4), None);
        assert_eq!(ChapAlgorithm::from_number(9), None);
        assert_eq!(ChapAlgorithm::from_number(5 + (1 << 32)), None);
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = Secret::new("hunter2hunter2");
        let response = ChapAlgorithm::Md5.response(0, &secret, b"c");
        let text = format!("{secret:?} {response:?}");
        assert_eq!(text, "Secret ChapResponse");
    }

    #[test]
    fn secrets_compare_by_bytes() {
        assert_eq!(Secret::new("a"), Secret::new(*b"a"));
        assert_ne!(Secret::new("a"), Secret::new("a "));
        assert_ne!(Secret::new(""), Secret::new("a"));
    }

    #[test]
    fn challenges_are_fresh() {
        let (a, b) = (Challenge::random().unwrap(), Challenge::random().unwrap());
        assert_eq!(a.bytes.len(), CHALLENGE_BYTES);
        assert_ne!(a.bytes, b.bytes);
    }

    #[test]
    fn the_log_is_bounded_and_forgets() {
        let log = ChallengeLog::new();
        for i in 0..=CHALLENGES_MAX {
            log.insert(&i.to_be_bytes());
        }
        assert!(!log.contains(&0usize.to_be_bytes()));
        assert!(log.contains(&1usize.to_be_bytes()));
        log.remove(&1usize.to_be_bytes());
        assert!(!log.contains(&1usize.to_be_bytes()));
    }
}
