//! A plain client of the wire protocol, for tests that look at the bytes.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::DEADLINE;

/// An open connection to a broker.
pub(crate) struct Wire {
    stream: UnixStream,
    buffer: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    next: u64,
}

impl Wire {
    /// Connects. None if no process listens there.
    pub(crate) fn try_connect(path: &Path) -> Option<Self> {
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        stream.set_write_timeout(Some(DEADLINE)).ok()?;
        Some(Self { stream, buffer: Vec::new(), descriptors: Vec::new(), next: 1 })
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("writing to the broker");
    }

    /// Sends bytes with descriptors on the first of them.
    #[track_caller]
    pub(crate) fn send_with(&mut self, bytes: &[u8], fds: &[OwnedFd]) {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let sent = bindonce_fd::send(&self.stream, bytes, &fds);
        assert_eq!(sent.expect("writing to the broker"), bytes.len());
    }

    /// Signals the end of requests.
    pub(crate) fn close_write(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
    }

    /// Reads one message with `recvmsg`: its bytes, and the number of descriptors with it. None at
    /// the end of the stream.
    #[track_caller]
    pub(crate) fn message(&mut self) -> Option<(Vec<u8>, usize)> {
        let mut chunk = [0; 65536];
        let before = self.descriptors.len();
        let count = bindonce_fd::recv(self.stream.as_fd(), &mut chunk, &mut self.descriptors)
            .unwrap_or_else(|error| panic!("reading from the broker: {error}"));
        (count > 0).then(|| (chunk[..count].to_vec(), self.descriptors.len() - before))
    }

    /// The next reply line as JSON.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Value {
        loop {
            let start = self.buffer.iter().position(|byte| !byte.is_ascii_whitespace());
            self.buffer.drain(..start.unwrap_or(self.buffer.len()));
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap_or_else(|error| {
                    panic!("not JSON ({error}): {}", String::from_utf8_lossy(&line))
                });
            }
            let (bytes, _) = self.message().expect("the broker closed the connection");
            self.buffer.extend(bytes);
        }
    }

    /// Whether the broker sends nothing for a moment.
    pub(crate) fn is_quiet(&mut self) -> bool {
        use std::io::Read;
        self.stream.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let read = self.stream.read(&mut [0]);
        self.stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        self.buffer.is_empty()
            && read.is_err_and(|e| matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// Takes the received descriptors, waiting until there are `count`.
    #[track_caller]
    pub(crate) fn take(&mut self, count: usize) -> Vec<OwnedFd> {
        while self.descriptors.len() < count {
            let (bytes, _) = self.message().expect("the broker closed the connection");
            self.buffer.extend(bytes);
        }
        self.descriptors.drain(..count).collect()
    }

    /// Sends a request and returns its whole reply.
    #[track_caller]
    pub(crate) fn request(&mut self, method: &str, params: &Value) -> Value {
        let id = self.next;
        self.next += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(request.to_string().as_bytes());
        let reply = self.reply();
        assert_eq!(reply["id"], id, "{reply}");
        assert_eq!(reply["jsonrpc"], "2.0", "{reply}");
        reply
    }

    /// Sends a request that must succeed; returns its result.
    #[track_caller]
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Value {
        let mut reply = self.request(method, params);
        assert!(reply.get("error").is_none(), "{method} {params}: {reply}");
        reply["result"].take()
    }

    /// Sends a request that must fail; returns its error object.
    #[track_caller]
    pub(crate) fn error(&mut self, method: &str, params: &Value) -> Value {
        let mut reply = self.request(method, params);
        assert!(reply["error"]["message"].is_string(), "{method} {params}: {reply}");
        reply["error"].take()
    }

    /// Binds listeners given as text; returns the result's entries and the descriptors.
    #[track_caller]
    pub(crate) fn bind(&mut self, listeners: &[&str]) -> (Vec<Value>, Vec<OwnedFd>) {
        let params: Vec<_> = listeners.iter().map(|text| json!({"listen": text})).collect();
        let mut result = self.call("bind", &Value::Array(params));
        let Value::Array(entries) = result["listeners"].take() else { panic!("{result}") };
        let descriptors = self.take(entries.len());
        (entries, descriptors)
    }
}
