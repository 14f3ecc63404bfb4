//! Claims that give more listeners than their caller has room for.

#![cfg(test)]

#[path = "../../client/tests/support/mod.rs"]
mod support;

use std::ffi::CString;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;

use bindonce_capi::{
    BINDONCE_NO_ROOM, bindonce_claim, bindonce_claim_all, bindonce_free, bindonce_join,
};
use support::Broker;

#[test]
fn what_has_no_room_is_not_bound() {
    let broker = Broker::start();
    let socket = CString::new(broker.socket().as_os_str().as_bytes()).expect("a path");
    let (one, range) = (c"web=127.0.0.1:0", c"127.0.0.1:20000-20001");
    let claims = [one.as_ptr(), range.as_ptr()];
    let (mut generation, mut fds) = (ptr::null_mut(), [-1; 2]);
    // SAFETY: strings, and room for a pointer.
    let joined = unsafe { bindonce_join(socket.as_ptr(), c"edge".as_ptr(), &raw mut generation) };
    assert_eq!(joined, 0);
    // SAFETY: a handle, two strings, and room for two numbers.
    let found = unsafe {
        bindonce_claim_all(generation, claims.as_ptr(), claims.len(), fds.as_mut_ptr(), fds.len())
    };
    assert_eq!(found, BINDONCE_NO_ROOM);
    // SAFETY: a handle, a string, and room for a number.
    let found = unsafe { bindonce_claim(generation, range.as_ptr(), fds.as_mut_ptr()) };
    assert_eq!((found, fds), (BINDONCE_NO_ROOM, [-1; 2]));

    let mut client = bindonce::Client::connect(broker.socket()).expect("connect");
    assert!(client.list().expect("list").listeners.is_empty());
    // SAFETY: as above.
    let found = unsafe { bindonce_claim(generation, one.as_ptr(), fds.as_mut_ptr()) };
    assert_eq!(found, 0);
    // SAFETY: a new descriptor, which is this process's.
    drop(unsafe { OwnedFd::from_raw_fd(fds[0]) });
    let listeners = client.list().expect("list").listeners;
    assert_eq!(listeners.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["web"]);
    // SAFETY: a handle, which is not used any more.
    unsafe { bindonce_free(generation) };
}
