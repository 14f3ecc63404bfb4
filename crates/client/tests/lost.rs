//! A generation whose broker is lost hears what the next broker sends together with its first
//! reply.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bindonce::Generation;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers `join` on two connections. The first ends when its generation serves; on the second, the
/// reply and the message to retire come at once.
fn brokers(name: &str) -> (PathBuf, JoinHandle<()>) {
    let path = std::env::temp_dir().join(format!("bindonce-{name}-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).expect("bind");
    let told = r#"{"jsonrpc":"2.0","method":"retire","params":[{"service":"edge","generation":1,"successor":2}]}"#;
    let replies: [Vec<String>; 2] = [
        vec![reply(1, "starting"), reply(2, "serving")],
        vec![reply(1, "serving") + told + "\n", reply(2, "draining")],
    ];
    let server = thread::spawn(move || {
        for replies in replies {
            let (stream, _) = listener.accept().expect("accept");
            let mut requests = BufReader::new(&stream).lines();
            for reply in replies {
                let request = requests.next().expect("a request").expect("text");
                assert!(request.contains("\"join\""), "{request}");
                (&stream).write_all(reply.as_bytes()).expect("write");
            }
        }
    });
    (path, server)
}

fn reply(id: u64, state: &str) -> String {
    let result = format!(r#"{{"joined":true,"generation":1,"state":"{state}"}}"#);
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#) + "\n"
}

#[test]
fn the_blocking_generation_hears_the_next_broker_out() {
    let (path, server) = brokers("blocking");
    let mut generation =
        Generation::join_at(&path, &"edge".parse().expect("a name")).expect("join");
    generation.ready(Some(Instant::now() + PATIENCE)).expect("ready");
    assert!(generation.retired(Some(Instant::now() + PATIENCE)).expect("retired"), "in time");
    assert_eq!(generation.stopped().expect("stopped"), bindonce::Stopped::Retired);
    server.join().expect("the broker");
    std::fs::remove_file(path).expect("remove");
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn the_generation_for_tokio_hears_the_next_broker_out() {
    use bindonce::aio::Generation;

    let (path, server) = brokers("tokio");
    let mut generation =
        Generation::join_at(&path, &"edge".parse().expect("a name")).await.expect("join");
    generation.ready().await.expect("ready");
    let retired = tokio::time::timeout(PATIENCE, generation.retired()).await;
    retired.expect("in time").expect("retired");
    assert_eq!(generation.stopped().await.expect("stopped"), bindonce::Stopped::Retired);
    server.join().expect("the broker");
    std::fs::remove_file(path).expect("remove");
}
