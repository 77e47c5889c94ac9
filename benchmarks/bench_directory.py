"""One commit into a directory of 100, 1,000, 10,000 or 100,000 keys: a new value for an existing key, chosen at random.

One client, one commit in flight; the directories take turns. ``ratio`` compares the medians of the largest and the
smallest directory. Most of a commit's time is its way to rank 0 and back, so ``service-ratio`` also compares the
processor time of rank 0's process per commit, for the same commits sent by a client of rank 0.
"""

from __future__ import annotations

import random

from common import LEAF, Instance, alternate, cpu_seconds, latencies, median

SIZES = (100, 1_000, 10_000, 100_000)
BURST = 100


def measure(bench) -> None:
    with Instance() as instance:
        handles = {"root": instance.connect(0), "leaf": instance.connect(LEAF)}
        rank0 = handles["root"].broker_pid
        chance = random.Random(7)
        for size in SIZES:
            filled = handles["root"].kvs.commit({f"dir{size}.key{index:06}": index for index in range(size)})
        handles["leaf"].kvs.wait_version(filled.version)
        processor: dict[int, list[float]] = {size: [] for size in SIZES}

        def commits(place: str, size: int) -> list[float]:
            keys = [f"dir{size}.key{chance.randrange(size):06}" for _ in range(BURST)]
            before = cpu_seconds(rank0)
            samples = latencies(lambda i: handles[place].kvs.put(keys[i], i), BURST)
            if place == "root":
                processor[size].append((cpu_seconds(rank0) - before) / BURST)
            return samples

        variants = {}
        for place in handles:
            for size in SIZES:
                commits(place, size)
                variants[f"{place}-{size}"] = lambda place=place, size=size: commits(place, size)
        found = alternate(bench.count(10, 3), variants)
        for name, samples in found.items():
            bench.record(f"directory.{name}", samples)
        for place in handles:
            ratio = median(found[f"{place}-{SIZES[-1]}"]) / median(found[f"{place}-{SIZES[0]}"])
            bench.record(f"directory.ratio-{place}", [ratio])
        bench.record("directory.service-ratio", [median(processor[SIZES[-1]]) / median(processor[SIZES[0]])])
