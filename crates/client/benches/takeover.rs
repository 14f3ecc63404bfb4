//! How long it takes a generation to take over from the one before it.
//!
//! ```sh
//! cargo bench -p bindonce --features tokio
//! ```
//!
//! 200 times, with the blocking handle and with tokio's, a new process that has joined and claimed
//! says that it is ready, while the one before it waits for connections or for its retirement,
//! as the examples do. Measured on the clock that all processes of a machine share:
//!
//! - from the call of `ready()` in the new one until the old one knows that it is to retire;
//! - from there until `ready()` has returned in the new one: so long nobody accepts, and
//!   connections wait in the queue;
//! - both together: how long `ready()` takes.
//!
//! The broker and every generation are processes of their own (this binary again).

#![allow(missing_docs)]
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{self, BufRead, BufReader, Lines, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use bindonce::{Accepted, Claim, Client, Stopped, aio};
use rustix::time::{ClockId, clock_gettime};

/// How often one generation takes over from another.
const ROUNDS: usize = 200;

/// The most that the median from `ready()` to the retirement may be.
const GOAL: Duration = Duration::from_millis(5);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["broker", path] => serve(Path::new(path)),
        ["blocking", path] => blocking(Path::new(path)),
        ["tokio", path] => runtime()?.block_on(tokio(Path::new(path))),
        _ => measure(),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A real broker, until its standard input ends.
fn serve(path: &Path) -> Outcome<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        let _ = stop.send(());
    });
    let shutdown = async {
        let _ = stopped.await;
    };
    Ok(runtime()?.block_on(bindonce_broker::run(bindonce_broker::Config::new(path), shutdown))?)
}

fn claim() -> [Claim; 1] {
    ["web=127.0.0.1:0".into()]
}

/// One generation, which says when it called `ready`, when that returned, and when it was retired.
fn blocking(path: &Path) -> Outcome<()> {
    let mut generation = bindonce::Generation::join_at(path, &"bench".parse()?)?;
    let lease = generation.claim(&claim())?.pop().ok_or("a claim gives a lease")?;
    let acceptor = lease.into_tcp_acceptor()?;
    wait_for_go()?;
    let called = now()?;
    generation.ready(None)?;
    say(&[called, now()?])?;
    loop {
        match acceptor.accept_or_stop(&generation, None)? {
            Accepted::Stopped if generation.has_retired()? => break,
            _ => {}
        }
    }
    let retired = now()?;
    drop(acceptor);
    ended(generation.stopped()?)?;
    say(&[retired])
}

/// The same with tokio.
async fn tokio(path: &Path) -> Outcome<()> {
    let mut generation = aio::Generation::join_at(path, &"bench".parse()?).await?;
    let lease = generation.claim(&claim()).await?.pop().ok_or("a claim gives a lease")?;
    let listener = lease.into_tokio_tcp_listener()?;
    wait_for_go()?;
    let called = now()?;
    generation.ready().await?;
    say(&[called, now()?])?;
    loop {
        tokio::select! {
            biased;
            retired = generation.retired() => { retired?; break }
            accepted = listener.accept() => drop(accepted?),
        }
    }
    let retired = now()?;
    drop(listener);
    ended(generation.stopped().await?)?;
    say(&[retired])
}

fn ended(stopped: Stopped) -> Outcome<()> {
    match stopped {
        Stopped::Retired => Ok(()),
        Stopped::Recalled => Err("the next generation has gone".into()),
    }
}

/// Says that the start is done, and waits until it is this one's turn to be ready.
fn wait_for_go() -> Outcome<()> {
    say(&[])?;
    match io::stdin().read_line(&mut String::new())? {
        0 => Err("the measurement has ended".into()),
        _ => Ok(()),
    }
}

/// The time on the clock that every process of this machine shares.
fn now() -> Outcome<Duration> {
    Ok(Duration::try_from(clock_gettime(ClockId::Monotonic))?)
}

fn say(times: &[Duration]) -> Outcome<()> {
    let times: Vec<String> = times.iter().map(|time| time.as_nanos().to_string()).collect();
    let mut output = io::stdout().lock();
    writeln!(output, "{}", times.join(" "))?;
    Ok(output.flush()?)
}

/// A process of this binary, until it is dropped.
struct Peer {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(role: &str, socket: &Path) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(role).arg(socket).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("it is piped")?).lines();
        Ok(Self { input: child.stdin.take(), child, output })
    }

    fn go(&mut self) -> Outcome<()> {
        Ok(self.input.as_ref().ok_or("it is piped")?.write_all(b"\n")?)
    }

    /// The times on the next line.
    fn hear<const N: usize>(&mut self) -> Outcome<[Duration; N]> {
        let line = self.output.next().ok_or("a generation has ended")??;
        let times: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        let times: Vec<Duration> = times?.into_iter().map(Duration::from_nanos).collect();
        times.try_into().map_err(|_| format!("not {N} times: {line:?}").into())
    }

    fn ends(mut self) -> Outcome<()> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a generation: {status}").into()) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory, until it is dropped.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn measure() -> Outcome<()> {
    let name = format!("bindonce-bench-takeover-{}", std::process::id());
    let directory = Directory(std::env::temp_dir().join(name));
    std::fs::create_dir(&directory.0)?;
    let socket = directory.0.join("socket");
    let _broker = Peer::start("broker", &socket)?;
    let (mut client, _) = Client::reconnect(&socket, &[], None, Duration::from_secs(20))?;
    client.claim(&claim())?;
    let mut met = true;
    for (role, what) in
        [("blocking", "bindonce::Generation"), ("tokio", "bindonce::aio::Generation")]
    {
        met &= rounds(role, what, &socket)?;
    }
    if met { Ok(()) } else { Err("the goal is missed".into()) }
}

/// Prints what the generations of one kind took; whether it is little enough.
fn rounds(role: &str, what: &str, socket: &Path) -> Outcome<bool> {
    let (mut told, mut nobody, mut whole) = (Times::default(), Times::default(), Times::default());
    let begun = Instant::now();
    let mut old = Peer::start(role, socket)?;
    old.hear::<0>()?;
    old.go()?;
    old.hear::<2>()?;
    for _ in 0..ROUNDS {
        let mut new = Peer::start(role, socket)?;
        new.hear::<0>()?;
        new.go()?;
        let [called, let_in] = new.hear()?;
        let [retired] = old.hear()?;
        old.ends()?;
        told.0.push(retired.checked_sub(called).ok_or("retired before anybody was ready")?);
        nobody.0.push(let_in.checked_sub(retired).ok_or("two accepted at the same time")?);
        whole.0.push(let_in.saturating_sub(called));
        old = new;
    }
    println!("{what}, {ROUNDS} times in {:.1} s", begun.elapsed().as_secs_f64());
    let median = told.print("from ready() in the new one to retired() in the old one");
    nobody.print("from there until the new one accepts");
    whole.print("ready(), from call to return");
    let verdict = if median <= GOAL { "met" } else { "MISSED" };
    println!("    goal: retired() after {} ms at most (median): {verdict}\n", GOAL.as_millis());
    Ok(median <= GOAL)
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    /// Prints them in short, and gives the median.
    fn print(mut self, what: &str) -> Duration {
        self.0.sort_unstable();
        let at = |part: f64| {
            // Far below the range in which a float is exact.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let index = (self.0.len() as f64 * part) as usize;
            self.0.get(index.min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (median, most) = (at(0.5), at(0.99));
        println!(
            "    {what:<56} median {:.2} ms, 99 % {:.2} ms, longest {:.2} ms",
            ms(median),
            ms(most),
            ms(at(1.0))
        );
        median
    }
}
