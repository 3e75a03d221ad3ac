//! What to do about a login status (RFC 7143 11.13.5).

use crate::error::LoginStatus;

/// What an initiator does next after a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextMove {
    /// The login goes on.
    Proceed,
    /// Log in from scratch at the given address; keep the original portal for the next time unless
    /// the move is permanent.
    Redirect {
        /// Whether to remember the new address.
        permanent: bool,
    },
    /// Trying again as is cannot help, and after a wrong secret may lock the account.
    GiveUp,
    /// Try again after a long pause: a target that restarts is not found for a while.
    RetrySlowly,
    /// Try again with growing pauses.
    BackOff,
    /// The session is gone at the target: log in with TSIH 0.
    NewSession,
    /// Log in with fewer connections in the session.
    FewerConnections,
}

impl LoginStatus {
    /// What to do next. Unknown details count as the general case of their class, unknown classes as
    /// fatal.
    #[must_use]
    pub const fn next_move(self) -> NextMove {
        match (self.class, self.detail) {
            (0, _) => NextMove::Proceed,
            (1, detail) => NextMove::Redirect {
                permanent: detail == 2,
            },
            (2, 3) => NextMove::RetrySlowly,
            (2, 6 | 8) => NextMove::FewerConnections,
            (2, 10) => NextMove::NewSession,
            (3, _) => NextMove::BackOff,
            _ => NextMove::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143 11.13.5: the table of classes and details.
    #[test]
    fn every_status_has_a_move() {
        use NextMove::*;
        for (code, want) in [
            (0x0000, Proceed),
            (0x0101, Redirect { permanent: false }),
            (0x0102, Redirect { permanent: true }),
            (0x0200, GiveUp),
            (0x0201, GiveUp),
            (0x0202, GiveUp),
            (0x0203, RetrySlowly),
            (0x0204, GiveUp),
            (0x0205, GiveUp),
            (0x0206, FewerConnections),
            (0x0207, GiveUp),
            (0x0208, FewerConnections),
            (0x0209, GiveUp),
            (0x020a, NewSession),
            (0x020b, GiveUp),
            (0x0300, BackOff),
            (0x0301, BackOff),
            (0x0302, BackOff),
            (0x03ff, BackOff),
            (0x02ff, GiveUp),
            (0x0400, GiveUp),
            (0xff00, GiveUp),
        ] {
            let [class, detail] = u16::to_be_bytes(code);
            assert_eq!(
                LoginStatus::new(class, detail).next_move(),
                want,
                "{code:04x}"
            );
        }
    }
}
