"""Fences of 8 and of 32 processes, spread evenly over 8 brokers, each process contributing one key of 512 B.

Time: the processes pass 100 fences one after another. No process leaves a fence before all have entered it, so the
period at one process is the time of a fence, from the last entry to the next. Samples are all periods of process 0.
The rounds of 8 and 32, with distinct and with equal values, take turns; the table has the distinct ones.

Processor time: of all brokers together, and of all these processes together, per fence of distinct values.

Bytes: what all brokers sent to one another over MPI per fence, from their transport's counters, for all-distinct and
for all-equal values.
"""

from __future__ import annotations

import time

from common import BROKERS, Instance, alternate, clock, cpu_seconds, fluxmpi, median
from team import Team

VALUE_BYTES = 512


def fences(uri: str, number: int, barrier, name: str, size: int, count: int, equal: bool) -> tuple[list[float], float]:
    """Pass ``count`` fences after a first one, as one process. Return the periods, and the processor time."""
    samples = []
    with fluxmpi.connect(uri) as handle:
        barrier.wait()
        used = time.process_time()
        for index in range(count + 1):
            begin = clock()
            value = f"{0 if equal else number}-{index}".ljust(VALUE_BYTES, ".").encode()
            handle.kvs.fence(f"{name}.{index}", size, {f"fence.{size}.k{number}": value})
            samples.append(clock() - begin)
        used = time.process_time() - used
    return samples[1:], used


def measure(bench) -> None:
    with Instance() as instance:
        observer = instance.connect(0)
        names = iter(range(10**6))
        pids = instance.pids()
        sent: dict[str, list[float]] = {}
        with Team(_uris(instance, 8)) as eight, Team(_uris(instance, 32)) as thirty_two:

            def measured(team: Team, size: int, equal: bool):
                count = bench.count(100, 30)
                before = _bytes_sent(observer)
                used = sum(map(cpu_seconds, pids))
                found = team.run(fences, f"bench{next(names)}", size, count, equal)
                if not equal:
                    used = sum(map(cpu_seconds, pids)) - used
                    sent.setdefault(f"cpu-brokers-{size}", []).append(used / (count + 1))
                    sent.setdefault(f"cpu-processes-{size}", []).append(sum(own for _, own in found) / (count + 1))
                after = _bytes_sent(observer)
                if before is not None and after is not None:
                    sent.setdefault(f"bytes-{'equal' if equal else 'distinct'}-{size}", []).append(
                        (after - before) / (count + 1)
                    )
                return found[0][0]

            variants = {
                f"{size}{'-equal' if equal else ''}": lambda team=team, size=size, equal=equal: measured(
                    team, size, equal
                )
                for team, size in ((eight, 8), (thirty_two, 32))
                for equal in (False, True)
            }
            found = alternate(bench.count(8, 2), variants)
        for size in (8, 32):
            bench.record(f"fence.{size}", found[str(size)])
            bench.note(f"fence of {size} with equal values: {median(found[f'{size}-equal']) * 1e3:.2f} ms")
        for name, samples in sent.items():
            bench.record(f"fence.{name}", samples)
        if not any(name.startswith("bytes") for name in sent):
            bench.note("fence: `stats.get` has no transport counters, so the bytes on the links were not measured")


def _uris(instance: Instance, count: int) -> list[str]:
    return [instance.uri(number % BROKERS) for number in range(count)]


def _bytes_sent(handle) -> float | None:
    """Return the bytes that all brokers sent to one another, or None without transport counters."""
    total = 0.0
    for rank in range(handle.size):
        numbers = handle.rpc("stats.get", target=rank).get("transport")
        if numbers is None:
            return None
        total += numbers["bytes_sent"]
    return total
