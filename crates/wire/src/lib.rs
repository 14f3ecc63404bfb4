//! The wire protocol of [bindonce](https://github.com/bindonce/bindonce), without a socket: which
//! bytes make a message, and what a message means.
//!
//! bindonce is a broker for listening sockets on Linux: a client asks for an address over a UNIX
//! socket, by JSON-RPC 2.0, and gets the descriptor of a socket that the broker has bound. **To
//! write a client, use the crate [`bindonce`](https://docs.rs/bindonce)**, which does all of this.
//! Use this crate for a client of another kind, a server, a proxy or a test of the protocol.
//! docs/protocol.md describes the protocol for other languages.
//!
//! | you want | look at |
//! |---|---|
//! | to cut a stream of bytes into requests | [`framing`] |
//! | to read and write requests, replies and notifications | [`message`] |
//! | to know which method a request calls | [`call`] |
//! | parameters and results of the methods | [`params`], [`result`], [`event`] |
//! | error codes | [`error`] |
//! | what a broker leaves to its successor | [`manifest`] |
//!
//! # Example
//! A server's side of one request. Bytes come in as slices of any size, decisions go out as values:
//!
//! ```
//! use bindonce_wire::MAX_REQUEST;
//! use bindonce_wire::call::Call;
//! use bindonce_wire::framing::{Frame, Scanner};
//! use bindonce_wire::message::{self, Request};
//!
//! let mut scanner = Scanner::new(MAX_REQUEST);
//! let first: &[u8] = br#"{"jsonrpc":"2.0","id":1,"method":"bi"#;
//! assert_eq!(scanner.next(&mut &first[..]), None); // More must come.
//! let rest: &[u8] = br#"nd","params":[{"listen":"web=127.0.0.1:8080"}]}"#;
//! let Some(Frame::Request(frame)) = scanner.next(&mut &rest[..]) else { panic!("no request") };
//!
//! let request = Request::decode(&frame).expect("a request");
//! match Call::decode(&request).expect("a method of a broker") {
//!     Call::Bind(wanted) => assert_eq!(wanted.len(), 1),
//!     other => panic!("{other:?}"),
//! }
//!
//! // The reply to a method without a result; that of `bind` has descriptors beside it.
//! let reply = message::encode_result(&request.id, &true)?;
//! assert_eq!(reply, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":true}\n");
//! # Ok::<(), serde_json::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod call;
mod elements;
pub mod error;
pub mod event;
pub mod framing;
mod line;
pub mod manifest;
pub mod message;
mod omitted;
pub mod params;
pub mod result;

pub use error::{ErrorCode, RpcError};

/// The longest request, in bytes, that a server reads. A longer one is answered with
/// [`ErrorCode::TOO_LARGE`].
pub const MAX_REQUEST: usize = 1 << 20;
