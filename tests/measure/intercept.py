#!/usr/bin/env python3
"""Programs as Debian ships them, unmodified, under `bindonce run --intercept`: reloads under load
while the listening sockets are watched; and what the filter costs a program.

    tests/measure/intercept.py [--times 20] [--clients 8] [--calls 10000000] [--throughput] [--only NAME]
"""

import argparse
import itertools
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

from stage import PORT, ROOT, Stage, ask, binary, haproxies, isolate, listening, told, wait_for

parser = argparse.ArgumentParser()
parser.add_argument("--times", type=int, default=20)
parser.add_argument("--clients", type=int, default=8)
parser.add_argument("--calls", type=int, default=10_000_000, help="of each system call in one sample")
parser.add_argument("--throughput", action="store_true", help="only that: about two minutes for each version of haproxy, and for nginx")
parser.add_argument("--starts", type=int, default=8, help="of each program, for the throughput")
parser.add_argument("--slices", type=int, default=12, help="of each server in one start, for the throughput: a multiple of 6")
parser.add_argument("--slice", type=float, default=0.2, help="seconds of one")
parser.add_argument("--only", default="", help="only programs whose name begins with this, and not what the filter costs")
arguments = parser.parse_args()

# Serves until SIGTERM, and finishes its open connections.
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
# Go interrupts every goroutine that runs for 10 ms with a signal, also in bind(2).
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
    """(name, options, command) of each installed program."""
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
        # Like any other program: it binds by itself, and bindonce does not read its configuration.
        # It does not listen(2) on a socket that listens already; it says READY=1.
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
        # Static: it has no system libc that could be replaced.
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
    """The same program, stopped and started as often without bindonce: its failures other than
    refused connections are its own share."""
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


def middle(ratios):
    """The median, and its 95 % confidence interval (order statistics)."""
    ratios, reach = sorted(ratios), 0.98 * len(ratios) ** 0.5
    low, high = max(0, int(len(ratios) / 2 - reach)), min(len(ratios) - 1, math.ceil(len(ratios) / 2 + reach))
    return f"{statistics.median(ratios):.3f} ({ratios[low]:.3f} to {ratios[high]:.3f})"


def compare(name, servers):
    """Compares three servers on one processor: without bindonce, as a generation with its filter,
    and without bindonce again as the control. They are asked in short slices by turns, each as
    often before and after each other one: other work on the machine affects all alike. `servers`
    starts them on a stage and returns their pids. The ratios compare slices that follow each other,
    over a few starts, because no two processes of one program are equally fast."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    kinds = {"k": "on connections that stay open", "c": "on a new connection for each request"}
    rates, costs = ({mode: [[], [], []] for mode in kinds} for _ in range(2))
    for _ in range(arguments.starts):
        with Stage() as stage:
            os.sched_setaffinity(0, {first})
            pids = servers(stage)
            os.sched_setaffinity(0, {second})
            program = f"{stage.directory}/slices"
            subprocess.run(["cc", "-O2", "-o", program, ROOT / "tests/measure/slices.c"], check=True)
            load = stage.start("slices", [program, *(str(PORT + at) for at in range(3))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
            order = [at for turn in itertools.permutations(range(3)) for at in turn] * (arguments.slices // 6)
            for mode in kinds:
                for turn, at in enumerate([*range(3), *order]):
                    before = spent(pids[at])
                    load.stdin.write(f"{at} {arguments.slice} {mode}\n")
                    load.stdin.flush()
                    requests, took = map(int, load.stdout.readline().split())
                    if turn >= 3:  # the first of each warms it up
                        rates[mode][at].append(requests / took * 1e9)
                        costs[mode][at].append((spent(pids[at]) - before) / requests)
            os.sched_setaffinity(0, {first, second})
    for mode, how in kinds.items():
        rate, cost = rates[mode], costs[mode]
        speed, share = ([middle([theirs / plain for plain, theirs in zip(rate[0], rate[at])]) for at in (1, 2)],
                        [middle([plain / theirs for plain, theirs in zip(cost[0], cost[at])]) for at in (1, 2)])
        each, busy = statistics.median(cost[0]), statistics.median(rate * cost for rate, cost in zip(rate[0], cost[0]))
        print(f"{name}, {how}: {statistics.median(rate[0]):,.0f} requests a second and {each / 1000:.2f} us of its processor for each without bindonce, "
              f"which is busy for {busy / 1e7:.0f} %. With the filter, median of {len(rate[0])} pairs of slices and where it lies with 95 %:\n"
              f"    ratio of requests a second {speed[0]}; without twice: {speed[1]}\n"
              f"    ratio of processor time for each {share[0]}; without twice: {share[1]}", flush=True)


def spent(pid):
    """Nanoseconds of processor time that a process has used."""
    threads = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


def throughput():
    """[`compare`]s each program plain and intercepted; haproxy with the filter of hold and net."""
    def three(stage, run, file, text, command, who):
        pids = []
        for at in range(3):
            own = stage.directory / f"{at}-{file}"
            own.write_text(text(stage.directory, PORT + at))
            under = [binary("bindonce"), "run", "--name", "web", *run, "--"] if at == 1 else []
            process = stage.start(f"server{at}", [*under, *command(own)], start_new_session=True)
            wait_for("it to answer", lambda: " 200 " in ask(port=PORT + at)[0])
            pids.append(who(wait_for("it to serve", stage.serving)[1] if under else process.pid))
        return pids

    def of_nginx(directory, port):
        kinds = "".join(f"{kind}_temp_path {directory}/{port}-{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        return (f"daemon off; pid {directory}/{port}.pid; worker_processes 1;\nevents {{ worker_connections 1000; }}\n"
                f"http {{ access_log off; keepalive_timeout 1h; keepalive_requests 1000000000; {kinds}\n"
                f"server {{ listen {port}; location / {{ return 200 ok; }} }} }}\n")

    def of_haproxy(_, port):
        return (f"global\n  nbthread 1\ndefaults\n  mode http\n  timeout client 1h\nfrontend web\n  bind :{port}\n"
                f"  http-request return status 200 content-type text/plain string ok\n")

    def child(pid):
        return int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    for version, program in (found for found in haproxies() if f"haproxy {found[0]}".startswith(arguments.only)):
        compare(f"haproxy {version}", lambda stage: three(
            stage, [], "haproxy.cfg", of_haproxy, lambda file: [program, "-db", "-f", file], lambda pid: pid))
    if shutil.which("nginx") and "nginx".startswith(arguments.only):
        compare("nginx", lambda stage: three(
            stage, ["--intercept", "--retire-signal", "SIGQUIT"], "nginx.conf", of_nginx, lambda file: ["nginx", "-e", "stderr", "-c", file], child))


isolate(alone=True)
if arguments.throughput or not arguments.only:
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
