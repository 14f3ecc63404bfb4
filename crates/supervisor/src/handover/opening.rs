//! QUIC connections that an older generation has begun but not opened when the proof shows that it
//! takes no new ones.
//!
//! While paused, haproxy finishes the handshakes that it has begun and takes their requests. Once
//! told to stop, it closes a connection that has no request yet, and never answers one whose
//! handshake ends later. So the stop is sent only when no handshake has been under way for
//! [`GRACE`], or [`LIMIT`] has passed: a client may begin a handshake and never finish it.

use std::time::{Duration, Instant};

use bindonce_core::address::Address;
use bindonce_haproxy::cli::Quic;

use crate::generations::admin::{Admin, NoAnswer};
use crate::generations::generation::Generation;

/// From the last handshake until the older generation is told to stop. This is how long a client
/// may take from the end of its handshake to its first request; most send both at once.
const GRACE: Duration = Duration::from_millis(200);
/// How long handshakes may take in all. Only the clients that asked for the reload wait meanwhile.
pub(crate) const LIMIT: Duration = Duration::from_secs(1);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// With more connections than this they are not listed; each is a line of 170 bytes.
const LISTED: u64 = 10_000;

/// The admin connections of older generations that may have such connections.
pub(crate) struct Opening(Vec<Admin>);

impl Opening {
    pub(crate) fn of<'a>(older: impl Iterator<Item = &'a Generation>) -> Self {
        let has_quic = |generation: &&Generation| {
            generation.listeners.iter().any(|held| matches!(held.bound, Address::Quic(_)))
        };
        Self(older.filter(has_quic).filter_map(|generation| generation.cli.admin.clone()).collect())
    }

    /// Waits for the handshakes and the first requests, until `limit`.
    pub(crate) async fn settle(self, limit: Duration) {
        let begun = Instant::now();
        for admin in self.0 {
            let left = limit.saturating_sub(begun.elapsed());
            // A generation that does not answer in time is told to stop as it is.
            let _ = bindonce_sys::patience::timeout(left, settled(&admin, begun, limit)).await;
        }
    }
}

async fn settled(admin: &Admin, begun: Instant, limit: Duration) -> Result<(), NoAnswer> {
    if admin.info(limit).await?.connections > LISTED {
        tokio::time::sleep(GRACE).await;
        return Ok(());
    }
    let mut handshake = begun;
    loop {
        let asked = Instant::now();
        match Quic::read(&admin.ask("show quic", limit).await?) {
            Quic::None => return Ok(()),
            Quic::Handshake => handshake = asked,
            Quic::Open if handshake + GRACE <= asked => return Ok(()),
            Quic::Open => {}
        }
        // haproxy does nothing else while it writes a long answer.
        tokio::time::sleep(LOOK_AGAIN.max(asked.elapsed())).await;
    }
}
