"""Reading, as the broker answers it.

repeated   one key of 8 B, again and again, at rank 0 and at the leaf: a request and an answer over the socket each time
fresh      a key that was committed at rank 0 just before: the leaf has the version (``wait_version``), and reads it first
cold       a key that was there before; just before each read the caches of the leaf and of the brokers between it and rank 0
           are dropped, so that every node of the way and the value come from rank 0

The keys of fresh and cold stand in a directory of 1,000 others. Values are 8 B or 64 KiB, each different.
"""

from __future__ import annotations

import os

from common import LEAF, Instance, alternate, clock, latencies

PATH = (LEAF, 3, 1)
SIZES = (8, 65536)


def measure(bench) -> None:
    with Instance() as instance:
        root, leaf = instance.connect(0), instance.connect(LEAF)
        filled = root.kvs.commit({f"get.d.old{index:04}": index for index in range(1000)})
        for size in SIZES:
            filled = root.kvs.commit({f"get.d.cold{size}": os.urandom(size), "get.same": b"12345678"})
        leaf.kvs.wait_version(filled.version)
        fresh_keys = iter(range(10**9))

        def fresh(size: int) -> list[float]:
            samples = []
            for _ in range(20):
                key = f"get.d.new{next(fresh_keys)}"
                leaf.kvs.wait_version(root.kvs.put(key, os.urandom(size)).version)
                begin = clock()
                leaf.kvs.get(key)
                samples.append(clock() - begin)
            return samples

        def cold(size: int) -> list[float]:
            samples = []
            for _ in range(20):
                for rank in PATH:
                    root.content.dropcache(rank)
                begin = clock()
                leaf.kvs.get(f"get.d.cold{size}")
                samples.append(clock() - begin)
            return samples

        variants = {
            "repeated-root": lambda: latencies(lambda _: root.kvs.get("get.same"), 200),
            "repeated-leaf": lambda: latencies(lambda _: leaf.kvs.get("get.same"), 200),
        }
        for size in SIZES:
            variants[f"fresh-{size}"] = lambda size=size: fresh(size)
            variants[f"cold-{size}"] = lambda size=size: cold(size)
        for name, samples in alternate(bench.count(10, 3), variants).items():
            bench.record(f"get.{name}", samples)
