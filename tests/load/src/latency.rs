//! Latencies in a histogram of constant size: 32 steps for each doubling, so a
//! percentile is right to about 3 %.

use std::time::Duration;

const STEPS: u64 = 32;
const STEP_BITS: u32 = 5;
const BUCKETS: usize = 32 * 40;

/// A histogram of durations, in microseconds.
#[derive(Debug, Clone)]
pub struct Latency {
    buckets: Vec<u64>,
    count: u64,
    max: Duration,
}

impl Default for Latency {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS], count: 0, max: Duration::ZERO }
    }
}

impl Latency {
    /// Adds one.
    pub fn add(&mut self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.buckets[index(micros)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// The value that `percent` of all are at or below; zero when there is none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(upper(bucket)).min(self.max);
            }
        }
        self.max
    }

    /// The longest, exactly.
    pub fn max(&self) -> Duration {
        self.max
    }
}

fn index(micros: u64) -> usize {
    let shift = micros.checked_ilog2().unwrap_or(0).saturating_sub(STEP_BITS);
    let index = u64::from(shift) * STEPS + (micros >> shift);
    usize::try_from(index).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    ((bucket - shift * STEPS + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_and_is_narrow() {
        for micros in (0..5000).chain([1 << 20, 10_000_000, (1 << 30) + 12345]) {
            let top = upper(index(micros));
            assert!(top >= micros && top - micros <= micros / 31, "{micros}: {top}");
        }
    }

    #[test]
    fn percentiles_of_a_hundred() {
        let mut latency = Latency::default();
        (1..=100).for_each(|ms| latency.add(Duration::from_millis(ms)));
        let p50 = latency.percentile(50.0);
        assert!(p50 >= Duration::from_millis(50) && p50 < Duration::from_millis(53), "{p50:?}");
        assert_eq!(latency.percentile(100.0), Duration::from_millis(100));
        assert_eq!(Latency::default().percentile(99.0), Duration::ZERO);
    }
}
