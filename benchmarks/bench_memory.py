"""Memory of rank 0 (VmRSS), of two brokers: with 100,000 small keys, and after 200,000 commits that overwrite them.

The keys are committed at once; the overwrites are commits of one key each, 64 in flight, keys in turn. The default
retention keeps 10,000 versions; see also ``bench_gc``.
"""

from __future__ import annotations

from common import Instance, pipelined, resident_bytes

KEYS = 100_000


def measure(bench) -> None:
    with Instance(2) as instance:
        handle = instance.connect(0)
        handle.kvs.commit({f"memory.key{index:06}": index for index in range(KEYS)})
        bench.record("memory.keys", [resident_bytes(handle.broker_pid)])
        overwrites = bench.count(200_000)
        pipelined(handle, lambda i: handle.kvs.commit_async({f"memory.key{i % KEYS:06}": -i}), overwrites, 64)
        bench.record("memory.overwrites", [resident_bytes(handle.broker_pid)])
        if bench.quick:
            bench.note(f"memory: with --quick {overwrites:,} overwrites")
