//! Turns the registry's answers into wire messages.

use std::sync::Arc;

use bindonce_core::listener::Listener;
use bindonce_core::registry::{Holder, Refusal};
use bindonce_sys::Errno;
use bindonce_wire::message::BindReply;
use bindonce_wire::result::Bound;
use bindonce_wire::{ErrorCode, RpcError};

use crate::inquiry::{Inquiry, Question};
use crate::listeners::{Denied, Held};

/// A listener as `bind` and `store` hand it out.
pub(crate) fn bound(held: &Held, created: bool) -> Bound {
    let asked = &held.listener.address;
    let address = asked.to_string();
    let is_unnamed = held.listener.name.is_none() && held.listener.is_named_by_address();
    let name = if is_unnamed { address.clone() } else { held.listener.label() };
    let bound = &held.opened.bound;
    let bound = if bound == asked { address.clone() } else { bound.to_string() };
    Bound { name, address, bound, created, inode: held.opened.inode }
}

/// Adds a listener to a reply. The text for an existing listener is cached, because each reload
/// asks for it again.
pub(crate) fn push(reply: &mut BindReply, held: &Held, created: bool) -> serde_json::Result<()> {
    if created {
        return reply.add(&bound(held, created));
    }
    let mut told = held.opened.handle.reply_text.borrow_mut();
    match &*told {
        Some((edition, text)) if *edition == held.edition() => reply.push(text),
        _ => {
            let text = bound(held, created).encode()?;
            reply.push(&text);
            *told = Some((held.edition(), text.into()));
        }
    }
    Ok(())
}

/// The error for a refusal by the registry.
pub(crate) fn refused(refusal: &Refusal) -> RpcError {
    let code = match refusal {
        Refusal::Options { .. }
        | Refusal::OptionsInRequest { .. }
        | Refusal::Name { .. }
        | Refusal::NameInRequest { .. } => ErrorCode::CONFLICT,
        Refusal::Overlap { .. }
        | Refusal::OverlapInRequest { .. }
        | Refusal::OtherService { .. } => ErrorCode::OVERLAP,
        Refusal::NotHeld(..) => ErrorCode::DENIED,
        Refusal::NotFound { .. } => ErrorCode::NOT_FOUND,
        Refusal::InUse { .. } => ErrorCode::IN_USE,
        Refusal::TooMany { .. } | Refusal::TooManyOverlaps { .. } => ErrorCode::LIMIT,
        _ => ErrorCode::INTERNAL,
    };
    let mut error = RpcError::new(code, refusal.to_string()).with_hint(refusal.hint());
    if let Some(address) = refusal.address() {
        error = error.with("address", address.to_string());
    }
    match refusal {
        Refusal::InUse { holders, .. } => {
            let pids: Vec<u32> = holders.iter().map(Holder::pid).collect();
            error.with("pids", pids)
        }
        Refusal::OtherService { holder, .. } => error.with("pids", [holder.pid()]),
        _ => error,
    }
}

/// The error for a failed claim. If another process has the address, the error names that process,
/// provided the inquiry finds it in time.
pub(crate) async fn claim_failed(inquiry: &Inquiry, failure: Denied) -> RpcError {
    match failure {
        Denied::NotAllowed(denial) => denial,
        Denied::Refused(refusal) => refused(&refusal),
        Denied::Limit { need, open, limit } => limit_reached(need, open, limit),
        Denied::TooMany { limit, most } => {
            let what = if limit == "leases_per_user" { "leases" } else { "listeners" };
            let message = format!(
                "more than the {most} {what} that the broker's limit `{limit}` allows; nothing was \
                 bound"
            );
            RpcError::new(ErrorCode::LIMIT, message).with("limit", most).with_hint(format!(
                "release some, or raise {limit} in [limits] of its configuration"
            ))
        }
        Denied::Abandoned => RpcError::new(ErrorCode::INTERNAL, "the claim was given up"),
        Denied::NotOpened(listener, error) => not_opened(inquiry, listener, error).await,
        Denied::NotChanged(listener, error) => not_changed(&listener, &error),
    }
}

async fn not_opened(
    inquiry: &Inquiry,
    listener: Arc<Listener>,
    error: bindonce_sys::Error,
) -> RpcError {
    if error.is_descriptor_limit() {
        let answer = RpcError::new(ErrorCode::LIMIT, error.to_string());
        return answer.with("address", listener.address.to_string()).with_hint(raise_limit());
    }
    let errno = error.errno();
    let mut answer = RpcError::new(ErrorCode::BIND_FAILED, error.to_string())
        .with("address", listener.address.to_string());
    if let Some(errno) = errno {
        answer = answer.with("errno", errno);
    }
    let mut hint = error.hint();
    if errno == Some(Errno::EADDRINUSE as i32)
        && let Some(who) = inquiry.ask(Question::InTheWay(listener)).await
    {
        answer.message = format!("{}, held by {who}", answer.message);
        hint = Some(in_the_way_hint(&who));
    }
    match hint {
        Some(hint) => answer.with_hint(hint),
        None => answer,
    }
}

/// Hint about the processes that have an address, as an inquiry names them. A haproxy can be
/// adopted; another broker must release the address itself.
fn in_the_way_hint(who: &str) -> String {
    let named = |name: &str| {
        who.split(", ").find_map(|one| {
            let (pid, command) = one.strip_prefix("pid ")?.split_once(" (")?;
            let is_it = command.trim_end_matches(')').rsplit('/').next() == Some(name);
            is_it.then(|| pid.parse::<u32>().ok()).flatten()
        })
    };
    match (named("bindonce"), named("haproxy")) {
        (Some(pid), _) => format!(
            "another broker has it: `ps -o user,args -p {pid}` shows whose, and its --socket; use that one, or free the address \
             there by `bindonce release`, as that user"
        ),
        (None, Some(pid)) => format!(
            "`bindonce adopt --pid {pid}`, as root, takes its sockets over without a gap, and says what to do next; or stop it \
             and start this again"
        ),
        (None, None) => {
            "stop that process, or have it started through bindonce so that it shares the listener"
                .to_owned()
        }
    }
}

fn not_changed(listener: &Listener, error: &bindonce_sys::Error) -> RpcError {
    let message =
        format!("the options of {} cannot be changed in place: {error}", listener.label());
    let mut answer = RpcError::new(ErrorCode::BIND_FAILED, message)
        .with("address", listener.address.to_string())
        .with_hint(error.hint().unwrap_or_else(|| {
            "a new socket is needed: stop the service that uses this one, release it (`bindonce \
             release`), and start again"
                .to_owned()
        }));
    if let Some(errno) = error.errno() {
        answer = answer.with("errno", errno);
    }
    answer
}

fn limit_reached(need: usize, open: u64, limit: u64) -> RpcError {
    let message = format!(
        "{need} new listeners need {need} descriptors, but the broker has {open} open of the \
         {limit} that RLIMIT_NOFILE allows it; nothing was bound"
    );
    RpcError::new(ErrorCode::LIMIT, message)
        .with("limit", limit)
        .with("open", open)
        .with("need", need)
        .with_hint(raise_limit())
}

/// Names the limit and how to raise it. The broker has already raised it to its hard limit.
fn raise_limit() -> String {
    let (limit, _) = bindonce_sys::limits::nofile();
    let pid = std::process::id();
    format!(
        "raise the hard limit of the broker (pid {pid}: {limit} open files) and start it again: LimitNOFILE= \
         in its systemd unit, `ulimit -Hn` in the shell that starts it, --ulimit nofile= for a container; \
         clients and generations that drain hold descriptors too, and `bindonce retire` ends the oldest \
         generation"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_haproxy_in_the_way_can_be_adopted() {
        let hint = in_the_way_hint("pid 7 (/usr/sbin/nginx), pid 12 (/usr/sbin/haproxy)");
        assert!(hint.starts_with("`bindonce adopt --pid 12`"), "{hint}");
        let hint = in_the_way_hint("pid 7 (bindonce), pid 12 (/usr/sbin/haproxy)");
        assert!(hint.contains("`ps -o user,args -p 7`"), "{hint}");
        for who in ["pid 7 (nginx)", "pid 7", "2 more", "pid 7 (haproxy-exporter)"] {
            assert!(in_the_way_hint(who).starts_with("stop that process"), "{who}");
        }
    }
}
