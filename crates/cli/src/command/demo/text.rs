//! The texts of the demonstration.

use std::fmt::Write as _;

use super::schedule::{NEW, Schedule, Seen, TABLE};
use super::stage::{self, Stage};

/// Requests in one line of the table.
const ROW: usize = 15;

/// Announces what is about to happen.
pub(super) fn opening(stage: &Stage, schedule: &Schedule) -> String {
    let place = match stage.isolated {
        true => "in a network namespace of its own",
        false => "on a loopback port that was free",
    };
    let seconds = schedule.every.as_secs_f64() * (2 * schedule.reloads + 5) as f64;
    format!(
        "{}, {}, on {}, {place}.\nThis takes about {seconds:.0} seconds, and ends everything that it starts.\n",
        stage::version(&stage.haproxy),
        stage.haproxy.display(),
        stage.address,
    )
}

/// Introduces the first way.
pub(super) fn old_way(stage: &Stage, schedule: &Schedule) -> String {
    let Schedule { reloads, .. } = schedule;
    let (one, other) = (schedule.overlap(), schedule.overlap() + 1);
    format!(
        "\n1. The old way: {reloads} times {} -f haproxy.cfg -sf PID, one a second\n\n    \
         Reloads {one} and {other} overlap: both read the same pid file, both tell the same process to stop, and\n    \
         no signal ever reaches the process that reload {one} has started. Only the last configuration knows\n    \
         {NEW}.\n\n",
        program(stage),
    )
}

/// Introduces the second way.
pub(super) fn under_bindonce(stage: &Stage) -> String {
    format!(
        "\n3. The same schedule under bindonce\n\n    \
         bindonce serve\n    \
         bindonce run -- {} -f haproxy.cfg\n    \
         bindonce reload   # instead of a signal; two at the same time where two overlapped\n\n",
        program(stage),
    )
}

/// The name that people use for the program.
fn program(stage: &Stage) -> String {
    let name = stage.haproxy.file_name().unwrap_or(stage.haproxy.as_os_str());
    name.to_string_lossy().into_owned()
}

/// What clients saw of one way.
pub(super) fn outcome(seen: &Seen) -> String {
    let mut text = format!(
        "\n    {TABLE} requests for {NEW}, each on a new connection (O answered, X 503):\n\n"
    );
    for row in seen.table.chunks(ROW) {
        let marks: Vec<_> = row.iter().map(|answered| if *answered { "O" } else { "X" }).collect();
        // Writing to a String does not fail.
        let _ = writeln!(text, "        {}", marks.join(" "));
    }
    let _ = writeln!(text, "\n    {}", failed(seen));
    text
}

fn failed(seen: &Seen) -> String {
    match seen.table.iter().filter(|answered| !**answered).count() {
        0 => "None of them failed.".to_owned(),
        failed => format!("{failed} of {} failed.", seen.table.len()),
    }
}

/// Introduces the output of `doctor` for the first way.
pub(super) fn doctor(stage: &Stage) -> String {
    format!(
        "\n2. Why? The newest process is there, and its configuration is right.\n\n    \
         $ bindonce doctor {}\n",
        stage.address
    )
}

/// Introduces the output of `doctor` for the second way.
pub(super) fn doctor_again(stage: &Stage) -> String {
    format!("\n    $ bindonce doctor {}\n", stage.address)
}

/// Both ways side by side, and what to do next.
pub(super) fn closing(stage: &Stage, before: &Seen, after: &Seen) -> String {
    let of = |part: u64, whole: u64| match part {
        0 => format!("0 of {whole}"),
        _ => format!("{part} of {whole}, {:.0} %", part as f64 * 100.0 / whole as f64),
    };
    let table = |seen: &Seen| {
        let failed = seen.table.iter().filter(|answered| !**answered).count();
        of(failed as u64, seen.table.len() as u64)
    };
    let rows = [
        ["".to_owned(), "the old way".to_owned(), "under bindonce".to_owned()],
        ["reloads".to_owned(), before.reloads.to_string(), after.reloads.to_string()],
        [
            format!("sockets on {} in the end", stage.address),
            before.sockets.to_string(),
            after.sockets.to_string(),
        ],
        [format!("requests for {NEW} that failed"), table(before), table(after)],
        [
            "answers of a replaced process, afterwards".to_owned(),
            of(before.sample.stale, before.sample.asked),
            of(after.sample.stale, after.sample.asked),
        ],
        [
            "the same while it was reloaded".to_owned(),
            of(before.during.stale, before.during.asked),
            of(after.during.stale, after.during.asked),
        ],
        [
            "requests without an answer".to_owned(),
            of(
                before.during.failed + before.sample.failed,
                before.during.asked + before.sample.asked,
            ),
            of(after.during.failed + after.sample.failed, after.during.asked + after.sample.asked),
        ],
    ];
    format!(
        "\n4. Side by side\n\n{}\nWhat next\n\n    \
         bindonce doctor                     # on a host with this trouble, as root; it changes nothing\n    \
         bindonce run -- haproxy -f FILE     # instead of: haproxy -f FILE; the file stays as it is\n    \
         bindonce reload                     # instead of a signal\n",
        indented(&super::super::list::columns(&rows)),
    )
}

/// Indents every line.
pub(super) fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "{}", format!("    {line}").trim_end());
        all
    })
}
