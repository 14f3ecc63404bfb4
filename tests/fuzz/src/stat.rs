//! `/proc/PID/stat` of a process whose name another user has chosen.

use bindonce_sys::process::Stat;

/// Reads such a line. A process that has the bytes as its name is read like any other.
pub(crate) fn stat(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = Stat::read(7, &text);
    let line = format!("7 ({text}) S 1 2 3 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 77 1 2 3\n");
    let stat = Stat::read(7, &line).expect("a process");
    assert_eq!((stat.name.as_str(), stat.parent, stat.start_time), (&*text, 1, 77));
    assert!(stat.state == 'S' && stat.threads == 9 && !stat.has_ended());
}
