//! The library for C: one generation of a service, as a handle.
//!
//! This is [`bindonce::Generation`], whose waits a program makes by itself in poll(2) or epoll(7). The header,
//! `include/bindonce.h`, is made from this file by cbindgen, and its words are those of the functions here.
//!
//! There is `unsafe` here because pointers come from C: that they are what the header
//! asks for is the caller's promise.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsFd as _, AsRawFd as _, IntoRawFd as _};
use std::path::PathBuf;
use std::ptr;
use std::time::{Duration, Instant};

use bindonce::{Claim, Error, Lease, Name, Stopped, default_socket};

/// An argument is NULL, no UTF-8, or no name of a service.
pub const BINDONCE_INVALID: c_int = -1;
/// No broker answers at the path.
pub const BINDONCE_NO_BROKER: c_int = -2;
/// It was not done in time. The call may be made again.
pub const BINDONCE_TIMED_OUT: c_int = -3;
/// The connection to the broker was lost during the call, or is of no use. The call may be made again.
pub const BINDONCE_LOST: c_int = -4;
/// The broker has refused: bindonce_refusal() gives its code (docs/protocol.md).
pub const BINDONCE_REFUSED: c_int = -5;
/// A newer generation is ready or serves. This process must not accept: it ends.
pub const BINDONCE_SUPERSEDED: c_int = -6;
/// The claims give more listeners than there is room for. None was bound or given.
pub const BINDONCE_NO_ROOM: c_int = -7;
/// Without a broker: this process cannot bind the address itself, and no socket for it was passed.
pub const BINDONCE_CANNOT_BIND: c_int = -8;

/// Nothing has changed.
pub const BINDONCE_NOTHING: c_int = 0;
/// This generation may accept from now on.
pub const BINDONCE_SERVE: c_int = 1;
/// A newer generation is ready: stop accepting, close every listener, and call bindonce_stopped().
pub const BINDONCE_RETIRE: c_int = 2;

/// This generation accepts no more. It finishes what is connected, and ends.
pub const BINDONCE_RETIRED: c_int = 0;
/// The newer generation has ended before it was let in: claim the listeners again, the same sockets, and serve on.
pub const BINDONCE_RECALLED: c_int = 1;

/// This process as one generation of a service.
#[derive(Debug)]
pub struct Generation {
    inner: bindonce::Generation,
    /// It has said that it is ready, and was not told yet that it may accept.
    waits: bool,
}

/// The last error of a thread.
#[derive(Default)]
struct Failure {
    text: CString,
    hint: Option<CString>,
    refusal: c_int,
}

thread_local! {
    static FAILURE: RefCell<Failure> = RefCell::default();
}

/// The version of this library, as in "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn bindonce_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What went wrong in the last call of this thread that failed, for a person. Valid until the next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn bindonce_error() -> *const c_char {
    FAILURE.with_borrow(|failure| failure.text.as_ptr())
}

/// What a person can do about it, or NULL. Valid until the next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn bindonce_hint() -> *const c_char {
    FAILURE.with_borrow(|failure| failure.hint.as_ref().map_or(ptr::null(), |hint| hint.as_ptr()))
}

/// The broker's code of the last BINDONCE_REFUSED of this thread (docs/protocol.md).
#[unsafe(no_mangle)]
pub extern "C" fn bindonce_refusal() -> c_int {
    FAILURE.with_borrow(|failure| failure.refusal)
}

/// Becomes the next generation of a service, at the broker's socket; where that is NULL, at $BINDONCE_SOCKET or the
/// default path. Gives the handle in *generation.
///
/// # Safety
/// `socket` is NULL or a string, `service` a string, and `generation` has room for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_join(
    socket: *const c_char,
    service: *const c_char,
    generation: *mut *mut Generation,
) -> c_int {
    // SAFETY: the caller's promise.
    let socket = match unsafe { optional(socket) } {
        Ok(socket) => socket.map_or_else(default_socket, PathBuf::from),
        Err(why) => return invalid(&format!("socket {why}")),
    };
    // SAFETY: as above.
    unsafe { begin(service, generation, |service| bindonce::Generation::join_at(&socket, service)) }
}

/// As bindonce_join() without a path, for a program that runs in any way: takes the sockets that its starter has passed
/// (LISTEN_FDS: systemd, `bindonce run`); else joins at the broker; else, where there is none and $BINDONCE_SOCKET names
/// none, binds by itself. What was passed is claimed by name or by address. bindonce_ready() also says READY=1 to
/// $NOTIFY_SOCKET. Without a broker BINDONCE_RETIRE never comes: a signal (SIGTERM) tells the program to close its listeners
/// and to call bindonce_stopped().
///
/// # Safety
/// As of bindonce_join(). Only the first call of a process finds what was passed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_join_or_bind(
    service: *const c_char,
    generation: *mut *mut Generation,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { begin(service, generation, bindonce::Generation::join_or_bind) }
}

/// Joins, in the way that is wanted.
///
/// # Safety
/// As of bindonce_join().
unsafe fn begin(
    service: *const c_char,
    generation: *mut *mut Generation,
    join: impl FnOnce(&Name) -> Result<bindonce::Generation, Error>,
) -> c_int {
    if generation.is_null() {
        return invalid("generation is NULL");
    }
    // SAFETY: the caller's promise.
    let service = match unsafe { text(service) }.map(str::parse) {
        Ok(Ok(service)) => service,
        Ok(Err(error)) => return invalid(&format!("service: {error}")),
        Err(why) => return invalid(&format!("service {why}")),
    };
    match join(&service) {
        Ok(inner) => {
            let handle = Box::into_raw(Box::new(Generation { inner, waits: false }));
            // SAFETY: the caller's promise; it is not NULL.
            unsafe { generation.write(handle) };
            0
        }
        Err(error) => failed(&error),
    }
}

/// The number of the generation, larger than that of any before; 0 for NULL, and where nobody gave one.
///
/// # Safety
/// `generation` is NULL or a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_number(generation: *const Generation) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { generation.as_ref() }.map_or(0, |generation| generation.inner.number())
}

/// Claims one listener, "[NAME=]ADDR[,OPTION]...", as in "web=0.0.0.0:80,backlog=4096", "unix@/run/app.sock" or
/// "udp4@:53"; BINDONCE_NO_ROOM for a range of ports. *fd is the caller's: non-blocking unless the claim says
/// otherwise, and close-on-exec. Never call shutdown(2) on it, nor change its blocking mode: it is shared.
///
/// # Safety
/// `generation` is a handle, `claim` a string, and `fd` has room for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_claim(
    generation: *mut Generation,
    claim: *const c_char,
    fd: *mut c_int,
) -> c_int {
    // SAFETY: the caller's promise.
    let found = unsafe { bindonce_claim_all(generation, &raw const claim, 1, fd, 1) };
    found.min(0)
}

/// Claims listeners, all or none, and gives how many: a range of ports is several. Their descriptors, in the order of
/// the claims, are the caller's, as those of bindonce_claim(). With too little room it claims none.
///
/// # Safety
/// `generation` is a handle, `claims` has `count` strings, and `fds` has room for `room` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_claim_all(
    generation: *mut Generation,
    claims: *const *const c_char,
    count: usize,
    fds: *mut c_int,
    room: usize,
) -> c_int {
    if claims.is_null() || fds.is_null() {
        return invalid("claims or fds is NULL");
    }
    // SAFETY: the caller's promise; NULL was looked for.
    let claims = unsafe { std::slice::from_raw_parts(claims, count) };
    // SAFETY: as above.
    let claims = claims.iter().map(|claim| unsafe { text(*claim) }.map(Claim::listen));
    let claims: Vec<Claim> = match claims.collect() {
        Ok(claims) => claims,
        Err(why) => return invalid(&format!("a claim {why}")),
    };
    // SAFETY: the caller's promise.
    let Some(generation) = (unsafe { generation.as_mut() }) else {
        return invalid("generation is NULL");
    };
    let no_room = |found: usize| {
        let text = format!("the claims give {found} listeners, and there is room for {room}");
        fail(BINDONCE_NO_ROOM, &text, None, 0)
    };
    // Before the claim: what it binds stays when this generation serves.
    let wanted: usize = claims.iter().map(Claim::count).sum();
    if wanted > room {
        return no_room(wanted);
    }
    let leases = match generation.inner.claim(&claims) {
        Ok(leases) => leases,
        Err(error) => return failed(&error),
    };
    // A newer broker may find more in a claim than this library.
    let found = match c_int::try_from(leases.len()) {
        Ok(found) if leases.len() <= room => found,
        _ => return no_room(leases.len()),
    };
    for (index, fd) in leases.into_iter().map(Lease::into_fd).enumerate() {
        // SAFETY: the caller's promise; `index` is below `room`.
        unsafe { fds.add(index).write(fd.into_raw_fd()) };
    }
    found
}

/// Says that this generation is ready, and waits until it may accept, for as long as that takes where timeout_ms is
/// negative. With 0 it waits only for the broker's reply: where an older generation has to stop first, it gives
/// BINDONCE_TIMED_OUT, and bindonce_next() says BINDONCE_SERVE later.
///
/// # Safety
/// `generation` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_ready(generation: *mut Generation, timeout_ms: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let Some(generation) = (unsafe { generation.as_mut() }) else {
        return invalid("generation is NULL");
    };
    let wait = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    generation.waits = true;
    match generation.inner.ready(wait.map(|wait| Instant::now() + wait)) {
        Ok(()) => {
            generation.waits = false;
            0
        }
        Err(error) => failed(&error),
    }
}

/// A descriptor that is readable when bindonce_next() has something to do, the same one for the life of the handle. It is
/// the library's: do not close it.
///
/// # Safety
/// `generation` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_fd(generation: *const Generation) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { generation.as_ref() } {
        Some(generation) => generation.inner.as_fd().as_raw_fd(),
        None => invalid("generation is NULL"),
    }
}

/// What has happened: BINDONCE_NOTHING, BINDONCE_SERVE or BINDONCE_RETIRE. Does not wait, but that an attempt to
/// reach the broker that follows a lost one may take a second for connecting and for each request (to take back 253
/// listeners, or to join). An error here ends nothing: the process serves on, and the next call tries again.
///
/// # Safety
/// `generation` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_next(generation: *mut Generation) -> c_int {
    // SAFETY: the caller's promise.
    let Some(generation) = (unsafe { generation.as_mut() }) else {
        return invalid("generation is NULL");
    };
    let inner = &mut generation.inner;
    if generation.waits {
        match inner.may_serve() {
            Ok(true) => {
                generation.waits = false;
                return BINDONCE_SERVE;
            }
            Ok(false) => {}
            Err(error) => return failed(&error),
        }
    }
    match inner.has_retired() {
        Ok(true) => BINDONCE_RETIRE,
        Ok(false) => BINDONCE_NOTHING,
        Err(error) => failed(&error),
    }
}

/// Says that this process accepts no more: it has closed every listener. Gives BINDONCE_RETIRED or BINDONCE_RECALLED.
/// The newer generation waits for this for 5 seconds, unless the broker is told otherwise.
///
/// # Safety
/// `generation` is a handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_stopped(generation: *mut Generation) -> c_int {
    // SAFETY: the caller's promise.
    let Some(generation) = (unsafe { generation.as_mut() }) else {
        return invalid("generation is NULL");
    };
    match generation.inner.stopped() {
        Ok(Stopped::Retired) => BINDONCE_RETIRED,
        Ok(Stopped::Recalled) => BINDONCE_RECALLED,
        Err(error) => failed(&error),
    }
}

/// What was connected is finished. The handle is gone.
///
/// # Safety
/// `generation` is NULL or a handle, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_drained(generation: *mut Generation) {
    if !generation.is_null() {
        // SAFETY: the caller's promise: it came from bindonce_join() and is given back once.
        unsafe { Box::from_raw(generation) }.inner.drained();
    }
}

/// Gives the handle up. To the broker that is the end of the generation; NULL is nothing.
///
/// # Safety
/// As of bindonce_drained().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bindonce_free(generation: *mut Generation) {
    // SAFETY: the caller's promise.
    unsafe { bindonce_drained(generation) };
}

/// A string, or what is wrong with it.
///
/// # Safety
/// It is NULL or ends with 0, and lives as long as what is given.
unsafe fn text<'a>(string: *const c_char) -> Result<&'a str, &'static str> {
    if string.is_null() {
        return Err("is NULL");
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_str().map_err(|_| "is not UTF-8")
}

/// As [`text`], where NULL is none.
///
/// # Safety
/// As [`text`].
unsafe fn optional<'a>(string: *const c_char) -> Result<Option<&'a str>, &'static str> {
    // SAFETY: the caller's promise.
    if string.is_null() { Ok(None) } else { unsafe { text(string) }.map(Some) }
}

fn invalid(what: &str) -> c_int {
    fail(BINDONCE_INVALID, what, None, 0)
}

fn failed(error: &Error) -> c_int {
    let code = match error {
        Error::Connect { .. } => BINDONCE_NO_BROKER,
        Error::Bind { .. } => BINDONCE_CANNOT_BIND,
        Error::TimedOut { .. } => BINDONCE_TIMED_OUT,
        Error::Refused(_) => BINDONCE_REFUSED,
        Error::Superseded { .. } => BINDONCE_SUPERSEDED,
        _ => BINDONCE_LOST,
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let refusal = error.refusal().and_then(|refusal| c_int::try_from(refusal.code.0).ok());
    fail(code, &text, error.hint().as_deref(), refusal.unwrap_or_default())
}

fn fail(code: c_int, text: &str, hint: Option<&str>, refusal: c_int) -> c_int {
    // A broker may say anything, also a 0.
    let string = |text: &str| CString::new(text.replace('\0', "")).unwrap_or_default();
    let hint = hint.map(string);
    FAILURE.set(Failure { text: string(text), hint, refusal });
    code
}
