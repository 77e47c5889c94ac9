"""Commits of one client, each of one key with a small value, at rank 0 and at the leaf. None is durable.

one    one in flight: the next starts when the version of the previous one is readable; 64 keys in turn
64     64 in flight, 64 keys in turn: a key is reused only after its previous commit was answered, so all commits in
       flight are disjoint and may share a version
fresh  64 in flight, each a new key: the directory grows (it is empty at the start of each round)
same   64 in flight, all to one key: no two share a version
"""

from __future__ import annotations

from common import LEAF, Instance, alternate, latencies, pipelined

KEYS = [f"commit.k{index:02}" for index in range(64)]


def measure(bench) -> None:
    with Instance() as instance:
        handles = {"root": instance.connect(0), "leaf": instance.connect(LEAF)}
        count = bench.count(6_000, 3_000)
        fresh_directories = iter(range(10**6))

        def fresh(handle) -> list[float]:
            base = f"fresh{next(fresh_directories)}"
            return [pipelined(handle, lambda i: handle.kvs.commit_async({f"{base}.k{i}": i}), count, 64)]

        def same(handle) -> list[float]:
            return [pipelined(handle, lambda i: handle.kvs.commit_async({"commit.same": i}), count // 2, 64)]

        def in_turn(handle) -> list[float]:
            return [pipelined(handle, lambda i: handle.kvs.commit_async({KEYS[i % 64]: i}), count, 64)]

        def one(handle) -> list[float]:
            return latencies(lambda i: handle.kvs.put(KEYS[i % 64], i), 200)

        variants = {}
        for place, handle in handles.items():
            one(handle)
            variants[f"one-{place}"] = lambda h=handle: one(h)
            variants[f"64-{place}"] = lambda h=handle: in_turn(h)
            variants[f"fresh-{place}"] = lambda h=handle: fresh(h)
        variants["same-root"] = lambda: same(handles["root"])
        for name, samples in alternate(bench.count(10, 3), variants).items():
            bench.record(f"commit.{name}", samples)
