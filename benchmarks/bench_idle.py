"""The cost of an idle broker.

CPU: processor time of all threads of each of 8 brokers over 20 s, from the kernel's accounting, 3 s after an RPC
through the whole tree; no client is connected. Memory: VmRSS of the same brokers afterwards. One sample per broker.
"""

from __future__ import annotations

import time

from common import LEAF, Instance, clock, cpu_seconds, resident_bytes

WARM_UP_S = 3.0
IDLE_S = 20.0


def measure(bench) -> None:
    with Instance() as instance:
        pids = instance.pids()
        handle = instance.connect(LEAF)
        handle.rpc("ping.ping", [0], target=0)
        handle.close()
        time.sleep(WARM_UP_S)
        before = [cpu_seconds(pid) for pid in pids]
        begin = clock()
        time.sleep(IDLE_S if not bench.quick else 5.0)
        elapsed = clock() - begin
        after = [cpu_seconds(pid) for pid in pids]
        bench.record("idle.cpu", [(b - a) / elapsed for a, b in zip(before, after, strict=True)])
        bench.record("idle.memory", [resident_bytes(pid) for pid in pids])
