"""Combined additions: each gets its own prefix sum, exactly once, and no state is left."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, OTHER, Cluster, body, error, put, to_broker

from fluxmpi import errors
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.limits import KvsLimits
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.wire import AddTo, Commit, CommitId, Committed, GetRequest, Got
from fluxmpi.message import RESPONSE

MAX = (1 << 63) - 1


def add(client, serial, amount=1, key="n", namespace="primary", acked=0):
    return AddTo(namespace, CommitId(client, serial), acked, key, amount)


def send(cluster, rank, one, hop=CLIENT, tag=1):
    cluster.step(rank, to_broker("kvs.add", one, hop=hop, tag=tag))


def numbers(sent):
    """(rank, tag) → the number in its answer."""
    found = {}
    for rank, msg in sent:
        if msg.kind == RESPONSE and msg.topic == "kvs.add" and msg.status == 0:
            assert (rank, msg.tag) not in found, "each is answered once"
            found[rank, msg.tag] = body(msg, Committed).results[0].number
    return found


def value(cluster, key="n"):
    (answer,) = cluster.call(0, to_broker("kvs.get", GetRequest(key)))
    return body(answer, Got).object


def asked(cluster, topic, rank):
    """Messages that a rank received over links."""
    return [msg for _, to, msg in cluster.carried if to == rank and msg.topic == topic and msg.kind != RESPONSE]


def quiet(cluster):
    for broker in cluster.brokers:
        assert broker.statistics()["kvs"]["adding"] == 0
        assert broker.statistics()["kvs"]["adding_keys"] == 0


def test_many_additions_are_few_messages_and_distinct_sums():
    cluster = Cluster(7)
    for rank in range(7):
        for tag in range(50):
            send(cluster, rank, add(f"c{rank}.{tag}", 1, 2), CLIENT - tag, tag)
    got = numbers(cluster.run())
    assert sorted(got.values()) == [2 * (index + 1) for index in range(350)], "each prefix sum is one answer"
    assert value(cluster) == Val("json", b"700")
    assert len(asked(cluster, "kvs.adds", 0)) <= 10, "300 of them came over its two links"
    assert cluster.brokers[0].leader.statistics()["added"] == 350
    numbers_of_0 = cluster.brokers[0].statistics()["kvs"]
    assert numbers_of_0["adds_from_clients"] == 50
    assert numbers_of_0["adds_from_children"] == len(asked(cluster, "kvs.adds", 0))
    quiet(cluster)


def test_an_addition_is_answered_when_its_version_has_arrived():
    cluster = Cluster(4, "kary:1")
    (answer,) = cluster.call(3, to_broker("kvs.add", add("c", 1, 5)))
    committed = body(answer, Committed)
    assert (committed.version, committed.results[0].number) == (1, 5)
    (got,) = cluster.call(3, to_broker("kvs.get", GetRequest("n", at_least=1)))
    assert body(got, Got).object == Val("json", b"5")


def test_an_addition_sent_again_by_another_broker_is_applied_once():
    cluster = Cluster(3)
    (first,) = cluster.call(1, to_broker("kvs.add", add("c", 1, 5)))
    cluster.call(2, to_broker("kvs.add", add("d", 1, 7)))
    (again,) = cluster.call(2, to_broker("kvs.add", add("c", 1, 5)))
    assert body(again, Committed) == body(first, Committed)
    send(cluster, 1, add("e", 1, 1), CLIENT, 5)
    send(cluster, 2, add("e", 1, 1), OTHER, 6)
    send(cluster, 2, add("c", 1, 5), CLIENT, 7)
    assert numbers(cluster.run()) == {(1, 5): 13, (2, 6): 13, (2, 7): 5}
    assert value(cluster) == Val("json", b"13")
    (late,) = cluster.call(1, to_broker("kvs.add", add("c", 1, 5, acked=1)))
    assert isinstance(error(late), errors.InvalidRequest), "its answer was acknowledged"
    quiet(cluster)


def test_additions_past_64_bits_are_refused_one_by_one():
    cluster = Cluster(3)
    cluster.call(0, to_broker("kvs.add", add("c", 1, MAX - 5)))
    for tag, amount in enumerate((3, 3, 2, -10)):
        send(cluster, 1, add(f"d{tag}", 1, amount), CLIENT - tag, tag)
    sent = cluster.run()
    assert numbers(sent) == {(1, 0): MAX - 2, (1, 2): MAX, (1, 3): MAX - 10}
    (refused,) = [msg for _, msg in sent if msg.tag == 1]
    assert isinstance(error(refused), errors.InvalidValue)
    assert "past 64 bits" in error(refused).text
    (again,) = cluster.call(2, to_broker("kvs.add", add("d1", 1, 3)))
    assert isinstance(error(again), errors.InvalidValue), "it was refused, and stays refused although it would fit now"


@pytest.mark.parametrize(
    ("ops", "key", "kind"),
    [
        ([put("n", 1)], "n", errors.InvalidValue),
        ([put("n", 1)], "n.x", errors.NotADirectory),
        ([put("n.x", 1)], "n", errors.InvalidValue),
        ([], "", errors.InvalidKey),
        ([], ".", errors.InvalidValue),
    ],
)
def test_objects_that_cannot_be_added_to(ops, key, kind):
    cluster = Cluster(2)
    cluster.call(0, to_broker("kvs.commit", Commit("primary", CommitId("x", 1), 0, ops)))
    for tag in (1, 2):
        send(cluster, 1, add(f"c{tag}", 1, key=key), CLIENT - tag, tag)
    sent = cluster.run()
    assert [type(error(msg)) for _, msg in sent] == [kind, kind]
    quiet(cluster)


def test_no_such_namespace():
    cluster = Cluster(3)
    for tag in (1, 2):
        send(cluster, 2, add("c", tag, namespace="nowhere"), CLIENT, tag)
    sent = cluster.run()
    assert [type(error(msg)) for _, msg in sent] == [errors.NoSuchNamespace] * 2
    quiet(cluster)


def test_a_disconnected_clients_waiting_additions_are_dropped():
    cluster = Cluster(3)
    for tag in range(4):
        send(cluster, 1, add(f"c{tag}", 1), CLIENT - tag, tag)
    cluster.take(1, cluster.brokers[1].disconnect(CLIENT - 2, cluster.now))
    cluster.take(1, cluster.brokers[1].disconnect(CLIENT, cluster.now))
    assert cluster.brokers[1].statistics()["kvs"]["adding"] == 3, "one waited and was dropped; one is under way"
    assert set(numbers(cluster.run())) == {(1, 0), (1, 1), (1, 3)}
    assert value(cluster) == Val("json", b"3")
    quiet(cluster)


def test_waiting_additions_are_bounded():
    cluster = Cluster(2, kvs=KvsLimits(replica=ReplicaLimits(adds_waiting_max=3, adds_per_message_max=2)))
    for tag in range(4):
        send(cluster, 1, add(f"c{tag}", 1), CLIENT - tag, tag)
    (refused,) = [msg for _, msg in cluster.sent]
    assert isinstance(error(refused), errors.Overloaded)
    cluster.sent.clear()
    assert sorted(numbers(cluster.run()).values()) == [1, 2, 3]
    quiet(cluster)


def test_a_message_without_parts_is_refused():
    cluster = Cluster(2)
    (answer,) = cluster.call(1, to_broker("kvs.adds", ["primary", "n", []]))
    assert isinstance(error(answer), errors.InvalidRequest)
    quiet(cluster)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 5),
            st.integers(1, 3),
            st.sampled_from("nm"),
            st.sampled_from([1, -3, MAX, -MAX]),
        ),
        max_size=40,
    ),
    st.booleans(),
)
def test_combined_additions_equal_single_ones(sent, slowly):
    """(rank, client, serial, key, amount): a serial's first key and amount count, wherever it is sent again."""
    cluster = Cluster(5)
    what: dict[tuple[int, int], tuple[str, int]] = {}
    results: dict[tuple[int, int], object] = {}
    tags: dict[int, tuple[int, int]] = {}
    answers = []
    for tag, (rank, client, serial, key, amount) in enumerate(sent):
        key, amount = what.setdefault((client, serial), (key, amount))
        tags[tag] = client, serial
        send(cluster, rank, add(f"c{client}", serial, amount, key), CLIENT - client, tag)
        if slowly:
            answers += cluster.run(LeaderLimits().group_s)
    answers += cluster.run(2 * LeaderLimits().group_s)  # the leader may wait for others to share the version
    assert len(answers) == len(sent)
    for _, msg in answers:
        result = (
            error(msg).text if msg.status else (body(msg, Committed).version, body(msg, Committed).results[0].number)
        )
        assert results.setdefault(tags[msg.tag], result) == result, "the same answer each time"
    for key in "nm":
        made = sorted(
            (one, what[name][1]) for name, one in results.items() if what[name][0] == key and type(one) is tuple
        )
        final = 0
        by_version: dict[int, list[tuple[int, int]]] = {}
        for (version, number), amount in made:
            by_version.setdefault(version, []).append((number, amount))
        for parts in by_version.values():
            final = _chain(final, parts)
        if made:
            assert value(cluster, key) == Val("json", b"%d" % final)
    quiet(cluster)


def _chain(start, parts):
    """The sum after all parts. Each part begins at the end of another one."""
    end = start + sum(amount for _, amount in parts)
    assert sorted([number - amount for number, amount in parts] + [end]) == sorted(
        [number for number, _ in parts] + [start]
    )
    return end


def test_the_leader_counts_messages_of_combined_additions():
    cluster = Cluster(1, kvs=KvsLimits(leader=LeaderLimits(turn_steps=1)))
    for tag in range(10):
        send(cluster, 0, add(f"c{tag}", 1), CLIENT - tag, tag)
    assert sorted(numbers(cluster.run()).values()) == list(range(1, 11))
    assert cluster.brokers[0].leader.statistics()["combined"] == 2, "the first alone, the others together"
