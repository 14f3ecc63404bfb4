//! A page of metrics in OpenMetrics 1.0, written by `prometheus-client`.
//!
//! The exported families are constants ([`Family`]). At each scrape a process fills a [`Page`] from
//! its own state, one family after the other, so nothing is kept up to date in between. A family
//! without a sample is still written, with its type and help: each page has all families, in the
//! same order. (The library's own families are hash maps, and leave out an empty one; hence these
//! samples go through its `Collector`.)

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The Content-Type of a page.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A family of samples with one name.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

/// Each function takes the name with its unit, if it has one: `_seconds` or `_bytes` at its end.
impl Family {
    /// A value that only grows. The names of its samples end in `_total`, which `name` does not.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::Counter }
    }

    /// A value that goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::Gauge }
    }

    /// A distribution of durations.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::Histogram }
    }

    /// Text about the other metrics, as labels. The name of its sample ends in `_info`, which
    /// `name` does not.
    pub const fn info(name: &'static str, help: &'static str) -> Self {
        Self { name, help, kind: MetricType::Info }
    }
}

/// The labels of one sample.
pub type Labels<const N: usize> = [(&'static str, String); N];

/// A page that is being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// Labels on every sample.
    common: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

impl Page {
    /// An empty page, with this label on every sample.
    pub fn with_label(name: &'static str, value: &str) -> Self {
        Self { text: String::new(), common: vec![(name.into(), value.to_owned().into())] }
    }

    /// Writes a family. No two of its samples may have the same labels.
    pub fn family<const N: usize, V: Into<Value>>(
        &mut self,
        family: &Family,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) {
        let samples = samples.into_iter().map(|(labels, value)| (labels, value.into())).collect();
        let mut registry = Registry::with_labels(self.common.iter().cloned());
        registry.register_collector(Box::new(Samples { family: *family, samples }));
        // Writing to a String does not fail.
        let _ = encode_registry(&mut self.text, &registry);
    }

    /// Writes a family with one sample that has no label of its own.
    pub fn single(&mut self, family: &Family, value: impl Into<Value>) {
        self.family(family, [([], value)]);
    }

    /// The text so far, for families that other code writes.
    pub fn text(&mut self) -> &mut String {
        &mut self.text
    }

    /// The whole page.
    pub fn finish(mut self) -> String {
        // Writing to a String does not fail.
        let _ = encode_eof(&mut self.text);
        self.text
    }
}

/// All samples of one family.
#[derive(Debug)]
struct Samples<const N: usize> {
    family: Family,
    samples: Vec<(Labels<N>, Value)>,
}

impl<const N: usize> Collector for Samples<N> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Family { name, help, kind } = self.family;
        // The library adds the unit to the name.
        let (name, unit) = match name.rsplit_once('_') {
            Some((name, "seconds")) => (name, Some(&Unit::Seconds)),
            Some((name, "bytes")) => (name, Some(&Unit::Bytes)),
            _ => (name, None),
        };
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in &self.samples {
            if matches!(kind, MetricType::Info) {
                family.encode_info(labels)?;
                continue;
            }
            let mut sample = family.encode_family(labels)?;
            match (kind, value) {
                (MetricType::Counter, Value::Whole(count)) => {
                    sample.encode_counter::<NoLabelSet, _, u64>(count, None)?;
                }
                (MetricType::Counter, Value::Float(sum)) => {
                    sample.encode_counter::<NoLabelSet, _, f64>(sum, None)?;
                }
                (_, Value::Whole(number)) => sample.encode_gauge(number)?,
                (_, Value::Float(measure)) => sample.encode_gauge(measure)?,
                (_, Value::Durations(Durations(histogram))) => histogram.encode(sample)?,
            }
        }
        Ok(())
    }
}

/// The value of a sample.
#[derive(Debug, Clone)]
pub enum Value {
    /// A count.
    Whole(u64),
    /// A measure.
    Float(f64),
    /// A histogram.
    Durations(Durations),
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Whole(yes.into())
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Self::Float(duration.as_secs_f64())
    }
}

impl From<&Durations> for Value {
    fn from(durations: &Durations) -> Self {
        Self::Durations(durations.clone())
    }
}

/// The upper bounds of a histogram, in seconds: from a handover that nobody notices to a
/// haproxy that takes half a minute to be ready.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The durations of something.
#[derive(Debug, Clone)]
pub struct Durations(Histogram);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new(BOUNDS))
    }
}

impl Durations {
    /// Adds one duration.
    pub fn add(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Family = Family::gauge("b_queue", "Connections that wait.");
    const LIMIT: Family = Family::gauge("b_limit", "Connections that may wait.");
    const RELOADS: Family = Family::counter("b_reloads", "Reloads.");
    const TOOK: Family = Family::histogram("b_took_seconds", "How long.");
    const MEMORY: Family = Family::gauge("b_memory_bytes", "How much.");
    const BUILD: Family = Family::info("b_build", "Of what.");

    #[test]
    fn a_page_has_every_family_in_order_with_the_common_label_first() {
        let mut page = Page::with_label("service", "web");
        let samples = [("a\"b\\c\nd", 3_u64), ("x", 0)];
        page.family(&QUEUE, samples.map(|(name, value)| ([("listener", name.to_owned())], value)));
        page.family::<1, u64>(&LIMIT, []);
        page.single(&RELOADS, 7_u64);
        let took = Durations::default();
        for millis in [5, 6, 700, 40_000] {
            took.add(Duration::from_millis(millis));
        }
        page.single(&TOOK, &took);
        page.single(&MEMORY, 4096_u64);
        page.family(&BUILD, [([("version", "1".to_owned())], 1_u64)]);
        let text = page.finish();
        assert_eq!(
            text,
            r#"# HELP b_queue Connections that wait.
# TYPE b_queue gauge
b_queue{service="web",listener="a\"b\\c\nd"} 3
b_queue{service="web",listener="x"} 0
# HELP b_limit Connections that may wait.
# TYPE b_limit gauge
# HELP b_reloads Reloads.
# TYPE b_reloads counter
b_reloads_total{service="web"} 7
# HELP b_took_seconds How long.
# TYPE b_took_seconds histogram
# UNIT b_took_seconds seconds
b_took_seconds_sum{service="web"} 40.711
b_took_seconds_count{service="web"} 4
b_took_seconds_bucket{service="web",le="0.005"} 1
b_took_seconds_bucket{service="web",le="0.01"} 2
b_took_seconds_bucket{service="web",le="0.025"} 2
b_took_seconds_bucket{service="web",le="0.05"} 2
b_took_seconds_bucket{service="web",le="0.1"} 2
b_took_seconds_bucket{service="web",le="0.25"} 2
b_took_seconds_bucket{service="web",le="0.5"} 2
b_took_seconds_bucket{service="web",le="1.0"} 3
b_took_seconds_bucket{service="web",le="2.5"} 3
b_took_seconds_bucket{service="web",le="5.0"} 3
b_took_seconds_bucket{service="web",le="10.0"} 3
b_took_seconds_bucket{service="web",le="30.0"} 3
b_took_seconds_bucket{service="web",le="+Inf"} 4
# HELP b_memory_bytes How much.
# TYPE b_memory_bytes gauge
# UNIT b_memory_bytes bytes
b_memory_bytes{service="web"} 4096
# HELP b_build Of what.
# TYPE b_build info
b_build_info{service="web",version="1"} 1
# EOF
"#
        );
    }

    #[test]
    fn without_labels_there_are_no_braces() {
        let mut page = Page::default();
        page.single(&RELOADS, 0_u64);
        assert!(page.finish().contains("\nb_reloads_total 0\n"));
    }
}
