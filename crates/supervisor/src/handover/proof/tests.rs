//! The proof's questions to older generations.

use std::os::unix::net::UnixStream as Blocking;

use bindonce_haproxy::cli::{Level, PROMPT};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::*;

#[test]
fn where_one_cannot_be_asked_the_queues_stand_still_for_longer() {
    let counts: Vec<_> = [1, 2].map(|id| Rc::new(Count::new(GenerationId(id)))).into();
    assert_eq!(still_for(2, &counts), STILL);
    assert_eq!(still_for(3, &counts), STILL_UNASKED, "a third has no admin connection");
    counts[1].closed.set(true);
    assert_eq!(still_for(2, &counts), STILL_UNASKED, "one has closed it");
    assert_eq!(still_for(0, &[]), STILL_UNASKED, "none is left");
}

/// The answer to an older question is long (`show stat`).
#[test]
fn one_that_still_answers_an_older_question_is_not_silent() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime.expect("a runtime"), async {
        let (ours, theirs) = Blocking::pair().expect("a pair");
        theirs.set_nonblocking(true).expect("non-blocking");
        let (questions, mut answers) = UnixStream::from_std(theirs).expect("a stream").into_split();
        let mut questions = BufReader::new(questions).lines();
        let admin = Admin::resume(ours.into(), 0, |_| ());
        let older = admin.clone();
        crate::tasks::spawn(async move { older.ask("show stat", Duration::from_secs(60)).await });
        loop {
            let question = questions.next_line().await.expect("a line").expect("a question");
            let said = match question.as_str() {
                "show cli level" => format!("{}\n", Level::ALL[0]),
                "show info" => "Name: x\n".to_owned(),
                "show stat" => break,
                _ => String::new(),
            };
            answers.write_all(format!("{said}{PROMPT}").as_bytes()).await.expect("an answer");
        }
        let (count, looked) = (Rc::new(Count::new(GenerationId(1))), Rc::new(Notify::new()));
        let begun = count.answered.get();
        crate::tasks::spawn(Rc::clone(&count).follow(admin.clone(), Rc::clone(&looked)));
        let look = async || {
            count.ask.notify_one();
            looked.notified().await;
            count.answered.get()
        };
        let mut heard = begun;
        for _ in 0..20 {
            if heard == begun {
                answers.write_all(b"x").await.expect("a part of the answer");
                heard = look().await;
            }
        }
        assert!(heard > begun, "parts of the answer came");
        // Nothing comes any more.
        let last = look().await;
        assert_eq!(look().await, last);
        admin.close();
    });
}
