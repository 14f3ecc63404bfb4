//! How a program reports readiness: by READY=1 (sd_notify(3)), by a check that succeeds, or by
//! surviving a delay. haproxy has its own ways.
//!
//! Each generation has its own socket for READY=1, and the kernel names the sender: only a process
//! of that generation is believed.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bindonce_core::event::Flood;
use bindonce_core::generation::GenerationId;
use bindonce_sys::process::Pidfd;
use bindonce_sys::spawn::Launch;
use bindonce_sys::tree;
use bindonce_sys::watch::Watch;

use crate::context::Context;
use crate::error::Error;
use crate::generations::generation::Generation;
use crate::generations::notifications::{LOOK_AGAIN, Notifications};
use crate::message::Message;
use crate::program::Readiness;

/// The pause between a failed check and the next: the first, which doubles, and the longest. Until
/// a check succeeds the new and the older generation both accept.
const CHECK_AGAIN: Duration = Duration::from_millis(10);
const CHECK_AGAIN_LAST: Duration = Duration::from_millis(100);

/// Begins to wait for a program to be ready.
pub(crate) fn await_ready(
    cx: &Context,
    generation: &mut Generation,
    notifications: Option<Notifications>,
) {
    let Some(program) = cx.settings.kind.program() else { return };
    let readiness = program.readiness.clone();
    let (cx, id, pid) = (cx.clone(), generation.id, generation.pid());
    let service = cx.settings.service.to_string();
    let task = crate::tasks::spawn(async move {
        let ready = match (readiness, notifications) {
            (Readiness::Notify | Readiness::Listen, Some(notifications)) => {
                notified_ready(id, pid, &notifications).await
            }
            (Readiness::Check(command), _) => {
                let environment = [
                    ("BINDONCE_SERVICE", service),
                    ("BINDONCE_GENERATION", id.0.to_string()),
                    ("BINDONCE_PID", pid.to_string()),
                ];
                checked(&command, &environment).await
            }
            (Readiness::Delay(delay), _) => {
                tokio::time::sleep(delay).await;
                Ok("it has lived for --ready-delay")
            }
            (Readiness::Notify | Readiness::Listen, None) => return,
        };
        match ready {
            Ok(how) => cx.send(Message::Ready(id, how)),
            Err(error) => {
                tracing::error!(
                    generation = id.0,
                    pid,
                    "cannot wait for the generation's readiness: {error}"
                );
            }
        }
    });
    generation.tasks.watch(task.abort_handle());
}

/// Waits until a process of the generation sends READY=1.
async fn notified_ready(
    id: GenerationId,
    pid: i32,
    notifications: &Notifications,
) -> Result<&'static str, Error> {
    let (begun, mut flood) = (Instant::now(), Flood::default());
    loop {
        let senders = notifications
            .ready()
            .await
            .map_err(Error::system("receive the program's notification"))?;
        if senders.iter().any(|sender| tree::has(pid, *sender)) {
            return Ok("it says so (READY=1)");
        }
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(left_out) = flood.on(now) {
            tracing::warn!(
                generation = id.0,
                pid,
                sender = senders.first(),
                left_out,
                "READY=1 ignored: its sender does not belong to this generation, or has ended"
            );
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Runs the check until it succeeds.
async fn checked(
    command: &OsStr,
    environment: &[(&'static str, String)],
) -> Result<&'static str, Error> {
    let mut wait = CHECK_AGAIN;
    loop {
        let mut launch = Launch::new("sh");
        launch.args = vec!["-c".into(), command.to_owned()];
        launch.env_remove = crate::broker::not_theirs();
        let environment = environment.iter();
        launch.env.extend(environment.map(|(name, value)| ((*name).into(), value.into())));
        launch.service = true;
        launch.stdout = Stdio::null();
        let check = Check(launch.start_aside(|_| {}).await?.pidfd);
        let ended = Watch::new(&check.0).map_err(Error::system("watch the check"))?;
        ended.readable().await.map_err(Error::system("wait for the check"))?;
        let exit = check.0.try_wait().map_err(Error::system("reap the check"))?;
        if exit.is_some_and(bindonce_sys::process::Exit::success) {
            return Ok("its check succeeds");
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(CHECK_AGAIN_LAST);
    }
}

/// A running check, killed when the task that waits for it is dropped.
struct Check(Pidfd);

impl Drop for Check {
    fn drop(&mut self) {
        if !self.0.has_ended() {
            tree::kill(self.0.pid());
        }
        self.0.kill_and_reap();
    }
}
