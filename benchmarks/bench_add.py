"""A hot counter: 1, 8, 64 and 256 clients, each with one ``h.kvs.add`` to the same key in flight.

One process at each of 8 brokers has the clients of that broker, each a connection and a session of its own; as many processes
as clients would measure how two cores are shared by 256 processes. The first one is three hops below rank 0, the last at rank
0. In a round each client adds again and again for a while, and what all of them got is checked: in the order of the sums,
each differs from the one before by the amount that its client added, so every addition got a prefix sum of its own, and none
was lost or made twice.

Messages: what rank 0's broker received with additions, by its statistics, for each that was made. Its own clients send it one
each; what came over its links, for each addition by a client of another broker, is told beside it. Without combining in the tree
both would be 1.

Beside it, where its server is installed, Redis with ``INCRBY`` by the same processes, on one Unix socket connection for each
client: one process that holds a number, on one host, and no version, history or watcher of it. All take turns, and the same check
is made.
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
"""When a process began and ended, and of each of its additions: the sum, the amount, the seconds."""


def measure(bench) -> None:
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        instance = stack.enter_context(Instance())
        asker = instance.connect(0)
        places = [instance.uri(BROKERS - 1 - number) for number in range(BROKERS)]
        redis_path = str(stack.enter_context(scratch()) / "redis.sock")
        team = stack.enter_context(Team(places))
        kinds = {"": (adds, "bench.hot")}
        if shutil.which("redis-server"):
            stack.enter_context(Redis(redis_path))
            kinds["redis-"] = (increments, redis_path)
        else:
            bench.note("add: no `redis-server` here (Debian: redis-server)")
        # Processes that are still starting would take the processors from the others: a round that is not counted.
        totals = {kind: _sum_after(team.run(*task, BROKERS, 0.1), 0) for kind, task in kinds.items()}

        def round_of(kind: str, count: int) -> list[float]:
            task, where = kinds[kind]
            clients, children = _messages(asker)
            parts = [part for part in team.run(task, where, count, 0.5 if bench.quick else 1.0) if part is not None]
            clients, children = (
                after - before for after, before in zip(_messages(asker), (clients, children), strict=True)
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
        value = asker.kvs.get("bench.hot", fresh=True)
        assert value == totals[""], f"the key holds {value}, and {totals['']} was added"
    for count in COUNTS:
        for name in ("rate", "latency", "messages", "links", "redis-rate", "redis-latency"):
            if f"{name}-{count}" in found:
                bench.record(f"add.{name}-{count}", found[f"{name}-{count}"])


def adds(uri: str, number: int, barrier, key: str, count: int, seconds: float) -> Part | None:
    """What one process does; None where there is no client for it."""
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(fluxmpi.connect(uri)) for _ in range(number, count, BROKERS)]
        starts = [lambda amount, kvs=handle.kvs: kvs.add_async(key, amount).get for handle in handles]
        return _again_and_again(number, barrier, seconds, starts)


def increments(_uri: str, number: int, barrier, path: str, count: int, seconds: float) -> Part | None:
    with contextlib.ExitStack() as stack:
        starts = []
        for _ in range(number, count, BROKERS):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(path)
            starts.append(lambda amount, connection=connection: _increment(connection, amount))
        return _again_and_again(number, barrier, seconds, starts)


def _increment(connection: socket.socket, amount: int) -> Callable[[], int]:
    text = b"%d" % amount
    connection.sendall(b"*3\r\n$6\r\nINCRBY\r\n$3\r\nhot\r\n$%d\r\n%s\r\n" % (len(text), text))

    def answered() -> int:
        answer = connection.recv(64)
        assert answer.startswith(b":"), answer
        assert answer.endswith(b"\r\n"), answer
        return int(answer[1:])

    return answered


def _again_and_again(
    number: int, barrier, seconds: float, starts: list[Callable[[int], Callable[[], int]]]
) -> Part | None:
    """``starts``: what begins an addition of each client; what that returns waits for its sum."""
    made: list[tuple[int, int, float]] = []
    barrier.wait()
    if not starts:
        return None
    begin = now = clock()
    under_way = deque()
    for index, start in enumerate(starts):
        amount = 1 + (number + index) % 5
        under_way.append((start, amount, clock(), start(amount)))
    while under_way:
        start, amount, since, wait = under_way.popleft()
        total = wait()
        now = clock()
        made.append((total, amount, now - since))
        if now < begin + seconds:
            under_way.append((start, amount, now, start(amount)))
    return begin, now, made


def _sum_after(parts: list[Part], total: int) -> int:
    """The sum after them all, where it was ``total`` before: each got a prefix sum of its own."""
    for made, amount in sorted((made, amount) for _, _, additions in parts for made, amount, _ in additions):
        total += amount
        assert made == total, f"an addition of {amount} got {made}, where {total} comes next"
    return total


def _messages(handle) -> tuple[int, int]:
    """With additions, that rank 0 had from its clients and from its children."""
    numbers = handle.rpc("stats.get", target=0)["kvs"]
    return int(numbers["adds_from_clients"]), int(numbers["adds_from_children"])
