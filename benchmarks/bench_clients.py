"""Eight clients in eight processes, one per broker, each committing to its own key with one commit in flight.

All start together (a barrier) and commit for a fixed time. A sample is the sum of their commits per second in one
round.
"""

from __future__ import annotations

from common import BROKERS, Instance, clock, fluxmpi
from team import Team

ROUND_S = 1.0


def commits(uri: str, number: int, barrier) -> int:
    """Commit for one round, as one process. Return the number of commits."""
    with fluxmpi.connect(uri) as handle:
        key = f"clients.c{number}"
        handle.kvs.put(key, 0)
        barrier.wait()
        end = clock() + ROUND_S
        count = 0
        while clock() < end:
            handle.kvs.put(key, count)
            count += 1
        barrier.wait()
        return count


def measure(bench) -> None:
    with Instance() as instance, Team([instance.uri(rank) for rank in range(BROKERS)]) as team:
        rounds = [sum(team.run(commits)) / ROUND_S for _ in range(bench.count(8, 3))]
        bench.record("clients.commit", rounds)
