"""Every topic, in every kind, from every sender, with bodies of the right shape and of others: nothing ends a broker.

The table that is walked is the brokers' own, so a topic that is added to it is tested here. Beside the topics, a client
sends requests that no socket would pass on: they must do no harm either.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest

from fluxmpi.broker.broker import Broker
from fluxmpi.broker.config import Config
from fluxmpi.broker.registry import TopicEntry
from fluxmpi.errors import InvalidRequest, NoSuchService, ProtocolError
from fluxmpi.kvs.fence.limits import FenceLimits
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.wire import Commit, CommitId, GetRequest, Got, Op, Put, RootInfo
from fluxmpi.machine import ANY_TOPIC, Answers, Sender, Topic
from fluxmpi.message import (
    ANY,
    CLIENT_FIRST,
    CONTROL,
    DISK,
    EVENT,
    LAUNCHER,
    LOCAL,
    LOOP,
    MORE,
    OK,
    REQUEST,
    RESPONSE,
    SEGMENTS,
    Message,
    decode_batch,
    encode_body,
)
from fluxmpi.overlay.wire import Peer
from fluxmpi.simulator.cluster import Cluster, Shape
from fluxmpi.simulator.schedule import START
from fluxmpi.simulator.trace import Trace
from fluxmpi.simulator.workload.random_bodies import RandomBodies

RANKS = 7
"""kary:2: 0 → 1, 2; 1 → 3, 4; 2 → 5, 6."""
MIDDLE = 1
SEEDS = range(2)
BODIES = 4
"""Bodies of each kind for each topic, sender and rank."""

DRIVERS = {LOOP: Sender.LOOP, DISK: Sender.DISK, LAUNCHER: Sender.LAUNCHER, SEGMENTS: Sender.SEGMENTS}
REFUSED = {InvalidRequest.code, NoSuchService.code}
WAITING = ("kvs.get", "kvs.list", "kvs.diff", "kvs.getroot", "kvs.fence", "kvs.watch")
"""These may wait, for a version or for others, until their client leaves."""


class Client:
    """A client's end. ``answers``: tag to the statuses of its responses; ``bodies``: tag to the last body."""

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.cluster = cluster
        self.rank = rank
        self.answers: dict[int, list[int]] = {}
        self.bodies: dict[int, bytes] = {}
        self.requests: dict[int, Message] = {}
        self._inbox = b""
        self._tag = 0
        self.hop = cluster.connect(rank, self)

    def receive(self, data: bytes) -> None:
        self._inbox += data
        while len(self._inbox) >= 4:
            end = 4 + int.from_bytes(self._inbox[:4], "little")
            if len(self._inbox) < end:
                return
            for msg in decode_batch(self._inbox[4:end]):
                if msg.kind == RESPONSE:
                    assert msg.route == []
                    self.answers.setdefault(msg.tag, []).append(msg.status)
                    self.bodies[msg.tag] = msg.body
            self._inbox = self._inbox[end:]

    def send(self, topic: str, raw: bytes, target: int = ANY) -> int:
        self._tag += 1
        msg = Message(REQUEST, topic, 5, target, self._tag, 7, [LOCAL, 3], raw)  # hop, status and route are forged
        self.requests[self._tag] = msg
        self.cluster.inject(self.rank, self.hop, msg)
        return self._tag

    def leave(self) -> None:
        self.cluster.disconnect(self.rank, self.hop)


def make_cluster(seed: int, ranks: int = RANKS) -> Cluster:
    limits = KvsLimits(fence=FenceLimits(grace_s=0.1))
    shape = Shape(ranks, check_every=1, segments_bytes_max=1 << 16, checkpoint="walk.h5", kvs=limits)
    cluster = Cluster(shape, Random(seed), Trace())
    for node in cluster.nodes:
        node.broker.on_internal_error = raise_it
    cluster.start()
    run(cluster)
    return cluster


def raise_it(what: str, error: Exception) -> None:
    """Let an InternalError fail the test, with its traceback."""
    raise error


def run(cluster: Cluster, seconds: float = 2.0) -> None:
    cluster.schedule.run(cluster.now + seconds)


def commit(client: Client, serial: int, *ops: Op) -> RootInfo:
    record = Commit("primary", CommitId(f"walk{client.hop}", serial), 0, list(ops))
    tag = client.send("kvs.commit", encode_body(record))
    run(client.cluster)
    assert client.answers[tag] == [OK]
    return msgspec.msgpack.decode(client.bodies[tag], type=RootInfo)


def still_works(cluster: Cluster) -> None:
    """A commit of each rank is read at every rank, and every broker is up."""
    for rank, node in enumerate(cluster.nodes):
        assert node.up, f"rank {rank} has ended: {node.exit}"
        writer = Client(cluster, rank)
        version = commit(writer, 1, Put("fine", Val("raw", str(rank).encode()))).version
        for reader in (Client(cluster, other) for other in range(len(cluster.nodes))):
            tag = reader.send("kvs.get", encode_body(GetRequest("fine", at_least=version)))
            run(cluster, 0.5)
            assert reader.answers[tag] == [OK]
            assert msgspec.msgpack.decode(reader.bodies[tag], type=Got).data == str(rank).encode()


def entries(cluster: Cluster, rank: int) -> dict[str, TopicEntry]:
    return cluster.nodes[rank].broker.registry.topics


def rows(cluster: Cluster) -> dict[str, Topic]:
    """Every topic of the instance: rank 0 has all."""
    return {topic: entry.row for topic, entry in entries(cluster, 0).items() if topic != ANY_TOPIC}


def bodies_for(cluster: Cluster, seed: int) -> RandomBodies:
    bodies = RandomBodies(Random(seed))
    client = Client(cluster, 0)
    root = commit(client, 1, Put("a.b.c", Val("raw", b"1")), Put("l", Val("json", b"2")))
    tag = client.send("content.store", bytes(3000))
    run(cluster)
    (ref,) = msgspec.msgpack.decode(client.bodies[tag])
    bodies.refs += [root.ref, root.ref, ref, ref]
    return bodies


def drawn(bodies: RandomBodies, row: Topic, others: list[Topic], number: int) -> bytes:
    return bodies.shaped(row) if number % 2 else bodies.broken(row, others)


# --------------------------------------------------------------------------------------------------- what clients send


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_of_clients(seed):
    """To the own broker, to rank 0, to one below and one beside it: each gets one final answer, or is known to wait."""
    cluster = make_cluster(seed)
    bodies = bodies_for(cluster, seed)
    table = rows(cluster)
    others = list(table.values())
    clients = [Client(cluster, rank) for rank in (0, MIDDLE, 3)]
    for number in range(2 * BODIES):
        for topic, row in table.items():
            for client in clients:
                for target in (ANY, client.rank, 0, 4):
                    client.send(topic, drawn(bodies, row, others, number), target)
        run(cluster, 0.5)
    run(cluster, 10.0)
    for client in clients:
        judge(client, table)
    still_works(cluster)
    for client in clients:
        client.leave()
    run(cluster, 10.0)
    for node in cluster.nodes:
        numbers = node.broker.statistics()
        assert numbers["broker"]["dropped"] == numbers["broker"]["internal_errors"] == 0
        for service, name in (
            *(("kvs", name) for name in ("watchers", "parked", "asked", "suspended", "adding", "fences")),
            *(("content", "pending"), ("value", "pending"), ("exec", "running"), ("overlay", "gathers")),
        ):
            assert numbers[service][name] == 0, f"rank {node.rank} has {service}.{name} = {numbers[service][name]}"
        assert node.broker.remote_state.keys() <= {client.hop for client in clients}
    still_works(cluster)


def judge(client: Client, table: dict[str, Topic]) -> None:
    unanswered = Counter()
    for tag, msg in client.requests.items():
        row = table[msg.topic]
        statuses = client.answers.get(tag, [])
        final = [status for status in statuses if status != MORE]
        assert len(final) <= 1, f"{msg.topic} was answered twice: {statuses}"
        assert not final or statuses[-1] == final[0], f"{msg.topic}: a response follows the last one"
        if row.kind != REQUEST or not row.senders & (Sender.CLIENT | Sender.OWN_CLIENT):
            assert len(final) == 1, f"{msg.topic} of a client was not refused"
            assert final[0] in REFUSED
            continue
        if row.answers is not Answers.STREAM:
            assert MORE not in statuses
        if row.answers is Answers.ONE and not final:
            assert msg.topic in WAITING, f"{msg.topic} was not answered: {msg.body[:100]!r}"
        if row.answers is Answers.STREAM and not final:
            unanswered[msg.topic] += 1
    assert unanswered.keys() <= set(WAITING), unanswered


@pytest.mark.parametrize("seed", SEEDS)
def test_requests_on_strange_topics_and_targets(seed):
    cluster = make_cluster(seed, 3)
    bodies = RandomBodies(Random(seed))
    rng = Random(seed)
    client = Client(cluster, 1)
    topics = ["", ".", "kvs", "kvs.", ".kvs", "kvs.get.x", "KVS.get", "*", "\0", "x" * 100_000, "kvs." + "é" * 50_000]
    for topic in topics:
        for target in (ANY, 0, 1, 2, 3, -2, 1 << 30, -(1 << 31), -(1 << 63), (1 << 64) - 1):
            tag = client.send(topic, rng.choice(bodies.blobs), target)
            run(cluster, 0.1)
            assert len(client.answers[tag]) == 1
            assert len(client.bodies[tag]) < 500, "an error does not send a long topic back"
    for tag in (0, -1, -(1 << 63), (1 << 64) - 1):
        cluster.inject(1, client.hop, Message(REQUEST, "ping.ping", LOCAL, 0, tag, OK, [], encode_body([1])))
        run(cluster, 0.1)
        assert client.answers[tag] == [OK]
    still_works(cluster)


# ------------------------------------------------------------------------------------------ what peers and drivers send


def senders(cluster: Cluster, rank: int) -> dict[int, Sender]:
    """Hop to the sender, of whoever is not a client."""
    router = cluster.nodes[rank].broker.router
    found = {LOCAL: Sender.MACHINE, **DRIVERS}
    if router.parent >= 0:
        found[router.parent] = Sender.PARENT
    return {**found, **dict.fromkeys(router.children, Sender.CHILD)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rank", [0, MIDDLE, 3])
def test_what_the_table_forbids_never_reaches_a_machine(rank, seed):
    """In the kinds and from the senders that a row does not name: dropped, or answered with the refusal."""
    cluster = make_cluster(seed)
    broker = cluster.nodes[rank].broker
    bodies = RandomBodies(Random(seed))
    table = entries(cluster, rank)
    others = [entry.row for entry in table.values()]
    refusals = 0
    before = {name: numbers for name, numbers in broker.statistics().items() if name != "broker"}
    for topic, entry in table.items():
        for hop, sender in {**senders(cluster, rank), CLIENT_FIRST: Sender.CLIENT, 99: Sender(0)}.items():
            for kind in (CONTROL, EVENT, REQUEST, 0, 5):
                for number in range(2):
                    raw = drawn(bodies, entry.row, others, number)
                    looked_up = entry.row if kind != EVENT else table[ANY_TOPIC].row
                    if looked_up.kind == kind and (looked_up.senders & sender or kind == REQUEST):
                        continue
                    msg = Message(kind, topic, hop, rank, 1 << 50, OK, [], raw)
                    if kind != REQUEST and hop == LOCAL:
                        with pytest.raises(ProtocolError):
                            broker.step(msg, cluster.now)
                        continue
                    out = broker.step(msg, cluster.now)
                    if kind == REQUEST:
                        refusals += 1
                        assert all((answer.kind, answer.status) == (RESPONSE, InvalidRequest.code) for answer in out)
                    else:
                        assert out == []
    assert broker.statistics()["broker"]["refused"] == refusals
    assert {name: numbers for name, numbers in broker.statistics().items() if name != "broker"} == before
    still_works(cluster)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rank", [0, MIDDLE, 3])
def test_requests_of_other_brokers_machines(rank, seed):
    """Bodies that no machine sends: the answers go back, and the sender ignores them."""
    cluster = make_cluster(seed)
    bodies = bodies_for(cluster, seed)
    table = entries(cluster, rank)
    others = [entry.row for entry in table.values()]
    for topic, entry in table.items():
        for hop, sender in senders(cluster, rank).items():
            if entry.kind != REQUEST or hop in DRIVERS:
                continue
            for number in range(2 * BODIES):
                route = [] if sender is Sender.MACHINE else [LOCAL]
                raw = drawn(bodies, entry.row, others, number)
                cluster.inject(rank, hop, Message(REQUEST, topic, hop, rank, 1 << 50, OK, route, raw))
            run(cluster, 0.2)
    run(cluster, 10.0)
    assert all(node.broker.statistics()["broker"]["internal_errors"] == 0 for node in cluster.nodes)
    still_works(cluster)


ENDS = {"lifecycle.end", "lifecycle.stop", "lifecycle.signal", "lifecycle.lost", "overlay.lost", "overlay.heartbeat"}
"""These may say that the instance ends, or that a rank is lost."""


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rank", [0, MIDDLE, 3])
def test_control_messages_of_the_right_sender(rank, seed):
    """A peer is trusted to say the truth, but not to say it in order, nor once, nor in a body that decodes."""
    cluster = make_cluster(seed)
    topics = [topic for topic, entry in entries(cluster, rank).items() if entry.kind != REQUEST]
    for topic in topics:
        cluster = make_cluster(seed)
        broker = cluster.nodes[rank].broker
        bodies = bodies_for(cluster, seed)
        entry = entries(cluster, rank)[topic]
        others = [other.row for other in entries(cluster, rank).values()]
        for hop, sender in senders(cluster, rank).items():
            if not entry.row.senders & sender:
                continue
            for number in range(4 * BODIES):
                raw = drawn(bodies, entry.row, others, number)
                msg = Message(entry.kind, "any.topic" if topic == ANY_TOPIC else topic, hop, body=raw)
                with contextlib.suppress(ProtocolError):
                    broker.step(msg, cluster.now)
                broker.check()
                if broker.gone:
                    assert topic in ENDS
                    break
            while not broker.gone and broker.deadline <= cluster.now:
                broker.tick(cluster.now)


ASKING = {
    "kvs.commit": ["primary", ["c", 1], 0, [[0, "a", [0, "raw", b"x"]]]],
    "kvs.add": ["primary", ["c", 2], 0, "count", 1],
    "kvs.get": ["a.b", "primary", bytes(32)],
    "kvs.list": ["a", "primary", 3],
    "kvs.diff": ["primary", 1, 2],
    "kvs.getroot": ["primary", 0, True],
    "kvs.watch": ["a", "primary", 0, False, True, False, 1],
    "content.load": [bytes(32)],
    "content.store": b"a blob",
    "overlay.status": None,
    "value.map": [[bytes(32)], 100],
}
"""Requests of a client that a broker without caches can answer only with the help of others."""


@pytest.mark.parametrize("topic", ASKING)
@pytest.mark.parametrize("seed", range(20))
def test_answers_of_other_brokers(topic, seed):
    """With any status and any body: an error is passed on, and what does not decode is a ProtocolError."""
    rng = Random(seed)
    bodies = RandomBodies(rng)
    broker = Broker(Config(rank=MIDDLE, size=RANKS, hosts=("h",) * RANKS), START)
    row = Topic(RESPONSE, Sender.MACHINE, lambda msg, now: [])
    setroot = ["primary", 5, bytes(32), START, None, []]
    broker.step(Message(CONTROL, "kvs.setroot", 0, body=encode_body(setroot)), START)
    body = ASKING[topic]
    raw = body if isinstance(body, bytes) else encode_body(body)
    todo = broker.step(Message(REQUEST, topic, CLIENT_FIRST, body=raw), START)
    todo += broker.tick(START) if broker.deadline <= START else []
    asked = 0
    while todo and asked < 20:
        msg = todo.pop(0)
        if msg.kind != REQUEST:
            continue
        asked += 1
        kinds = [
            rows_of(broker).get(msg.topic, row)._replace(body=kind) for kind in (RootInfo, list[bytes], list[Peer], Any)
        ]
        status = rng.choice((OK, OK, OK, MORE, 1, 8, 46, 99, 1 << 40, -5))
        drawn_raw = bodies.shaped(rng.choice(kinds)) if rng.random() < 0.7 else bodies.broken(row, kinds)
        answer = Message(RESPONSE, msg.topic, msg.hop, tag=msg.tag, status=status, route=msg.route, body=drawn_raw)
        try:
            todo += broker.step(answer, START)
        except ProtocolError:
            return
        broker.check()
    assert asked


def rows_of(broker: Broker) -> dict[str, Topic]:
    return {topic: entry.row for topic, entry in broker.registry.topics.items()}
