"""Reads from the client's cache, and as the broker answers them.

repeated   one key of 8 B, repeatedly, at rank 0 and at the leaf: no request is sent
neighbour  keys of one directory of 1,000 in turn, all read before
absent     a key of that directory that does not exist
snapshot   one key at a snapshot, repeatedly
asked      one key repeatedly, by a handle without the root page: a request and a response over the socket each time
changed    one key of that directory, after each commit of another key of it at rank 0: the new nodes are requested
linear     one key with ``fresh=True``: the version is requested from rank 0 each time
page       the cost of one version for the broker's root page: the record, its way to the driver, and the write
fresh      a key committed at rank 0 just before: the leaf has the version (``wait_version``) and reads the key first
cold       an existing key; before each read the caches of the client, of the leaf and of the brokers between it and
           rank 0 are dropped, so that every node of the path and the value are loaded from rank 0

The keys of fresh and cold are in a directory of 1,000 other keys. Values are 8 B or 64 KiB, each different.
"""

from __future__ import annotations

import os

from common import LEAF, Instance, alternate, clock, latencies, scratch

from fluxmpi.drivers.page import RootPageWriter
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import PAGE, control

PATH = (LEAF, 3, 1)
SIZES = (8, 65536)


CALLS = 2000


def each(action) -> list[float]:
    """Return the seconds of one call, averaged over CALLS: reading the clock would cost a tenth of a call."""
    action(0)  # warm-up: caches the nodes
    begin = clock()
    for index in range(CALLS):
        action(index)
    return [(clock() - begin) / CALLS]


def page() -> list[float]:
    with scratch() as folder:
        shown = RootPageWriter(str(folder / "roots.0"), "bench", 0)

        def version(number: int) -> None:
            shown.step(control("page.root", RootInfo("primary", number, b"r" * 32, 1.0), PAGE))
            shown.flush()

        samples = each(version)
        shown.close()
    return samples


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
                leaf.kvs.drop_cache()
                begin = clock()
                leaf.kvs.get(f"get.d.cold{size}")
                samples.append(clock() - begin)
            return samples

        def changed() -> list[float]:
            samples = []
            for index in range(20):
                leaf.kvs.wait_version(root.kvs.put("get.d.changing", index).version)
                begin = clock()
                leaf.kvs.get("get.d.old0500")
                samples.append(clock() - begin)
            return samples

        reader, asking = instance.connect(LEAF), instance.connect_without_root_page(LEAF)
        at = reader.kvs.snapshot()
        for index in range(1000):
            reader.kvs.get(f"get.d.old{index:04}")
        variants = {
            "repeated-root": lambda: each(lambda _: root.kvs.get("get.same")),
            "repeated-leaf": lambda: each(lambda _: reader.kvs.get("get.same")),
            "neighbour-leaf": lambda: each(lambda index: reader.kvs.get(f"get.d.old{index % 1000:04}")),
            "absent-leaf": lambda: each(lambda _: reader.kvs.get("get.d.none", None)),
            "snapshot-leaf": lambda: each(lambda _: reader.kvs.get("get.same", at=at)),
            "asked-leaf": lambda: latencies(lambda _: asking.kvs.get("get.same"), 200),
            "linear-leaf": lambda: latencies(lambda _: leaf.kvs.get("get.same", fresh=True), 50),
            "changed-leaf": changed,
            "page": page,
        }
        for size in SIZES:
            variants[f"fresh-{size}"] = lambda size=size: fresh(size)
            variants[f"cold-{size}"] = lambda size=size: cold(size)
        for name, samples in alternate(bench.count(10, 3), variants).items():
            bench.record(f"get.{name}", samples)
