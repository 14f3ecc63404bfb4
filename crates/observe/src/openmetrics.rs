//! The text that Prometheus and its kind read: OpenMetrics 1.0, and nothing of it that is not
//! needed. <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>
//!
//! What is exported is declared as constants ([`Family`]); a [`Page`] writes one family after
//! the other. A family without a sample is written with its type and help all the same, so that
//! whoever looks at a page sees what there can be.

use std::fmt::{self, Write as _};
use std::time::Duration;

/// What a page is, for the header of HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the samples of a family are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Counter,
    Gauge,
    Histogram,
    Info,
}

/// A family of samples with one name.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    name: &'static str,
    unit: &'static str,
    help: &'static str,
    of: Type,
}

impl Family {
    /// What only grows. Its samples end in `_total`, which `name` does not.
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: "", help, of: Type::Counter }
    }

    /// What goes up and down.
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: "", help, of: Type::Gauge }
    }

    /// How often something had which size.
    pub const fn histogram(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: "", help, of: Type::Histogram }
    }

    /// Text about what else is told, as labels. Its sample ends in `_info`, which `name` does not.
    pub const fn info(name: &'static str, help: &'static str) -> Self {
        Self { name, unit: "", help, of: Type::Info }
    }

    /// Says the unit, in which the name must end: `seconds` or `bytes`.
    #[must_use]
    pub const fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }
}

/// A page that is being written.
#[derive(Debug)]
pub struct Page {
    text: String,
    /// On every sample: `service="web"`, or nothing.
    everywhere: String,
}

impl Page {
    /// An empty one. These labels are on every sample.
    pub fn new(everywhere: &[(&str, &str)]) -> Self {
        let mut page = Self { text: String::new(), everywhere: String::new() };
        let mut labels = String::new();
        for (name, value) in everywhere {
            label(&mut labels, name, value);
        }
        page.everywhere = labels;
        page
    }

    /// Begins a family.
    pub fn family(&mut self, family: &Family) -> Samples<'_> {
        let Family { name, unit, help, of } = family;
        let of_word = match of {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
            Type::Info => "info",
        };
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "# TYPE {name} {of_word}");
        if !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {name} {help}");
        let suffix = match of {
            Type::Counter => "_total",
            Type::Info => "_info",
            Type::Gauge | Type::Histogram => "",
        };
        Samples { page: self, name, suffix }
    }

    /// A family with one sample that has no label of its own.
    pub fn single(&mut self, family: &Family, value: impl Into<Number>) {
        self.family(family).sample(&[], value);
    }

    /// The whole.
    pub fn finish(mut self) -> String {
        self.text.push_str("# EOF\n");
        self.text
    }
}

/// The samples of the family that was begun last.
#[derive(Debug)]
pub struct Samples<'a> {
    page: &'a mut Page,
    name: &'static str,
    suffix: &'static str,
}

impl Samples<'_> {
    /// Writes one. No two of a family may have the same labels.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Number>) {
        self.line(self.suffix, labels, value.into());
    }

    /// Writes a histogram.
    pub fn histogram(&mut self, histogram: &Histogram) {
        let mut count = 0;
        for (bound, of) in BOUNDS.iter().zip(histogram.counts) {
            count += of;
            let bound = Number::Float(*bound).to_string();
            self.line("_bucket", &[("le", &bound)], Number::Whole(count));
        }
        self.line("_bucket", &[("le", "+Inf")], Number::Whole(histogram.count));
        self.line("_count", &[], Number::Whole(histogram.count));
        self.line("_sum", &[], Number::Float(histogram.sum.as_secs_f64()));
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: Number) {
        let Page { text, everywhere } = &mut *self.page;
        text.push_str(self.name);
        text.push_str(suffix);
        if !labels.is_empty() || !everywhere.is_empty() {
            text.push('{');
            text.push_str(everywhere);
            for (name, value) in labels {
                label(text, name, value);
            }
            text.push('}');
        }
        // Writing to a String does not fail.
        let _ = writeln!(text, " {value}");
    }
}

/// Adds `name="value"`, after a comma unless it is the first.
fn label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() && !text.ends_with('{') {
        text.push(',');
    }
    text.push_str(name);
    text.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// The value of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// A count.
    Whole(u64),
    /// A measure.
    Float(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            // With a point, as the specification wants the bounds of a histogram written.
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}

impl From<u64> for Number {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for Number {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<usize> for Number {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl From<bool> for Number {
    fn from(yes: bool) -> Self {
        Self::Whole(yes.into())
    }
}

impl From<f64> for Number {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<Duration> for Number {
    fn from(duration: Duration) -> Self {
        Self::Float(duration.as_secs_f64())
    }
}

/// The upper bounds of a histogram, in seconds: from a handover that nobody notices to a
/// haproxy that takes half a minute to be ready.
const BOUNDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// How long something took, each time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Histogram {
    /// Those up to each bound and above the one before.
    counts: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    /// Adds one.
    pub fn add(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound);
        if let Some(count) = bucket.and_then(|bucket| self.counts.get_mut(bucket)) {
            *count += 1;
        }
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Family = Family::gauge("b_queue", "Connections that wait.");
    const RELOADS: Family = Family::counter("b_reloads", "Reloads.");
    const TOOK: Family = Family::histogram("b_seconds", "How long.").unit("seconds");
    const BUILD: Family = Family::info("b_build", "Of what.");

    #[test]
    fn a_page_is_as_the_specification_says() {
        let mut page = Page::new(&[("service", "web")]);
        let mut queue = page.family(&QUEUE);
        queue.sample(&[("listener", "a\"b\\c\nd")], 3_u32);
        queue.sample(&[("listener", "x"), ("netns", "blue")], true);
        page.single(&RELOADS, 7_u64);
        let mut took = Histogram::default();
        for millis in [5, 6, 700, 40_000] {
            took.add(Duration::from_millis(millis));
        }
        page.family(&TOOK).histogram(&took);
        page.family(&BUILD).sample(&[("version", "1")], 1_u64);
        let text = page.finish();
        let expected = "\
# TYPE b_queue gauge
# HELP b_queue Connections that wait.
b_queue{service=\"web\",listener=\"a\\\"b\\\\c\\nd\"} 3
b_queue{service=\"web\",listener=\"x\",netns=\"blue\"} 1
# TYPE b_reloads counter
# HELP b_reloads Reloads.
b_reloads_total{service=\"web\"} 7
# TYPE b_seconds histogram
# UNIT b_seconds seconds
# HELP b_seconds How long.
b_seconds_bucket{service=\"web\",le=\"0.005\"} 1
b_seconds_bucket{service=\"web\",le=\"0.01\"} 2
";
        assert!(text.starts_with(expected), "{text}");
        for line in [
            "b_seconds_bucket{service=\"web\",le=\"0.5\"} 2",
            "b_seconds_bucket{service=\"web\",le=\"1.0\"} 3",
            "b_seconds_bucket{service=\"web\",le=\"30.0\"} 3",
            "b_seconds_bucket{service=\"web\",le=\"+Inf\"} 4",
            "b_seconds_count{service=\"web\"} 4",
            "b_seconds_sum{service=\"web\"} 40.711",
            "b_build_info{service=\"web\",version=\"1\"} 1",
        ] {
            assert!(text.lines().any(|is| is == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn without_labels_there_are_no_braces() {
        let mut page = Page::new(&[]);
        page.single(&RELOADS, 0_u64);
        assert!(page.finish().contains("\nb_reloads_total 0\n"));
    }
}
