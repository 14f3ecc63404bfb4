use super::*;
use crate::command::top::fixture::{
    NOW, event_at, generation, listener, lost, reloaded, seen, service,
};

fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
    keys.chars().flat_map(|key| model.on(NOW, Input::Key(Key::Char(key)))).collect()
}

fn message(model: &Model) -> &str {
    match &model.message {
        Some(Message::Notice(_, text) | Message::Failed(text)) => text,
        None => "",
    }
}

fn web(number: Option<u64>) -> Row {
    ("web".to_owned(), number)
}

#[test]
fn a_reload_is_of_the_chosen_service_and_one_at_a_time() {
    let mut model = reloaded();
    let reload = Action::Reload { service: "web".to_owned() };
    assert_eq!(press(&mut model, "jr"), [Effect::Act(reload.clone())]);
    assert_eq!(model.doing, Some((reload.clone(), NOW)));
    // A key that is held down, and one that would end a draining generation meanwhile.
    assert_eq!(press(&mut model, "rrx"), []);
    assert!(message(&model).contains("one thing at a time"), "{}", message(&model));
    let failed = Input::Done(Err("line 3: unknown keyword\nhint: mend it".to_owned()));
    assert_eq!(model.on(NOW, failed), [Effect::Look]);
    assert_eq!(model.doing, None);
    assert!(message(&model).contains("unknown keyword"));
    assert_eq!(press(&mut model, "r"), [Effect::Act(reload)]);
    assert_eq!(message(&model), "");
}

#[test]
fn what_was_done_is_told_for_a_while_and_what_failed_until_a_key() {
    let mut model = reloaded();
    let later = Timestamp(NOW.0 + TOLD + 1);
    for (outcome, left) in [(Ok("done".to_owned()), ""), (Err("failed".to_owned()), "failed")] {
        model.on(NOW, Input::Done(outcome));
        model.on(NOW, seen(Vec::new(), Vec::new()));
        assert!(!message(&model).is_empty());
        model.on(later, seen(Vec::new(), Vec::new()));
        assert_eq!(message(&model), left);
    }
}

#[test]
fn a_generation_is_ended_only_after_a_question() {
    let retire = || Effect::Act(Action::Retire { service: "web".to_owned(), generation: 3 });
    // On the service, the oldest draining generation; on a generation, that one.
    for keys in ["x", "R", "jjx"] {
        let mut model = reloaded();
        assert_eq!(press(&mut model, keys), []);
        assert_eq!(model.asking, Some(("web".to_owned(), 3)), "{keys}");
        assert_eq!(press(&mut model, "y"), [retire()]);
        for no in ["n", "x", "q"] {
            let mut model = reloaded();
            assert_eq!(press(&mut model, &format!("{keys}{no}")), [], "{keys} {no}");
            assert_eq!((model.asking.as_ref(), model.doing.as_ref()), (None, None));
        }
    }
}

#[test]
fn what_cannot_be_done_says_why() {
    let mut model = reloaded();
    assert_eq!(press(&mut model, "jx"), []);
    assert_eq!(
        message(&model),
        "generation 5 of \"web\" is serving: only one that drains can be ended"
    );
    assert_eq!(press(&mut model, "Gx"), []);
    assert_eq!(message(&model), "generation 4 of \"web\" has ended");
    let mut model = Model::new(NOW);
    assert_eq!(press(&mut model, "rx"), []);
    assert!(message(&model).contains("bindonce run"));
    let mut joined = service("own", vec![generation(1, "serving", 9)]);
    joined.supervision = Supervision::Nobody;
    model.on(NOW, seen(vec![joined], Vec::new()));
    assert_eq!(press(&mut model, "r"), []);
    assert!(message(&model).contains("has no supervisor"));
    model.on(NOW, seen(vec![service("web", Vec::new())], Vec::new()));
    assert_eq!(press(&mut model, "x"), []);
    assert_eq!(message(&model), "no generation of \"web\" drains");
}

#[test]
fn the_choice_stays_with_what_was_chosen() {
    let mut model = reloaded();
    assert_eq!(model.rows(), [web(None), web(Some(5)), web(Some(3)), web(Some(4))]);
    press(&mut model, "jj");
    assert_eq!(model.chosen(), Some(&web(Some(3))));
    // A newer generation comes, and a service before this one.
    let generations = vec![
        generation(3, "draining", 250),
        generation(5, "draining", 61),
        generation(6, "serving", 0),
    ];
    let before = service("a", Vec::new());
    model.on(NOW, seen(vec![before.clone(), service("web", generations)], Vec::new()));
    assert_eq!(model.chosen(), Some(&web(Some(3))));
    // The generation ends, and stays in view as ended.
    let generations = vec![generation(5, "draining", 61), generation(6, "serving", 0)];
    model.on(NOW, seen(vec![before, service("web", generations)], Vec::new()));
    assert_eq!(model.chosen(), Some(&web(Some(3))));
    // Long after that it is forgotten.
    let later = Timestamp(NOW.0 + 3_700_000);
    model.on(later, seen(vec![service("web", vec![generation(7, "serving", 0)])], Vec::new()));
    assert_eq!(model.chosen(), Some(&web(None)));
    model.on(later, seen(Vec::new(), Vec::new()));
    assert_eq!(model.chosen(), None);
    assert_eq!(press(&mut model, "jkgG"), []);
}

#[test]
fn a_broker_that_is_gone_leaves_what_was_known() {
    let mut model = reloaded();
    let then = Timestamp(NOW.0 + 5000);
    model.on(then, lost(vec![service("web", vec![generation(5, "serving", 61)])]));
    model.on(Timestamp(NOW.0 + 9000), lost(Vec::new()));
    assert_eq!(model.lost.as_ref().map(|(since, _)| *since), Some(then));
    assert_eq!(model.listeners().len(), 2);
    model.on(Timestamp(NOW.0 + 9500), seen(Vec::new(), Vec::new()));
    assert_eq!((model.lost.as_ref(), model.listeners().len()), (None, 0));
}

#[test]
fn listeners_are_sorted_by_name_queue_or_users() {
    let mut model = Model::new(NOW);
    let mut datagrams = listener("c", 0, 1);
    (datagrams.queue, datagrams.backlog) = (None, None);
    model.on(NOW, seen(Vec::new(), vec![listener("b", 1, 2), datagrams, listener("a", 9, 0)]));
    let names = |model: &Model| -> String {
        model.listeners().iter().map(|listener| listener.name.as_str()).collect()
    };
    assert_eq!(names(&model), "abc");
    press(&mut model, "s");
    assert_eq!(names(&model), "abc");
    model.on(
        NOW,
        seen(Vec::new(), vec![listener("b", 10, 2), listener("a", 9, 0), listener("c", 0, 1)]),
    );
    assert_eq!(names(&model), "bac");
    press(&mut model, "s");
    assert_eq!(names(&model), "bca");
    press(&mut model, "s");
    assert_eq!(names(&model), "abc");
}

#[test]
fn events_are_looked_into_at_once_and_only_so_many_kept() {
    let mut model = Model::new(NOW);
    let events = (0..1500).map(|number| event_at(0, "reload-done", number, "done")).collect();
    assert_eq!(model.on(NOW, Input::Happened(events)), [Effect::Look]);
    assert_eq!((model.events.len(), model.events[0].event.generation), (REMEMBERED, Some(500)));
    // The event that is being read stays in place when more come.
    model.on(NOW, Input::Key(Key::BackTab));
    press(&mut model, "kkk");
    model.on(NOW, Input::Happened(vec![event_at(0, "reload-done", 1, "done")]));
    assert_eq!((model.view.pane, model.view.back), (Pane::Events, 4));
    press(&mut model, "G");
    model.on(NOW, Input::Happened(vec![event_at(0, "reload-done", 2, "done")]));
    assert_eq!(model.view.back, 0);
}

#[test]
fn the_time_line_fits_until_a_key_says_otherwise() {
    let mut model = reloaded();
    assert_eq!(model.span(), (Timestamp(NOW.0 - 300_000), 300));
    press(&mut model, "--");
    assert_eq!(model.span().1, 3600);
    press(&mut model, "+++++++++");
    assert_eq!(model.span().1, 60);
    press(&mut model, "-----------");
    assert_eq!(model.span().1, SPANS[SPANS.len() - 1]);
    press(&mut model, "0");
    assert_eq!(model.span().1, 300);
    // A generation that has served for a month does not shrink everything else to a point.
    model
        .on(NOW, seen(vec![service("old", vec![generation(1, "serving", 2_500_000)])], Vec::new()));
    assert_eq!(model.span().1, 3600);
}

#[test]
fn keys_that_end_it_end_it_and_escape_closes_what_is_open_first() {
    let mut model = reloaded();
    assert_eq!(press(&mut model, "q"), [Effect::Quit]);
    assert_eq!(model.on(NOW, Input::Key(Key::Control('c'))), [Effect::Quit]);
    press(&mut model, "?");
    assert!(model.view.help);
    assert_eq!(press(&mut model, "q"), []);
    model.on(NOW, Input::Done(Ok("generation 6 serves".to_owned())));
    assert_eq!(model.on(NOW, Input::Key(Key::Escape)), []);
    assert_eq!(model.on(NOW, Input::Key(Key::Escape)), [Effect::Quit]);
    press(&mut model, "x");
    assert_eq!(model.on(NOW, Input::Key(Key::Control('c'))), [Effect::Quit]);
}
