use std::collections::BTreeMap;

use proptest::prelude::*;

use super::columns::{COLUMNS, SESSIONS};
use super::rows::Values;
use super::*;

/// Output of 2.6.12, with some columns left out. The text of the health check comes from the
/// server.
const ANSWER: &str = "\
# pxname,svname,qcur,scur,slim,stot,bin,status,weight,type,hrsp_2xx,hrsp_5xx,req_tot,last_chk,connect,-,h1_bytes_in,
web,FRONTEND,,3,9985,20,690,OPEN,,0,11,9,20,,,-,41,
app,s1,0,1,,9,34,DOWN,1,2,0,0,9,\"said \"\"no, thanks\"\",\napp,s2,0,1,,9,34,UP,1,2,0,0,9,x\",7,-,0,
app,sock-1,0,1,,9,34,DOWN,1,3,0,0,9,,7,-,0,
app,BACKEND,4,2,999,10,34,DOWN,0,1,0,9,,,8,-,0,

";

fn of(rows: &[(&str, u64)]) -> Counters {
    let row = |(name, count): &(&str, u64)| {
        let mut values = Values::default();
        values.set(SESSIONS, *count);
        values.set(SESSIONS + 1, *count * 100);
        (Row { kind: Kind::Server, proxy: "app".into(), server: (*name).into() }, values)
    };
    Counters(rows.iter().map(row).collect())
}

fn page(counters: &Counters) -> String {
    let mut text = String::new();
    write(&mut text, counters, ("service", "we\"b"));
    text
}

/// The first counter of each row.
fn sessions(counters: &Counters) -> BTreeMap<Row, u64> {
    let rows = counters.0.iter();
    rows.map(|(row, values)| (row.clone(), values.get(SESSIONS).unwrap_or(0))).collect()
}

#[test]
fn an_answer_of_haproxy_becomes_the_names_of_its_exporter() {
    let text = page(&read(ANSWER).expect("a table"));
    for line in [
        "# TYPE haproxy_frontend_http_requests counter",
        "haproxy_frontend_http_requests_total{service=\"we\\\"b\",proxy=\"web\"} 20",
        "haproxy_frontend_http_responses_total{service=\"we\\\"b\",proxy=\"web\",code=\"5xx\"} 9",
        "haproxy_server_connection_attempts_total{service=\"we\\\"b\",proxy=\"app\",server=\"s1\"} 7",
        "haproxy_backend_current_queue{service=\"we\\\"b\",proxy=\"app\"} 4",
    ] {
        assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{line} in {text}");
    }
    assert!(!text.contains("s2") && !text.contains("sock-1"), "{text}");
    assert_eq!(text.matches("# TYPE haproxy_frontend_http_responses ").count(), 1, "{text}");
    assert_eq!(COLUMNS.get(SESSIONS).map(|column| column.name), Some("stot"));
}

#[test]
fn gauges_are_of_those_that_live_and_limits_of_the_one_that_serves() {
    let mut totals = Totals::default();
    for generation in [1, 2, 3] {
        totals.update(generation, read(ANSWER).expect("a table"));
    }
    totals.end(1);
    let text = page(&totals.sum(Some(3)));
    for (name, value) in [("current_sessions", 6), ("limit_sessions", 9985), ("sessions_total", 60)]
    {
        let line =
            format!("haproxy_frontend_{name}{{service=\"we\\\"b\",proxy=\"web\"}} {value}\n");
        assert!(text.contains(&line), "{line} in {text}");
    }
}

#[test]
fn what_began_again_is_added_and_what_is_not_told_any_more_stays() {
    let mut totals = Totals::default();
    totals.update(1, of(&[("a", 10), ("b", 5)]));
    totals.update(1, of(&[("a", 3)]));
    assert_eq!(totals.sum(None), of(&[("a", 13), ("b", 5)]));
    totals.update(1, of(&[("a", 4), ("b", 6)]));
    totals.update(2, of(&[("a", 1)]));
    totals.end_others(&[2].into());
    assert_eq!(totals.sum(None), of(&[("a", 15), ("b", 6)]));
    assert_eq!(totals.gone(), &of(&[("a", 14), ("b", 6)]));
}

#[test]
fn servers_that_come_and_go_are_forgotten_at_some_point() {
    let mut totals = Totals::default();
    totals.update(0, of(&[("stays", 1)]));
    for generation in 1..30 {
        let names: Vec<_> = (0..1000).map(|at| format!("{generation}-{at}")).collect();
        let rows: Vec<_> = names.iter().map(|name| (name.as_str(), 1)).collect();
        totals.update(generation, of(&rows));
        totals.end(generation);
        assert!(totals.gone().rows() <= 21_000);
    }
    assert!(sessions(&totals.sum(None)).keys().any(|row| &*row.server == "stays"));
}

fn rows() -> impl Strategy<Value = Counters> {
    prop::collection::vec(("[ab]", 0_u64..1000), 0..3).prop_map(|rows| {
        of(&rows.iter().map(|(name, count)| (name.as_str(), *count)).collect::<Vec<_>>())
    })
}

proptest! {
    #[test]
    fn no_sum_goes_down(steps in prop::collection::vec((0_u64..3, prop::option::of(rows())), 0..30)) {
        let mut totals = Totals::default();
        for (generation, step) in steps {
            let before = sessions(&totals.sum(None));
            match step {
                Some(now) => totals.update(generation, now),
                None => totals.end(generation),
            }
            let after = sessions(&totals.sum(None));
            prop_assert!(before.iter().all(|(row, count)| after.get(row) >= Some(count)));
        }
    }

    #[test]
    fn a_sum_is_what_was_counted(steps in prop::collection::vec((0_u64..3, 0_u64..9, any::<bool>()), 0..30)) {
        let (mut totals, mut counts, mut all) = (Totals::default(), [0; 3], 0);
        for (generation, more, ends) in steps {
            let count = &mut counts[usize::try_from(generation).expect("small")];
            (*count, all) = (*count + more, all + more);
            totals.update(generation, of(&[("a", *count)]));
            if ends {
                totals.end(generation);
                *count = 0;
            }
            let sum = totals.sum(None);
            prop_assert_eq!(sessions(&sum).values().sum::<u64>(), all);
            prop_assert_eq!(sum, of(&[("a", all)]));
        }
    }

    #[test]
    fn a_table_reads_as_it_was_written(names in prop::collection::btree_set(any::<String>(), 0..4)) {
        let rows: Vec<_> = names.iter().map(|name| (name.as_str(), 7)).collect();
        let counters = of(&rows);
        prop_assert_eq!(read(&counters.table()), Some(counters));
    }

    #[test]
    fn a_name_is_one_label(name in any::<String>()) {
        let text = page(&of(&[(&name, 7)]));
        prop_assert_eq!(text.split('\n').count(), 7, "{}", text);
        let is_whole = |line: &str| line.starts_with('#') || line.contains("\"} 7");
        prop_assert!(text.lines().all(is_whole), "{}", text);
    }

    #[test]
    fn nothing_that_is_said_does_harm(text in any::<String>(), at in 0..ANSWER.len()) {
        let _ = read(&text);
        let _ = read(&format!("# {text}"));
        let _ = read(&format!("{}{text}{}", &ANSWER[..at], &ANSWER[at..]));
        let _ = read(&ANSWER[..at]);
    }
}

/// Output of 3.2.26 for `dump stats-file`, with some columns left out.
const DUMP: &str = "\
#fe guid,stot,bin,rate,hrsp_2xx,conn_tot,
web-fe,7,700,3,5,7,
both,2,20,1,2,2,

#be guid,stot,bin,lastchg,lbtot,
s1,4,40,5,4,
both,1,10,9,1,
unknown,9,9,9,9,
web-fe

#new guid,stot,
web-fe,1000,
";

#[test]
fn what_a_generation_began_with_is_counted_once() {
    let name = |proxy: &str, server: Option<&str>| (proxy.to_owned(), server.map(str::to_owned));
    let guids = [
        ("web-fe", name("web", None)),
        ("both", name("both", None)),
        ("s1", name("app", Some("s1"))),
    ];
    let guids = guids.map(|(guid, names)| (guid.to_owned(), names)).into();
    let preset = preset(DUMP, &guids);
    let text = page(&preset);
    for line in [
        "haproxy_frontend_sessions_total{service=\"we\\\"b\",proxy=\"web\"} 7",
        "haproxy_frontend_http_responses_total{service=\"we\\\"b\",proxy=\"web\",code=\"2xx\"} 5",
        "haproxy_backend_sessions_total{service=\"we\\\"b\",proxy=\"both\"} 1",
        "haproxy_server_loadbalanced_total{service=\"we\\\"b\",proxy=\"app\",server=\"s1\"} 4",
    ] {
        assert_eq!(text.lines().filter(|it| *it == line).count(), 1, "{line} in {text}");
    }
    let mut totals = Totals::default();
    totals.update(1, of(&[("a", 10), ("b", 5)]));
    totals.preset(2, of(&[("a", 10)]));
    // The new generation was asked before the last answer of the old one.
    totals.update(2, of(&[("a", 13), ("b", 1)]));
    totals.update(1, of(&[("a", 11), ("b", 5)]));
    assert_eq!(totals.sum(None), of(&[("a", 14), ("b", 6)]));
    totals.end(1);
    // `clear counters all`: the preset values are no longer included.
    totals.update(2, of(&[("a", 2), ("b", 1)]));
    assert_eq!(totals.sum(None), of(&[("a", 16), ("b", 6)]));
    totals.preset(3, of(&[("a", 2)]));
    totals.end_others(&[2].into());
    assert!(totals.presets().keys().all(|id| *id == 2));
}
