#!/usr/bin/env python3
"""Programs as Debian ships them under `bindonce run --intercept`, and nothing else: reloads under load, with the
sockets that listen seen throughout; and what the filter costs a program.

    tests/measure/intercept.py [--times 20] [--clients 8] [--calls 2000000] [--throughput] [--pairs 7] [--only NAME]
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

from stage import PORT, Stage, ask, binary, haproxies, isolate, listening, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=20)
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("--calls", type=int, default=10_000_000, help="of each system call in one sample")
parser.add_argument("--throughput", action="store_true", help="only that: about a minute for each version of haproxy, and for nginx")
parser.add_argument("--pairs", type=int, default=7, help="of each program, for the throughput: more, where the machine is busy")
parser.add_argument("--only", default="", help="only programs whose name begins with this, and not what the filter costs")
arguments = parser.parse_args()

# Serves until it is told to stop, and finishes what is connected.
SERVER = """
import http.server, os, signal, sys, threading
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('x-generation', os.environ['BINDONCE_GENERATION'])
        self.send_header('content-length', '0')
        self.end_headers()
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads, request_queue_size = False, 511
server = Server(('127.0.0.1', int(sys.argv[1])), Answer)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""
NODE = """
const server = require('http').createServer((q, r) => {
  r.setHeader('x-generation', process.env.BINDONCE_GENERATION); r.setHeader('connection', 'close'); r.end();
}).listen(%d, '127.0.0.1');
process.on('SIGTERM', () => server.close());
"""
RUST = """
use std::{env, io::{Read, Write}, net::TcpListener};
fn main() {
    let listener = TcpListener::bind(("127.0.0.1", %d)).unwrap();
    let tag = env::var("BINDONCE_GENERATION").unwrap();
    for stream in listener.incoming() {
        let (Ok(mut stream), tag) = (stream, tag.clone()) else { continue };
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            let mut part = [0; 4096];
            while !seen.ends_with(b"\\r\\n\\r\\n") {
                match stream.read(&mut part) { Ok(n) if n > 0 => seen.extend_from_slice(&part[..n]), _ => return }
            }
            let _ = write!(stream, "HTTP/1.0 200 OK\\r\\nx-generation: {tag}\\r\\ncontent-length: 0\\r\\n\\r\\n");
        });
    }
}
"""
# Every goroutine that runs for 10 ms is interrupted by a signal, also in bind(2).
GO = """
package main
import ("context"; "net/http"; "os"; "os/signal"; "syscall")
func main() {
    tag := os.Getenv("BINDONCE_GENERATION")
    server := http.Server{Addr: "127.0.0.1:%d", Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
        w.Header().Set("x-generation", tag); w.Header().Set("connection", "close")
    })}
    go func() { for {} }()
    told, done := make(chan os.Signal, 1), make(chan bool)
    signal.Notify(told, syscall.SIGTERM)
    go func() { <-told; server.Shutdown(context.Background()); done <- true }()
    if server.ListenAndServe() != http.ErrServerClosed { os.Exit(1) }
    <-done
}
"""


def programs(directory):
    """(name, options, command) of what is installed."""
    def write(name, text):
        (directory / name).write_text(text)
        return str(directory / name)

    yield "python", [], [sys.executable, write("server.py", SERVER), str(PORT)]
    if shutil.which("nginx"):
        kinds = "".join(f"{kind}_temp_path {directory}/nginx-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        configuration = write("nginx.conf", (
            f"daemon off; pid {directory}/nginx.pid; worker_processes 2;\n"
            f"events {{ worker_connections 1000; }}\nhttp {{ access_log off; keepalive_timeout 0; {kinds}\n"
            f"server {{ listen {PORT}; location / {{ add_header x-generation TAG; return 200 ok; }} }} }}\n"))
        tagged = f"{configuration}-${{BINDONCE_GENERATION:-0}}"
        script = f"sed s/TAG/${{BINDONCE_GENERATION:-0}}/ {configuration} > {tagged}; exec nginx -e stderr -c {tagged}"
        yield "nginx", ["--retire-signal", "SIGQUIT"], ["sh", "-c", script]
    if shutil.which("apache2"):
        modules = "/usr/lib/apache2/modules"
        (directory / "a").write_text("ok")
        yield "apache2", ["--retire-signal", "SIGWINCH"], ["apache2", "-DFOREGROUND", "-f", write("apache.conf", (
            f"ServerRoot {directory}\nPidFile {directory}/pid.${{BINDONCE_GENERATION}}\nListen {PORT}\nServerName x\n"
            f"LoadModule mpm_event_module {modules}/mod_mpm_event.so\nLoadModule authz_core_module {modules}/mod_authz_core.so\n"
            f"LoadModule headers_module {modules}/mod_headers.so\nLoadModule dir_module {modules}/mod_dir.so\nDirectoryIndex a\n"
            f"Header always set x-generation ${{BINDONCE_GENERATION}}\n"
            f"DocumentRoot {directory}\nErrorLog {directory}/apache.log\nUser www-data\nGroup www-data\nKeepAlive off\n"))]
    haproxy = shutil.which("haproxy", path=os.environ["PATH"] + ":/usr/sbin")
    if haproxy:
        # As any other program: it binds by itself, and nothing of it is read. It does not listen(2) on what listens already: it says READY=1.
        yield "haproxy", ["--kind", "program", "--retire-signal", "SIGUSR1"], [haproxy, "-Ws", "-f", write("plain.cfg", (
            "global\n    maxconn 1000\ndefaults\n    mode http\n    timeout client 9s\n"
            f"frontend web\n    bind 127.0.0.1:{PORT}\n    http-request set-var(txn.me) env(BINDONCE_GENERATION)\n"
            "    http-request return status 200 content-type text/plain hdr x-generation %[var(txn.me)] string ok\n"))]
    if shutil.which("node"):
        yield "node", [], ["node", write("server.js", NODE % PORT)]
    if shutil.which("varnishd"):
        vcl = write("varnish.vcl", (
            'vcl 4.1; import std; backend none none; sub vcl_recv { return (synth(200)); }\n'
            'sub vcl_synth { set resp.http.x-generation = std.getenv("BINDONCE_GENERATION"); set resp.http.connection = "close"; }\n'))
        yield "varnish", [], ["sh", "-c", f"exec varnishd -F -n {directory}/varnish-$BINDONCE_GENERATION -a 127.0.0.1:{PORT} -T none -f {vcl}"]
    if shutil.which("gunicorn"):
        write("app.py", (
            "import os\n"
            "def app(environ, start):\n"
            "    start('200 OK', [('x-generation', os.environ['BINDONCE_GENERATION']), ('content-length', '2')])\n"
            "    return [b'ok']\n"))
        yield "gunicorn", [], ["gunicorn", "--workers", "2", "--chdir", str(directory), "--bind", f"127.0.0.1:{PORT}", "app:app"]
    if shutil.which("caddy"):
        caddy = write("Caddyfile", (
            f"{{\n admin off\n auto_https off\n grace_period 10s\n storage file_system {directory}/caddy\n log {{\n level ERROR\n }}\n}}\n"
            f"http://:{PORT} {{\n bind 127.0.0.1\n header x-generation {{$BINDONCE_GENERATION}}\n header connection close\n"
            f" respond ok\n}}\n"))
        yield "caddy", [], ["env", f"HOME={directory}", "caddy", "run", "--config", caddy, "--adapter", "caddyfile"]
    if shutil.which("go"):
        write("server.go", GO % PORT)
        environment = {**os.environ, "CGO_ENABLED": "0", "GOCACHE": "/tmp/bindonce-go-cache", "HOME": str(directory), "GO111MODULE": "off"}
        go = ["go", "build", "-o", f"{directory}/go-server", f"{directory}/server.go"]
        if subprocess.run(go, capture_output=True, env=environment).returncode == 0:
            yield "go (static)", [], [f"{directory}/go-server"]
    if shutil.which("rustc"):
        # Static: it has no libc of the system's that could be replaced.
        source = write("server.rs", RUST % PORT)
        static = ["-C", "target-feature=+crt-static", "-O", "-o", f"{directory}/server"]
        if subprocess.run(["rustc", *static, source], capture_output=True).returncode == 0:
            yield "rust (static)", [], [f"{directory}/server"]


def watch(seen, ends):
    while not ends.is_set():
        seen.add(tuple(listening()))


def reloads(name):
    with Stage() as stage:
        os.chmod(stage.directory, 0o755)
        options, command = next(found[1:] for found in programs(stage.directory) if found[0] == name)
        run = [binary("bindonce"), "run", "--name", "web", "--intercept", *options, "--", *command]
        stage.supervisor = stage.start("run", run)
        wait_for(f"{name} to serve", stage.serving)
        seen, ends = set(), threading.Event()
        thread = threading.Thread(target=watch, args=(seen, ends))
        thread.start()
        load = stage.load(arguments.clients)
        times, failed = [], []
        for _ in range(arguments.times):
            time.sleep(0.3)  # load between two
            begun = time.monotonic()
            done = stage.bindonce("reload", "--name", "web")
            times.append(time.monotonic() - begun)
            if done.returncode != 0:
                failed.append(done.stdout + done.stderr)
        time.sleep(0.3)
        report = stage.report(load)
        ends.set()
        thread.join()
        print(f"{name}: {len(times)} reloads, {len(failed)} failed, median {statistics.median(times) * 1000:.0f} ms; "
              f"listening sockets: {max(map(len, seen))} at most, {len({inode for one in seen for inode in one})} in all\n"
              f"    {told(report)}", flush=True)
        for text in failed[:3]:
            print(f"    {text.strip()}")
        stage.end(stage.supervisor)


def alone(name):
    """The same program stopped and started as often without bindonce: what it fails beside the connections that are refused
    meanwhile is its own share."""
    with Stage(broker=False) as stage:
        os.chmod(stage.directory, 0o755)
        options, command = next(found[1:] for found in programs(stage.directory) if found[0] == name)
        retire = signal.Signals[options[-1]] if "--retire-signal" in options else signal.SIGTERM

        def start(generation):
            environment = {**stage.environment, "BINDONCE_GENERATION": str(generation)}
            process = stage.start("alone", command, environment, start_new_session=True)
            wait_for(f"{name} to answer", lambda: " 200 " in ask()[0])
            return process

        process = start(1)
        load = stage.load(arguments.clients)
        for generation in range(2, arguments.times + 2):
            time.sleep(0.3)
            process.send_signal(retire)
            process.wait(60)
            process = start(generation)
        time.sleep(0.3)
        report = stage.report(load)
        own = report["failed"] - report["refused"]
        print(f"{name} without bindonce: {report['connections']:,} connections, {report['refused']} refused, {own} failed otherwise", flush=True)
        stage.end(process)


COST = """
use std::{hint::black_box, net::TcpListener, process, thread, time::{Duration, Instant}};
fn main() {
    let listener = TcpListener::bind(("127.0.0.1", %d)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let time = |call: &dyn Fn()| {
        let begun = Instant::now();
        for _ in 0..%d { call(); }
        begun.elapsed().as_nanos() as f64 / %d as f64
    };
    let getpid = time(&|| { black_box(process::id()); });
    let accept = time(&|| { let _ = black_box(listener.accept()); });
    let begun = Instant::now();
    for _ in 0..500 { black_box(TcpListener::bind(("127.0.0.1", 0)).unwrap()); }
    let bind = begun.elapsed().as_nanos() as f64 / 500.0;
    println!("cost {getpid} {accept} {bind}");
    thread::sleep(Duration::from_secs(1000));
}
"""


def cost():
    """System calls with the filter and without, in turns."""
    if not shutil.which("rustc"):
        return print("cost: not measured, there is no rustc")
    plain, filtered = [], []
    with Stage() as stage:
        calls = arguments.calls
        (stage.directory / "cost.rs").write_text(COST % (PORT, calls, calls))
        program = f"{stage.directory}/cost"
        subprocess.run(["rustc", "-O", "-o", program, f"{program}.rs"], check=True)

        def measure(name, command, into):
            process = stage.start(name, command)
            line = wait_for("its cost", lambda: next((one for one in stage.said(name).splitlines() if one.startswith("cost")), None), 300)
            into.append([float(word) for word in line.split()[1:]])
            stage.end(process)

        for turn in range(5):
            measure(f"plain{turn}", [program], plain)
            run = [binary("bindonce"), "run", "--name", "web", "--intercept", "--", program]
            measure(f"filtered{turn}", run, filtered)
            stage.bindonce("release", f"127.0.0.1:{PORT}")
    for at, what in ((0, "getpid(2)"), (1, "accept4(2) that finds nothing"), (2, "a listener at port 0, bound and closed")):
        without, with_it = (min(one[at] for one in times) for times in (plain, filtered))
        print(f"{what}: {without:,.0f} ns without the filter, {with_it:,.0f} ns with it (best of 5): "
              f"ratio {without / with_it:.3f}", flush=True)


def pairs(name, rate):
    """New connections a second with the filter and without it, one after the other, each as often the first of the two. The ratio is the
    median of those of the pairs: what else the machine does changes slowly, and meets both."""
    rates = {False: [], True: []}
    for turn in range(arguments.pairs):
        for filtered in sorted(rates, reverse=turn % 2 == 1):
            with Stage() as stage:
                rates[filtered].append(rate(stage, filtered))
    ratios = sorted(one / other for one, other in zip(rates[True], rates[False]))
    print(f"{name}: {statistics.median(rates[False]):,.0f} connections a second without the filter, {statistics.median(rates[True]):,.0f} "
          f"with it: ratio {statistics.median(ratios):.3f} (median of {len(ratios)} pairs; {ratios[0]:.3f} to {ratios[-1]:.3f})", flush=True)


def throughput():
    """nginx with inherited descriptors and intercepted: the same socket. haproxy with the filter that sees its bind(2), and without:
    a word of the configuration makes the difference."""
    inherits = ["--listen", f"web=:{PORT}", "--variable", "NGINX={fds:;};", "--ready-delay", "300ms"]

    def nginx(stage, filtered):
        os.chmod(stage.directory, 0o755)
        command = next(found[2] for found in programs(stage.directory) if found[0] == "nginx")
        how = ["--intercept"] if filtered else inherits
        run = [binary("bindonce"), "run", "--name", "web", "--retire-signal", "SIGQUIT", *how, "--"]
        stage.start("nginx", [*run, *command])
        wait_for("nginx to answer", lambda: " 200 " in ask()[0])
        return stage.over(stage.load(arguments.clients, duration="2s"))["per_second"]

    def haproxy(stage, filtered):
        word = "" if filtered else "insecure-fork-wanted"
        stage.file.write_text(f"global\n  {word}\ndefaults\n  mode http\n  timeout client 9s\n"
                              f"frontend web\n  bind :{PORT}\n  http-request return status 200\n")
        stage.run(program)
        return stage.over(stage.load(arguments.clients, duration="2s"))["per_second"]

    for version, program in haproxies():
        pairs(f"haproxy {version}", haproxy)
    if shutil.which("nginx"):
        pairs("nginx", nginx)


isolate(alone=True)
if not arguments.only:
    throughput()
    if arguments.throughput:
        sys.exit()
    cost()
with Stage(broker=False) as place:
    names = [one[0] for one in programs(place.directory)]
for one in names:
    if one.startswith(arguments.only):
        reloads(one)
        alone(one)
