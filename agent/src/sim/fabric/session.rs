//! Who is logged in.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::world::random;

/// Sessions at a time; one more ends the one that was silent for longest.
const SESSIONS_MAX: usize = 10_000;

/// Keys of sessions. A session slides: each request prolongs it.
#[derive(Debug)]
pub(super) struct Sessions {
    lifetime: Duration,
    /// When a key was last used.
    used: HashMap<String, Instant>,
}

impl Sessions {
    pub(super) fn new(lifetime: Duration) -> Self {
        Self {
            lifetime,
            used: HashMap::new(),
        }
    }

    /// A new session; gives its key, 32 hexadecimal digits.
    pub(super) fn begin(&mut self, now: Instant) -> String {
        let lifetime = self.lifetime;
        if self.used.len() >= SESSIONS_MAX {
            self.used.retain(|_, at| now.duration_since(*at) < lifetime);
        }
        if self.used.len() >= SESSIONS_MAX {
            let oldest = self.used.iter().min_by_key(|(_, at)| **at);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                self.used.remove(&key);
            }
        }
        let key = format!("{:032x}", u128::from_be_bytes(random()));
        self.used.insert(key.clone(), now);
        key
    }

    /// Whether the key is of a session, which goes on then.
    pub(super) fn touch(&mut self, key: &str, now: Instant) -> bool {
        match self.used.get_mut(key) {
            Some(at) if now.duration_since(*at) < self.lifetime => {
                *at = now;
                true
            }
            Some(_) => {
                self.used.remove(key);
                false
            }
            None => false,
        }
    }

    /// Ends one session.
    pub(super) fn end(&mut self, key: &str) {
        self.used.remove(key);
    }

    /// Ends all sessions; says how many there were.
    pub(super) fn end_all(&mut self) -> usize {
        let count = self.used.len();
        self.used.clear();
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_slide_and_end() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut sessions = Sessions::new(Duration::from_secs(10));
        let key = sessions.begin(at(0));
        assert!(key.len() == 32 && key.chars().all(|c| c.is_ascii_hexdigit()));
        assert!(sessions.touch(&key, at(9)) && sessions.touch(&key, at(18)));
        assert!(!sessions.touch(&key, at(28)) && !sessions.touch(&key, at(28)));
        let key = sessions.begin(at(30));
        sessions.end(&key);
        assert!(!sessions.touch(&key, at(30)) && !sessions.touch("", at(30)));
        for second in 0..=SESSIONS_MAX as u64 {
            sessions.begin(at(30) + Duration::from_micros(second));
        }
        assert_eq!(sessions.end_all(), SESSIONS_MAX);
    }
}
