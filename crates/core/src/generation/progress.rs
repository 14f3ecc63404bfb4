//! Whether a process that starts makes progress: it uses the processor, or says something.

use std::time::Duration;

/// Of each so many seconds without output a process must use the processor for one: what waits for an answer that does not come
/// also wakes up now and then.
const SHARE: u32 = 100;

/// What a process has done since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Processor time that it has used, with all that it has started.
    pub processor: Duration,
    /// How much it has written.
    pub output: u64,
}

/// When a process was last seen to make progress, by a clock of the caller, and what it had done by then.
#[derive(Debug, Clone)]
pub struct Progress {
    at: Duration,
    work: Work,
}

impl Progress {
    /// Of a process that is started now.
    pub fn new(now: Duration) -> Self {
        Self { at: now, work: Work::default() }
    }

    /// Whether it has made progress since this last said so; `now` never goes back.
    pub fn look(&mut self, now: Duration, work: Work) -> bool {
        // A child that has ended takes its time along.
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

    /// What happens between two looks: milliseconds that pass, of the processor that are used, and bytes written.
    fn step() -> impl Strategy<Value = (u64, u64, u64)> {
        (
            1..5000u64,
            prop_oneof![3 => Just(0), 2 => 0..5000u64],
            prop_oneof![5 => Just(0), 1 => 1..100u64],
        )
    }

    proptest! {
        /// Output is progress; so is a hundredth of the time since the last sign; nothing else is, however often it is looked at.
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

        /// One whose children end is no further than before, and never fails for it.
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
