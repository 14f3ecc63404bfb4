//! Screens as a terminal would show them.

use super::*;
use crate::command::top::fixture::{
    NOW, event_at, generation, listener, lost, reloaded, seen, service,
};
use crate::command::top::keys::Key;
use crate::command::top::model::Input;
use crate::command::top::overview::Supervision;

fn screen(model: &Model, width: u16, height: u16, glyphs: &'static Glyphs) -> String {
    let setting = Setting { glyphs, interval: "1s".to_owned() };
    let mut canvas = Canvas::new((width, height), glyphs);
    draw(model, &setting, &mut canvas);
    let text = |line: &[Cell]| line.iter().filter_map(|cell| cell.character).collect::<String>();
    let lines = canvas.lines().map(|line| text(line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn shows(model: &Model, (width, height): (u16, u16), name: &str) {
    let shown = screen(model, width, height, &UNICODE);
    insta::assert_snapshot!(name, shown);
    let tallest = shown.lines().map(|line| line.chars().count()).max();
    assert!(tallest <= Some(usize::from(width)));
}
#[test]
fn a_service_after_a_reload() {
    shows(&reloaded(), (80, 24), "reloaded");
}

#[test]
fn a_small_terminal_shows_what_matters_most() {
    shows(&reloaded(), (40, 10), "small");
}

#[test]
fn a_broker_that_is_gone_is_said_to_be_gone_and_what_was_known_is_kept() {
    let mut model = reloaded();
    let mut silent = service("edge", Vec::new());
    silent.supervision = Supervision::Silent("Connection refused".to_owned());
    let later = Timestamp(NOW.0 + 5000);
    let generations = vec![generation(5, "serving", 61)];
    model.on(later, lost(vec![silent, service("web", generations)]));
    model.on(later, Input::Key(Key::Up));
    model.on(later, Input::Key(Key::Char('g')));
    shows(&model, (120, 20), "broker-gone");
}

#[test]
fn an_empty_host_says_how_to_begin() {
    let mut model = Model::new(NOW);
    model.on(NOW, seen(Vec::new(), Vec::new()));
    shows(&model, (80, 12), "empty");
}

#[test]
fn many_listeners_are_shown_in_part_and_the_fullest_first() {
    let mut model = reloaded();
    let mut listeners: Vec<_> =
        (0..50).map(|number| listener(&format!("l{number:02}"), number * 2, 1)).collect();
    listeners[7].listening = false;
    listeners[8].exclusive = false;
    (listeners[9].queue, listeners[9].backlog) = (None, None);
    listeners[9].holders.clear();
    model.on(NOW, seen(vec![service("web", vec![generation(5, "serving", 61)])], listeners));
    let keys = [Key::Char('s'), Key::Tab, Key::End, Key::Up, Key::Up, Key::Up];
    for key in [keys.as_slice(), &[Key::Up; 40]].concat() {
        model.on(NOW, Input::Key(key));
    }
    shows(&model, (80, 16), "many-listeners");
    model.on(NOW, Input::Key(Key::End));
    shows(&model, (80, 16), "last-listeners");
    for _ in 0..2 {
        model.on(NOW, Input::Key(Key::Char('s')));
    }
    model.on(NOW, Input::Key(Key::Home));
    for _ in 0..8 {
        model.on(NOW, Input::Key(Key::Down));
    }
    shows(&model, (80, 16), "listeners-by-name");
}

#[test]
fn a_reload_that_fails_is_told_in_haproxys_words() {
    let mut model = reloaded();
    model.on(NOW, Input::Key(Key::Char('r')));
    shows(&model, (80, 24), "reloading");
    let words = "reload of \"web\" failed: generation 6 exited with 1\n\
                 [ALERT] config : parsing [/etc/haproxy/haproxy.cfg:3]: unknown keyword 'nonsense' in 'frontend' section\n\
                 hint: generation 5 still serves; mend the file and reload again\n";
    model.on(NOW, Input::Done(Err(words.to_owned())));
    shows(&model, (80, 24), "failed-reload");
    shows(&model, (40, 10), "failed-reload-small");
}

#[test]
fn a_generation_that_drains_tells_what_keeps_it_and_is_ended_after_a_question() {
    let mut model = reloaded();
    let mut draining = generation(3, "draining", 250);
    draining.kept_by = vec!["10.0.0.7:5000 on web to app/s1".to_owned(), "more".to_owned()];
    let generations = vec![draining, generation(5, "serving", 61)];
    model.on(NOW, seen(vec![service("web", generations)], Vec::new()));
    for _ in 0..2 {
        model.on(NOW, Input::Key(Key::Down));
    }
    shows(&model, (80, 24), "kept");
    model.on(NOW, Input::Key(Key::Char('x')));
    shows(&model, (80, 24), "question");
}

#[test]
fn the_help_names_every_key_and_closes() {
    let mut model = reloaded();
    model.on(NOW, Input::Key(Key::Char('?')));
    insta::assert_snapshot!("help", screen(&model, 80, 24, &ASCII));
    model.on(NOW, Input::Key(Key::Escape));
    assert!(screen(&model, 80, 24, &ASCII).contains("LISTENERS"));
}

#[test]
fn without_utf8_nothing_but_ascii_is_drawn() {
    let shown = screen(&reloaded(), 80, 24, &ASCII);
    assert!(shown.is_ascii(), "{shown}");
    insta::assert_snapshot!("ascii", shown);
}

#[test]
fn no_size_is_too_small_and_no_name_too_strange() {
    let mut model = reloaded();
    let hostile = "\u{1b}[2J\u{7}\r\n\u{202e}\u{6f22}\u{300}".repeat(9);
    let mut strange = service(&hostile, vec![generation(u64::MAX >> 40, "odd", 1)]);
    strange.supervision = Supervision::Silent(hostile.clone());
    let mut bound = listener(&hostile, u32::MAX, 9);
    bound.bound = hostile.clone();
    model.on(NOW, seen(vec![strange, service("web", Vec::new())], vec![bound]));
    model.on(NOW, Input::Happened(vec![event_at(0, "reload-failed", 1, "a\u{1b}[31mb\u{9b}c")]));
    model.on(NOW, Input::Done(Err(hostile)));
    model.on(NOW, Input::Key(Key::Char('g')));
    let widths = (1..=12).chain([39, 40, 41, 55, 56, 57, 71, 72, 73, 80, 99, 100, 101]);
    for (width, height) in widths.flat_map(|width| (1..=16).map(move |height| (width, height))) {
        let shown = screen(&model, width, height, &UNICODE);
        assert!(!shown.replace('\n', "").contains(char::is_control), "{shown:?}");
        model.view.help = !model.view.help;
    }
}
