"""RPC: a client of the leaf calls ``ping.ping`` of rank 0 with an 8-byte request, over 1, 2 and 3 hops.

One in flight: requests back to back, and each after 20 ms without any activity. 64 and 1,000 in flight: a new request
for each response that is taken, from one client, in ``handle.batch()``. The instances of 2, 4 and 8 brokers run side
by side and take turns; the others sleep.
"""

from __future__ import annotations

import contextlib

from common import Instance, alternate, latencies, pipelined

LEAVES = {2: 1, 4: 3, 8: 7}
QUIET_S = 0.020


def measure(bench) -> None:
    with contextlib.ExitStack() as stack:
        handles = {}
        for size, leaf in LEAVES.items():
            instance = stack.enter_context(Instance(size))
            handles[size] = instance.connect(leaf)
        root = instance.connect(0)

        def ask(handle):
            return lambda index: handle.rpc("ping.ping", [index], target=0)

        def ask_async(handle):
            return lambda index: handle.rpc_async("ping.ping", [index], target=0)

        for handle in handles.values():
            latencies(ask(handle), 200)
        variants = {"local": lambda: latencies(ask(root), 200)}
        for size, handle in handles.items():
            variants[f"busy-{size}"] = lambda h=handle: latencies(ask(h), 200)
            variants[f"quiet-{size}"] = lambda h=handle: latencies(ask(h), bench.count(20, 5), QUIET_S)
            variants[f"64-{size}"] = lambda h=handle: [pipelined(h, ask_async(h), bench.count(10_000, 4_000), 64)]
            variants[f"1000-{size}"] = lambda h=handle: [pipelined(h, ask_async(h), bench.count(20_000, 8_000), 1000)]
        for name, samples in alternate(bench.count(10, 3), variants).items():
            bench.record(f"rpc.{name}", samples)
