"""A million overwrites of 1,000 keys: memory of rank 0 during the run, and the effect of collections on another client.

The overwrites are commits of one key each, 64 in flight, keys in turn, each value new. Meanwhile another client, in its
own process, commits one key repeatedly and reports the longest commit. A run at full length draws the measured memory
into ``memory.svg`` beside this file, if matplotlib is installed (``pip install '.[bench]'``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, NamedTuple

import table
from common import Future, Instance, clock, environment, pipelined, resident_bytes

KEYS = 1000
STEPS = 50
"""Points of the curve."""

MEMORY_TARGET = table.BY_KEY["gc.memory_end"].limit


class Point(NamedTuple):
    """Memory of rank 0 after a number of overwrites, and the blobs in it, in bytes.

    ``live`` and ``history`` are those of the last finished collection; ``rest`` was stored since then, or is garbage.
    """

    overwrites: int
    memory: int
    live: int
    history: int
    rest: int


def _point(handle, overwrites: int) -> Point:
    found = handle.kvs.gc(run=False)
    live, history = min(found.live_bytes, found.bytes), found.history_bytes
    history = min(history, found.bytes - live)
    return Point(overwrites, resident_bytes(handle.broker_pid), live, history, found.bytes - live - history)


OTHER = """
import json, sys, time
from typing import Any

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
        handle.kvs.commit({f"gc.key{index:04}": index for index in range(KEYS)})
        total = bench.count(1_000_000)
        curve = [_point(handle, 0)]
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, instance.uri(1)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip
        assert other.stdout is not None
        other.stdout.readline()
        begin = clock()
        for step in range(STEPS):
            first = step * (total // STEPS)  # no value is used twice: equal nodes are stored once

            def send(index: int, first: int = first) -> Future[Any]:
                return handle.kvs.commit_async({f"gc.key{(first + index) % KEYS:04}": first + index})

            pipelined(handle, send, total // STEPS, 64)
            curve.append(_point(handle, (step + 1) * (total // STEPS)))
        rate = total / (clock() - begin)
        median, longest = json.loads(other.communicate("stop\n")[0])
        status = handle.kvs.gc(run=False)
        bench.record("gc.memory_begin", [curve[len(curve) // 4].memory])
        bench.record("gc.memory_end", [curve[-1].memory])
        bench.record("gc.memory_most", [max(point.memory for point in curve)])
        bench.record("gc.rate", [rate])
        bench.record("gc.other_median", [median])
        bench.record("gc.other_longest", [longest])
        bench.record("gc.slice_longest", [status.longest_slice_s])
        bench.note(
            f"gc: {status.cycles} collections freed {status.freed_bytes >> 20} MiB; {status.bytes >> 20} MiB are kept"
        )
    if bench.quick:
        bench.note("gc: memory.svg is not redrawn with --quick")
        return
    try:
        _draw(curve)
    except ImportError:
        bench.note(
            f"gc: {table.MEMORY_PLOT.name} is of an earlier run: matplotlib is not installed (pip install '.[bench]')"
        )


def _draw(curve: list[Point]) -> None:
    """Draw the memory curve. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "fluxmpi", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.0))
    across = [point.overwrites for point in curve]
    mib = {name: [getattr(point, name) / 2**20 for point in curve] for name in Point._fields[1:]}
    axes.stackplot(
        across, mib["live"], mib["history"], mib["rest"],
        labels=["blobs: live", "blobs: retained versions", "blobs: stored since the last collection, or garbage"],
        colors=["#2a6f97", "#8fbfda", "#e9c46a"],
    )  # fmt: skip
    axes.plot(across, mib["memory"], color="#222222", linewidth=1.5, label="memory of rank 0 (VmRSS)")
    if MEMORY_TARGET is not None:
        axes.axhline(MEMORY_TARGET / 2**20, color="#b00020", linewidth=0.8, linestyle="--", label="target at the end")
    axes.set(xlim=(0, across[-1]), ylim=(0, None), xlabel=f"overwrites of {KEYS:,} keys", ylabel="MiB")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(table.MEMORY_PLOT, metadata={"Date": None})
    pyplot.close(figure)
