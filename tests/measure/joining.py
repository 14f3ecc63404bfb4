#!/usr/bin/env python3
"""Joining and claiming a listener through the library for C, compared with Rust: both from one
release build, in turns, at one broker.

    tests/measure/joining.py [--broker PATH] [--rounds 20] [--times 100]

Builds both in a temporary directory. Prints the medians and the ratio of the rounds' medians.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
HERE = pathlib.Path(__file__).resolve().parent / "joining"


def build(directory):
    subprocess.run([ROOT / "deploy/capi", directory], check=True)
    library = directory / "usr/lib"
    subprocess.run(["cc", "-O2", "-o", directory / "c", HERE / "joining.c", f"-I{directory}/usr/include", f"-L{library}",
                    f"-Wl,-rpath,{library}", "-lbindonce"], check=True)
    release = TARGET / "release"
    # The same build of the library that the library for C uses.
    rlib = max((release / "deps").glob("libbindonce-*.rlib"), key=lambda path: path.stat().st_mtime)
    subprocess.run(["rustc", "-O", "--edition", "2024", "-o", directory / "rust", HERE / "joining.rs",
                    "--extern", f"bindonce={rlib}", "-L", f"dependency={release}/deps"], check=True)
    print(f"libbindonce.so.1: {(library / 'libbindonce.so.1').stat().st_size:,} bytes")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--broker", default=str(TARGET / "release/bindonce"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--times", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bindonce-joining-") as name:
        directory = pathlib.Path(name)
        build(directory)
        path = f"{name}/bindonce.sock"
        broker = subprocess.Popen([options.broker, "serve", "--socket", path], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            ping = [options.broker, "ping", "--socket", path]
            while subprocess.run(ping, capture_output=True, check=False).returncode != 0:
                if time.monotonic() > deadline:
                    raise SystemExit("the broker does not answer")
            took = {"c": [], "rust": []}
            for _ in range(options.rounds):
                for program, medians in took.items():
                    done = subprocess.run([directory / program, str(options.times)], env={**os.environ, "BINDONCE_SOCKET": path},
                                          check=True, capture_output=True, text=True)
                    medians.append(statistics.median(map(float, done.stdout.split())))
        finally:
            broker.terminate()
            broker.wait()
    c, rust = (statistics.median(took[program]) for program in ("c", "rust"))
    ratio = statistics.median(one / other for one, other in zip(took["c"], took["rust"]))
    print(f"join and claim, medians of {options.rounds} rounds of {options.times}: C {c:.1f} us, Rust {rust:.1f} us, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
