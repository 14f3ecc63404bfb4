//! Whether a starting process makes progress: it uses the processor, or writes output.

use std::time::Duration;

/// A process without output must use the processor for one second in this many: a process that
/// waits for an answer that never comes also wakes up now and then.
const SHARE: u32 = 100;

/// What a process has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Processor time used by it and by all that it has started.
    pub processor: Duration,
    /// How much it has written, in bytes.
    pub output: u64,
}

/// When a process was last seen to make progress, by the caller's clock, and its work until then.
#[derive(Debug, Clone)]
pub struct Progress {
    at: Duration,
    work: Work,
}

impl Progress {
    /// For a process that is started now.
    pub fn new(now: Duration) -> Self {
        Self { at: now, work: Work::default() }
    }

    /// Whether it has made progress since the last call that returned true; `now` never goes back.
    pub fn look(&mut self, now: Duration, work: Work) -> bool {
        // The time of a child that has ended may be gone from the sum.
        self.work.processor = self.work.processor.min(work.processor);
        let used = work.processor - self.work.processor;
        let enough = !used.is_zero() && used >= now.saturating_sub(self.at) / SHARE;
        if !enough && work.output == self.work.output {
            return false;
        }
        *self = Self { at: now, work };
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Between two looks: milliseconds that pass, processor milliseconds used, and bytes written.
    fn step() -> impl Strategy<Value = (u64, u64, u64)> {
        (
            1..5000u64,
            prop_oneof![3 => Just(0), 2 => 0..5000u64],
            prop_oneof![5 => Just(0), 1 => 1..100u64],
        )
    }

    proptest! {
        /// Output is progress, and so is a hundredth of the time since the last progress; nothing
        /// else is, however often it is looked at.
        #[test]
        fn is_output_or_a_share_of_the_processor(steps in prop::collection::vec(step(), 1..60)) {
            let ms = Duration::from_millis;
            let (mut progress, mut now, mut work) = (Progress::new(ms(0)), ms(0), Work::default());
            let (mut since, mut used) = (ms(0), ms(0));
            for (passed, processor, output) in steps {
                now += ms(passed);
                work.processor += ms(processor);
                work.output += output;
                (since, used) = (since + ms(passed), used + ms(processor));
                let expected = output > 0 || (!used.is_zero() && used * SHARE >= since);
                prop_assert_eq!(progress.look(now, work), expected);
                if expected {
                    (since, used) = (ms(0), ms(0));
                }
                prop_assert!(!progress.look(now, work), "looked at twice");
            }
        }

        /// The end of a child is no progress, and no failure.
        #[test]
        fn less_than_before_is_no_progress(before in 0..10_000u64, after in 0..10_000u64) {
            let work = |millis| Work { processor: Duration::from_millis(millis), output: 0 };
            let mut progress = Progress::new(Duration::ZERO);
            progress.look(Duration::from_millis(1), work(before));
            let second = Duration::from_secs(1);
            prop_assert_eq!(progress.look(second, work(after)), after >= before + 10);
        }
    }
}
