#!/usr/bin/env python3
"""Reloads in a row under load: what the clients saw, how many sockets there were.

    tests/measure/reloads.py [--count 200] [--rate 5] [--clients 20] [--only VERSION]
"""

from stage import Stage, config, haproxies, isolate, listening, reloading, spread, told

arguments = reloading(__doc__)
isolate()

for version, haproxy in haproxies(arguments.only):
    with Stage() as stage:
        stage.file.write_text(config(1))
        stage.run(haproxy)
        looks = []
        load = stage.load(arguments.clients)
        look = lambda: looks.append(listening())
        times, failed, took = stage.reloads(arguments.count, arguments.rate, config, look)
        report = stage.report(load)
        print(f"haproxy {version}: {arguments.count} reloads in {took:.1f} s under {arguments.clients} clients, "
              f"{len(failed)} of them failed")
        print(f"    {told(report)}")
        print(f"    sockets on the address at every look: at most {max(map(len, looks))}; inodes seen: {len(set().union(*looks))}")
        print(f"    `bindonce reload` took: {spread(times)}", flush=True)
        for said in failed[:3]:
            print(f"    a failed reload said: {said}")
