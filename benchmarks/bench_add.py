"""Contended counter: 1, 8, 64 and 256 clients, each with one ``h.kvs.add`` to the same key in flight.

One process per broker (8 brokers) runs the clients of that broker; each client has its own connection and session.
One process per client would measure how 256 processes share two cores. The first process is three hops below rank 0,
the last at rank 0. In a round every client adds repeatedly for a fixed time. The sums are checked: sorted, each
differs from the previous one by the amount that its client added. So every addition got its own prefix sum, none was
lost, and none was applied twice.

Messages: the messages with additions that rank 0's broker received, from its statistics, per addition. Its own
clients send one message per addition. ``links`` counts the messages over rank 0's links, per addition by a client of
another broker. Without combining in the tree both ratios would be 1.

For comparison, Redis ``INCRBY`` by the same processes, if its server is installed: one Unix socket connection per
client, to one process on one host that keeps a number, without versions, history or watches. The variants take turns,
and the same check is made.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections import deque
from collections.abc import Callable

from bench_peers import Redis
from common import BROKERS, Instance, alternate, clock, fluxmpi, scratch
from team import Team

COUNTS = (1, 8, 64, 256)

Part = tuple[float, float, list[tuple[int, int, float]]]
"""Start and end time of one process, and for each of its additions: the sum, the amount, the seconds."""


def measure(bench) -> None:
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(Instance())
        observer = instance.connect(0)
        uris = [instance.uri(BROKERS - 1 - number) for number in range(BROKERS)]
        redis_path = str(stack.enter_context(scratch()) / "redis.sock")
        team = stack.enter_context(Team(uris))
        kinds = {"": (adds, "bench.hot")}
        if shutil.which("redis-server"):
            stack.enter_context(Redis(redis_path))
            kinds["redis-"] = (increments, redis_path)
        else:
            bench.note("add: `redis-server` is not installed (Debian package redis-server)")
        # A first round is not counted: processes that are still starting would take processor time from the others.
        totals = {kind: _sum_after(team.run(*task, BROKERS, 0.1), 0) for kind, task in kinds.items()}

        def round_of(kind: str, count: int) -> list[float]:
            task, where = kinds[kind]
            clients, children = _messages(observer)
            parts = [part for part in team.run(task, where, count, 0.5 if bench.quick else 1.0) if part is not None]
            clients, children = (
                after - before for after, before in zip(_messages(observer), (clients, children), strict=True)
            )
            totals[kind] = _sum_after(parts, totals[kind])
            made = sum(len(additions) for _, _, additions in parts)
            rate = made / (max(end for _, end, _ in parts) - min(begin for begin, _, _ in parts))
            found.setdefault(f"{kind}rate-{count}", []).append(rate)
            found.setdefault(f"{kind}latency-{count}", []).extend(took for *_, own in parts for _, _, took in own)
            if not kind:
                found.setdefault(f"messages-{count}", []).append((clients + children) / made)
                found.setdefault(f"links-{count}", []).append(children / (made - clients))
            return [rate]

        variants: dict[str, Callable[[], list[float]]] = {
            f"{kind}{count}": lambda kind=kind, count=count: round_of(kind, count) for kind in kinds for count in COUNTS
        }
        alternate(bench.count(8, 2), variants)
        value = observer.kvs.get("bench.hot", fresh=True)
        assert value == totals[""], f"the key has the value {value}, but {totals['']} was added"
    for count in COUNTS:
        for name in ("rate", "latency", "messages", "links", "redis-rate", "redis-latency"):
            if f"{name}-{count}" in found:
                bench.record(f"add.{name}-{count}", found[f"{name}-{count}"])


def adds(uri: str, number: int, barrier, key: str, count: int, seconds: float) -> Part | None:
    """Add repeatedly, as one process of a round. Return None if the process has no client."""
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(fluxmpi.connect(uri)) for _ in range(number, count, BROKERS)]
        starts = [lambda amount, kvs=handle.kvs: kvs.add_async(key, amount).get for handle in handles]
        return _add_repeatedly(number, barrier, seconds, starts)


def increments(_uri: str, number: int, barrier, path: str, count: int, seconds: float) -> Part | None:
    with contextlib.ExitStack() as stack:
        starts = []
        for _ in range(number, count, BROKERS):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(path)
            starts.append(lambda amount, connection=connection: _increment(connection, amount))
        return _add_repeatedly(number, barrier, seconds, starts)


def _increment(connection: socket.socket, amount: int) -> Callable[[], int]:
    text = b"%d" % amount
    connection.sendall(b"*3\r\n$6\r\nINCRBY\r\n$3\r\nhot\r\n$%d\r\n%s\r\n" % (len(text), text))

    def receive_sum() -> int:
        answer = connection.recv(64)
        assert answer.startswith(b":"), answer
        assert answer.endswith(b"\r\n"), answer
        return int(answer[1:])

    return receive_sum


def _add_repeatedly(
    number: int, barrier, seconds: float, starts: list[Callable[[int], Callable[[], int]]]
) -> Part | None:
    """``starts``: for each client a function that sends an addition and returns a function that waits for its sum."""
    made: list[tuple[int, int, float]] = []
    barrier.wait()
    if not starts:
        return None
    begin = now = clock()
    in_flight = deque()
    for index, start in enumerate(starts):
        amount = 1 + (number + index) % 5
        in_flight.append((start, amount, clock(), start(amount)))
    while in_flight:
        start, amount, since, wait = in_flight.popleft()
        total = wait()
        now = clock()
        made.append((total, amount, now - since))
        if now < begin + seconds:
            in_flight.append((start, amount, now, start(amount)))
    return begin, now, made


def _sum_after(parts: list[Part], total: int) -> int:
    """Check that every addition got its own prefix sum after ``total``, and return the final sum."""
    for made, amount in sorted((made, amount) for _, _, additions in parts for made, amount, _ in additions):
        total += amount
        assert made == total, f"an addition of {amount} got the sum {made}, the next sum is {total}"
    return total


def _messages(handle) -> tuple[int, int]:
    """Return the messages with additions that rank 0 received from its clients, and from its children."""
    numbers = handle.rpc("stats.get", target=0)["kvs"]
    return int(numbers["adds_from_clients"]), int(numbers["adds_from_children"])
