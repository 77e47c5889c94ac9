"""A hot counter in large instances: messages to rank 0 grow with its children and round trips, not with the clients."""

from __future__ import annotations

from functools import partial
from itertools import count
from random import Random

import pytest

from fluxmpi.broker.broker import Broker
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.wire import Adds
from fluxmpi.message import REQUEST, RESPONSE, Message
from fluxmpi.simulator.cluster import Cluster, Shape, SimulatedRank
from fluxmpi.simulator.inspection.monitor import Monitor
from fluxmpi.simulator.network import LinkDelays
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.client import Client
from fluxmpi.simulator.workload.transcript import Transcript

DEGREE = 4
PATIENCE_S = 60.0


class Seen(Monitor):
    """Also counts the additions that arrive at rank 0, and those without an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = self.waiting = self.waiting_most = 0

    def stepping(self, node: SimulatedRank, source: int, msg: Message) -> None:
        super().stepping(node, source, msg)
        if not node.rank and msg.kind == REQUEST and msg.topic == "kvs.adds":
            self.messages += 1
            self.waiting += 1
            self.waiting_most = max(self.waiting, self.waiting_most)

    def stepped(self, node: SimulatedRank, source: int, msg: Message | None, out: list[Message]) -> None:
        super().stepped(node, source, msg, out)
        if not node.rank:
            self.waiting -= sum(one.kind == RESPONSE and one.topic == "kvs.adds" for one in out)


class Counter:
    """``clients`` at each broker but rank 0 add to one key at once. ``sums``: each result, with the amount."""

    def __init__(self, ranks: int, clients: int = 1) -> None:
        cluster = Cluster(
            Shape(ranks, f"kary:{DEGREE}", delays=LinkDelays(spikes=0, slow_links=0)), Random(ranks), Trace()
        )
        cluster.observer = self.seen = Seen()
        cluster.start()
        history = Transcript()
        answered: list[int] = []
        for index in range((ranks - 1) * clients):
            client = Client(f"c{index}", cluster, self.seen, history, 1 + index % (ranks - 1))
            client.add("hot", 1 + index % 5)
            client.on_idle = partial(answered.append, index)
        assert cluster.schedule.run(cluster.now + PATIENCE_S, lambda: len(answered) == len(history.calls))
        assert self.seen.violations == []
        assert self.seen.waiting == 0
        assert self.seen.messages == cluster.nodes[0].broker.statistics()["kvs"]["adds_from_children"]
        self.sums = sorted((call.answers[0].body.results[0].number, call.body.amount) for call in history.calls)

    @property
    def per_addition(self) -> float:
        return self.seen.messages / len(self.sums)

    def check(self) -> None:
        """The results are those of additions one by one."""
        total = 0
        for made, amount in self.sums:
            total += amount
            assert made == total


@pytest.fixture(autouse=True)
def _check_only_the_combiner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other checks, at every step of 1,000 brokers, take as long as the rest."""
    monkeypatch.setattr(Broker, "check", lambda broker: broker.kvs.adds.check())


def test_messages_at_rank_0_grow_slower_than_the_clients() -> None:
    shares = []
    for ranks, clients in ((10, 1), (100, 1), (1000, 1), (1000, 3)):
        counter = Counter(ranks, clients)
        counter.check()
        assert counter.seen.waiting_most <= DEGREE, "each child has one message under way"
        shares.append(counter.per_addition)
    assert shares == sorted(shares, reverse=True), "each of more clients costs rank 0 less"
    assert shares[-1] < 0.05 < 0.5 < shares[0], shares


def test_without_combining_they_grow_with_the_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is forwarded at once, as if all keys were different."""
    take, ask, numbers = AddCombiner._enqueue, KvsService._ask_adds, count()
    monkeypatch.setattr(
        AddCombiner,
        "_enqueue",
        lambda self, key, msg, parts: take(self, (key[0], f"{key[1]}/{next(numbers)}"), msg, parts),
    )
    monkeypatch.setattr(
        KvsService,
        "_ask_adds",
        lambda self, adds: ask(self, Adds(adds.namespace, adds.key.partition("/")[0], adds.parts)),
    )
    for ranks in (10, 100):
        counter = Counter(ranks)
        counter.check()
        assert counter.per_addition == 1
    assert counter.seen.waiting_most > DEGREE
