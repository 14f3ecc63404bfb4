//! Words for processes.

use super::units::{clock, join};
use crate::facts::Look;

/// `pid 953 (haproxy, started 09:14)`, with its generation if the broker knows it.
pub(super) fn process(look: &Look, pid: i32) -> String {
    let Some(process) = look.processes.get(&pid) else {
        return format!("pid {pid}");
    };
    let name = match look.generation(pid) {
        Some((service, known)) => format!("{service}/{}", known.generation),
        None => process.program.clone(),
    };
    format!("pid {pid} ({name}, started {})", clock(look.at, process.started))
}

/// The same for each of these pids, joined. At most four are shown in full, to keep the report
/// short.
pub(super) fn processes(look: &Look, pids: &[i32]) -> String {
    const SHOWN: usize = 4;
    let mut words: Vec<String> = pids.iter().take(SHOWN).map(|pid| process(look, *pid)).collect();
    if pids.len() > SHOWN {
        words.push(format!("{} more", pids.len() - SHOWN));
    }
    join(&words)
}
