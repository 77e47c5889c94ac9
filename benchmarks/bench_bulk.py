"""100,000 small keys in one commit at rank 0, up to its response; then a listing of all names.

The time of building the transaction is included.

Each round uses a new directory and gives one sample.

Also the effect on other clients: while 100,000 keys are applied (by one commit, in the else branch of a transaction,
by a fence of eight, or as the root of a new namespace), two clients in separate processes commit one key every two
milliseconds, one to another namespace and one to the same. Commits to one namespace are ordered, so the second client
waits for the large one; the first should not. The longest turn is reported by rank 0's loop (``stats.get``), in an
instance that has done nothing else.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable

from common import Instance, environment, once

KEYS = 100_000
MEMBERS = 8

OTHER = """
import select, sys, time
import fluxmpi
with fluxmpi.connect(sys.argv[1]) as h:
    longest, number = 0.0, 0
    while True:
        begin = time.perf_counter()
        h.kvs.namespace(sys.argv[2]).put("other." + sys.argv[2], number)
        longest = max(longest, time.perf_counter() - begin)
        number += 1
        time.sleep(0.002)
        if select.select([sys.stdin], [], [], 0)[0]:
            if not sys.stdin.readline():
                break
            print(longest, flush=True)
            longest = 0.0
"""


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
    for kind, do in (("commit", _commit), ("else", _else), ("fence", _fence), ("namespace", _namespace)):
        _meanwhile(bench, kind, do)


def _list(handle, key: str) -> None:
    found = sum(1 for _ in handle.kvs.ls(key))
    assert found == KEYS, f"{found} names listed, {KEYS} were committed"


def _meanwhile(bench, kind: str, do: Callable[[Instance, int], None]) -> None:
    """Repeat the operation beside two other clients. Record their longest commits per round, and the longest turn."""
    with Instance(2) as instance, contextlib.ExitStack() as stack:
        handle = instance.connect(0)
        handle.kvs.namespaces.create("other")
        do(instance, 0)  # warm-up, not measured
        others = [stack.enter_context(_Other(instance.uri(0), namespace)) for namespace in ("other", "primary")]
        longest: list[tuple[float, float]] = []
        for turn in range(1, 1 + bench.count(5, 2)):
            for other in others:
                other.longest()
            do(instance, turn)
            longest.append((others[0].longest(), others[1].longest()))
        turn_s = handle.rpc("stats.get", target=0)["loop"]["longest_turn_s"]
    bench.record(f"bulk.other-{kind}", [other for other, _ in longest])
    bench.record(f"bulk.same-{kind}", [same for _, same in longest])
    bench.record(f"bulk.turn-{kind}", [turn_s])


class _Other:
    """A client in its own process that commits repeatedly, in a ``with`` block."""

    def __init__(self, uri: str, namespace: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, uri, namespace],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
        )  # fmt: skip

    def longest(self) -> float:
        """Return the seconds of its longest commit since the previous call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> _Other:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate("")


def _values(turn: int, first: int = 0, count: int = KEYS) -> dict[str, int]:
    return {f"bulk{turn}.key{index:06}": index for index in range(first, first + count)}


def _commit(instance: Instance, turn: int) -> None:
    instance.connect(0).kvs.commit(_values(turn))


def _else(instance: Instance, turn: int) -> None:
    with instance.connect(0).kvs.txn() as txn:
        txn.when_exists("nothing")
        with txn.otherwise():
            for key, value in _values(turn).items():
                txn.put(key, value)
    assert not txn.succeeded


def _fence(instance: Instance, turn: int) -> None:
    """Contribute from rank 1, so that all data passes the link to rank 0."""
    futures = []
    for member in range(MEMBERS):
        txn = instance.connect(1).kvs.txn()
        for key, value in _values(turn, member * (KEYS // MEMBERS), KEYS // MEMBERS).items():
            txn.put(key, value)
        futures.append(txn.fence_async(f"bulk{turn}", MEMBERS))
    for future in futures:
        future.get()


def _namespace(instance: Instance, turn: int) -> None:
    handle = instance.connect(0)
    if not turn:
        handle.kvs.commit(_values(0))
    # A directory that was verified once is not verified again, so change a key to get a new one.
    root = handle.kvs.put("bulk0.key000000", -turn)
    handle.kvs.namespaces.create(f"bulk{turn}", at=root)
