//! Whether a starting generation makes progress, which gives it more time than `--ready-timeout`.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bindonce_core::generation::{Event, Progress, Work};
use bindonce_sys::{tree, worker};

use crate::context::Context;
use crate::generations::generation::Generation;
use crate::message::Message;

/// Number of looks in one `--ready-timeout`.
const LOOKS: u32 = 8;
/// Minimum and maximum time between two looks. Each reads all of /proc.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(5);

/// Begins to look at a generation, until it is ready or gone.
pub(crate) fn watch(cx: &Context, generation: &Generation) {
    let (cx, id, pid) = (cx.clone(), generation.id, generation.pid());
    let tail = generation.output.tail.clone();
    // The flag is dropped with the generation.
    let over = Rc::downgrade(&generation.own.over);
    let every = (cx.settings.timing.ready_timeout / LOOKS).clamp(SHORTEST, LONGEST);
    crate::tasks::spawn(async move {
        let begun = Instant::now();
        let mut progress = Progress::new(begun.elapsed());
        loop {
            tokio::time::sleep(every).await;
            if over.upgrade().is_none_or(|over| over.get()) {
                return;
            }
            // A look that fails shows no progress.
            let Ok(processor) = worker::within(LOOK, move || tree::processor(pid)).await else {
                continue;
            };
            let work = Work { processor, output: tail.written() };
            if progress.look(begun.elapsed(), work) {
                cx.send(Message::Event(Event::Progress(id)));
            }
        }
    });
}
