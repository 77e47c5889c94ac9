"""A million overwrites of 1,000 keys: memory of rank 0 over the run, and what another client's commits feel of the collections.

The overwrites are commits of one key each, 64 in flight, keys in turn, each value new. Meanwhile another client, in a process of
its own, commits one key again and again, and tells the longest that one took. With matplotlib, the memory over the run is drawn
into ``gc.png`` beside this file.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from common import Future, Instance, clock, environment, pipelined, resident_bytes

KEYS = 1000
STEPS = 50
"""Points of the curve."""

OTHER = """
import json, sys, time
import fluxmpi
with fluxmpi.connect(sys.argv[1]) as h:
    took = []
    print("ready", flush=True)
    end = float("inf")
    import select
    while not select.select([sys.stdin], [], [], 0)[0]:
        begin = time.perf_counter()
        h.kvs.commit({"other": len(took)})
        took.append(time.perf_counter() - begin)
        time.sleep(0.002)
    took.sort()
    print(json.dumps([took[len(took) // 2], took[-1]]), flush=True)
"""


def measure(bench) -> None:
    with Instance(2) as instance:
        handle = instance.connect(0)
        pid = handle.hello.pid
        handle.kvs.commit({f"gc.key{index:04}": index for index in range(KEYS)})
        total = bench.count(1_000_000)
        curve = [(0, resident_bytes(pid))]
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, instance.uri(1)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        begin = clock()
        for step in range(STEPS):
            first = step * (total // STEPS)  # no value comes twice: equal nodes are stored once

            def send(index: int, first: int = first) -> Future:
                return handle.kvs.commit_async({f"gc.key{(first + index) % KEYS:04}": first + index})

            pipelined(handle, send, total // STEPS, 64)
            curve.append(((step + 1) * (total // STEPS), resident_bytes(pid)))
        rate = total / (clock() - begin)
        median, longest = json.loads(other.communicate("stop\n")[0])
        status = handle.kvs.gc(run=False)
        bench.record("gc.memory_begin", [curve[len(curve) // 4][1]])
        bench.record("gc.memory_end", [curve[-1][1]])
        bench.record("gc.memory_most", [max(size for _, size in curve)])
        bench.record("gc.rate", [rate])
        bench.record("gc.other_median", [median])
        bench.record("gc.other_longest", [longest])
        bench.record("gc.slice_longest", [status.longest_slice_s])
        bench.note(f"gc: {status.cycles} collections freed {status.freed_bytes >> 20} MiB; {status.bytes >> 20} MiB are kept")
        _draw(curve)


def _draw(curve: list[tuple[int, int]]) -> None:
    with contextlib.suppress(ImportError):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        pyplot.figure(figsize=(7, 3.5))
        pyplot.plot([at for at, _ in curve], [size / 2**20 for _, size in curve])
        pyplot.ylim(bottom=0)
        pyplot.xlabel("overwrites")
        pyplot.ylabel("rank 0, MiB")
        pyplot.tight_layout()
        pyplot.savefig(Path(__file__).with_name("gc.png"))
