//! Waits for a descriptor, and for short exact times, in tokio.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Reports when a descriptor becomes readable. It has a duplicate of its own, so the descriptor may
/// be used and closed elsewhere.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches what `fd` refers to. Call it within a tokio runtime.
    ///
    /// # Errors
    /// Errors from fcntl(2) F_DUPFD_CLOEXEC and epoll_ctl(2).
    pub fn new(fd: &impl AsFd) -> io::Result<Self> {
        let copy = fd.as_fd().try_clone_to_owned()?;
        // SAFETY: `register_with_interest` wants `as_raw_fd` to name one descriptor that stays open
        // for as long as the AsyncFd lives. It is an OwnedFd that nothing but the AsyncFd can
        // reach: its number never changes and only its drop closes it.
        let watch = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) };
        Ok(Self(watch.map_err(|error| error.into_parts().1)?))
    }

    /// Waits until the descriptor has become readable since the previous call. Read until nothing
    /// is left before the next call.
    ///
    /// # Errors
    /// Only if the runtime is being shut down.
    pub async fn readable(&self) -> io::Result<()> {
        self.0.readable().await?.clear_ready();
        Ok(())
    }
}

/// A timer with a short, exact interval (timerfd_create(2)). tokio's own timers are rounded up to
/// whole milliseconds, which doubles an interval of one.
#[derive(Debug)]
pub struct Ticks {
    timer: OwnedFd,
    watch: Watch,
    interval: Timespec,
}

impl Ticks {
    /// Ticks at once, and then at every `interval`.
    ///
    /// # Errors
    /// Errors from timerfd_create(2), timerfd_settime(2) and [`Watch::new`].
    pub fn every(interval: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let interval = timespec(interval)?;
        let watch = Watch::new(&timer)?;
        let mut ticks = Self { timer, watch, interval };
        ticks.next_in(Duration::ZERO)?;
        Ok(ticks)
    }

    /// Schedules the next tick `delay` from now, and further ticks at every interval after it.
    ///
    /// # Errors
    /// Errors from timerfd_settime(2).
    pub fn next_in(&mut self, delay: Duration) -> io::Result<()> {
        // Zero would stop the timer.
        let it_value = timespec(delay.max(Duration::from_nanos(1)))?;
        let times = Itimerspec { it_interval: self.interval, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }

    /// Waits for the next tick. Missed ticks count as one.
    ///
    /// # Errors
    /// Errors from read(2) on the timer; none occur in practice.
    pub async fn tick(&mut self) -> io::Result<()> {
        loop {
            self.watch.readable().await?;
            match rustix::io::read(&self.timer, &mut [0; 8]) {
                Err(rustix::io::Errno::AGAIN) => {}
                read => return Ok(read.map(drop)?),
            }
        }
    }
}

fn timespec(time: Duration) -> io::Result<Timespec> {
    Timespec::try_from(time).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn the_next_tick_comes_when_it_is_wanted() {
        let mut ticks = Ticks::every(Duration::from_secs(3600)).expect("a timer");
        ticks.tick().await.expect("the first comes at once");
        let (begun, delay) = (Instant::now(), Duration::from_millis(20));
        ticks.next_in(delay).expect("set");
        ticks.tick().await.expect("a tick");
        assert!(begun.elapsed() >= delay);
    }
}
