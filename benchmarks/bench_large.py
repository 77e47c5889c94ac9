"""One value of 256 MiB, read by eight ranks at once, one per broker; compared with ``MPI_Bcast``.

bcast    a collective over all ranks, from rank 0's buffer into new buffers; the slowest rank
get      ``h.kvs.get`` of a numpy array that was put before. Only rank 0's store has it. Each of the eight ranks gets
         its array as memory that its broker filled and verified; the slowest rank
touch    then one byte of each page of it is read, as a program would
ratio    get over bcast, of the same round
again    the same ``get`` once more: the broker has the value

The ranks are ``large_ranks.py`` under ``mpirun``. They sleep while they wait for one another: a rank that spins in
MPI occupies a processor that a broker needs, and would distort the figures. ``MPI_Bcast`` itself is not changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from common import BROKERS, Instance, environment

SIZE_MIB = 256
ROUNDS = 7
RANKS = Path(__file__).resolve().parent / "large_ranks.py"
RUN_S = 600.0


def measure(bench) -> None:
    rounds = bench.count(ROUNDS, 2)
    with Instance() as instance:
        folder = instance.directory.removeprefix("local://")
        words = ["mpirun", "-n", str(BROKERS), sys.executable, str(RANKS), folder, str(SIZE_MIB), str(rounds)]
        done = subprocess.run(words, env=environment(), stdout=subprocess.PIPE, text=True, timeout=RUN_S, check=True)
        handle = instance.connect(0)
        loaded = [handle.rpc("stats.get", target=rank)["content"]["loaded"] for rank in range(1, BROKERS)]
    samples = json.loads(done.stdout.splitlines()[-1])
    bench.record("large.bcast", samples["bcast"])
    bench.record("large.get", samples["get"])
    bench.record("large.touch", samples["touch"])
    bench.record("large.again", samples["again"])
    ratios = [get / bcast for get, bcast in zip(samples["get"], samples["bcast"], strict=True)]
    bench.record("large.ratio", ratios)
    pieces = (rounds + 1) * SIZE_MIB
    bench.note(
        f"large: the links of the tree carried {min(loaded) / pieces:.2f} to {max(loaded) / pieces:.2f} times the value"
    )
