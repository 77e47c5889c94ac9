"""The ranks of ``bench_large``: ``mpirun -n N python large_ranks.py FOLDER MIB ROUNDS``.

Rank 0 prints the samples as JSON.

The first round is a warm-up and is not counted.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy
from mpi4py import MPI

import fluxmpi

WORLD = MPI.COMM_WORLD
RANK = WORLD.rank
PAUSE_S = 0.002
KEY = "large.value"

clock = time.perf_counter


def meet() -> None:
    """Wait until all ranks have arrived. They sleep meanwhile; the final barrier is short."""
    request = WORLD.Ibarrier()
    while not request.Test():
        time.sleep(PAUSE_S)
    WORLD.Barrier()


def slowest(seconds: float) -> float:
    meet()
    return WORLD.allreduce(seconds, MPI.MAX)


def timed(action):
    begin = clock()
    result = action()
    return clock() - begin, result


def values(size: int) -> numpy.ndarray:
    """Return new data each time: an existing value would not be transferred."""
    return numpy.frombuffer(os.urandom(1 << 20) * (size >> 20), dtype="<u8") + numpy.arange(size // 8, dtype="<u8")


def broadcast(size: int) -> float:
    buffer = values(size) if RANK == 0 else numpy.empty(size // 8, dtype="<u8")
    meet()
    seconds, _ = timed(lambda: WORLD.Bcast([buffer, MPI.BYTE], 0))
    return slowest(seconds)


def read(handle: fluxmpi.Handle, size: int) -> dict[str, float]:
    version = handle.kvs.put(KEY, values(size)).version if RANK == 0 else 0
    meet()
    handle.kvs.wait_version(WORLD.bcast(version))
    meet()
    get, touch = _get(handle, size)
    again, _ = _get(handle, size)
    if RANK == 0:
        for rank in range(WORLD.size):
            handle.content.dropcache(rank)
    return {"get": get, "touch": touch, "again": again}


def _get(handle: fluxmpi.Handle, size: int) -> tuple[float, float]:
    """Return the seconds of the slowest rank's get, and of reading one element of each page of the array."""
    seconds, array = timed(lambda: handle.kvs.get(KEY))
    get = slowest(seconds)
    assert array.nbytes == size
    seconds, seen = timed(lambda: int(array[:: 4096 // 8].sum(dtype="<u8")))
    assert len(set(WORLD.allgather(seen))) == 1, "two ranks got different values"
    return get, slowest(seconds)


def main() -> None:
    folder, size, rounds = sys.argv[1], int(sys.argv[2]) << 20, int(sys.argv[3])
    samples: dict[str, list[float]] = {"bcast": [], "get": [], "touch": [], "again": []}
    with fluxmpi.connect(f"local://{folder}/broker.{RANK}.sock") as handle:
        for number in range(rounds + 1):
            found = {"bcast": broadcast(size), **read(handle, size)}
            for name, sample in found.items() if number else ():
                samples[name].append(sample)
        meet()
    if RANK == 0:
        os.write(1, f"{json.dumps(samples)}\n".encode())


if __name__ == "__main__":
    main()
