//! What a generation still does after it has stopped accepting.

use bindonce_haproxy::cli::Info;

/// What a generation has done on the connections that it has, since it stopped accepting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Since {
    /// Requests that have come.
    pub(crate) requests: u64,
    /// Bytes that it has sent.
    pub(crate) bytes: u64,
}

impl Since {
    /// Between two answers of haproxy.
    pub(crate) fn between(before: &Info, now: &Info) -> Self {
        Self {
            requests: now.requests.saturating_sub(before.requests),
            bytes: now.sent.saturating_sub(before.sent),
        }
    }

    /// Adds what has come.
    pub(crate) fn add(&mut self, more: Self) {
        self.requests += more.requests;
        self.bytes += more.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_between_two_answers_is_added() {
        let info = |requests, sent| Info { requests, sent, ..Info::default() };
        let mut since = Since::default();
        since.add(Since::between(&info(100, 5000), &info(112, 6000)));
        since.add(Since::between(&info(112, 6000), &info(112, 6000)));
        since.add(Since::between(&info(112, 6000), &info(113, 6001)));
        assert_eq!(since, Since { requests: 13, bytes: 1001 });
        // Another process has answered.
        assert_eq!(Since::between(&info(7, 7), &info(3, 3)), Since::default());
    }
}
