"""100,000 small keys in one commit at rank 0, from building the transaction to the answer; then all their names listed there.

A new directory in each round; one sample per round.
"""

from __future__ import annotations

from common import Instance, once

KEYS = 100_000


def measure(bench) -> None:
    with Instance() as instance:
        handle = instance.connect(0)
        commits, listings = [], []
        for turn in range(bench.count(5, 2)):
            values = {f"bulk{turn}.key{index:06}": index for index in range(KEYS)}
            commits.append(once(lambda values=values: handle.kvs.commit(values)))
            listings.append(once(lambda turn=turn: _list(handle, f"bulk{turn}")))
        bench.record("bulk.commit", commits)
        bench.record("bulk.list", listings)


def _list(handle, key: str) -> None:
    found = sum(1 for _ in handle.kvs.ls(key))
    assert found == KEYS, f"{found} names listed, {KEYS} were committed"
