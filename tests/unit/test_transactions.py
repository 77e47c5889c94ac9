"""Transactions at the leader: guards, else, atomic operations, their results, events; and large ones, in slices."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from machines import NOW, ask, body, error, put, responses, work
from trees import SHA256, make_nodes

from fluxmpi import errors
from fluxmpi.client.kvs.transaction import in_pieces
from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.mvcc.service import MvccService
from fluxmpi.kvs.objects import Dir, Link, Val, ValRef, split_key
from fluxmpi.kvs.store.edit import Edit, run_to_end
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Leaf
from fluxmpi.kvs.wire import (
    GUARD_EXISTS,
    GUARD_VALUE,
    GUARD_VERSION,
    Add,
    Append,
    Commit,
    CommitId,
    Committed,
    Contribution,
    Exchange,
    Fence,
    Guard,
    Mkdir,
    Op,
    OpResult,
    Put,
    SavedNamespace,
    Setroot,
    Swap,
    Unlink,
)
from fluxmpi.message import control, encode_body
from fluxmpi.overlay.wire import Published
from fluxmpi.simulator.checkers import from_wire
from fluxmpi.simulator.checkers.model import ModelStore, last_change

MAX = (1 << 63) - 1


def json(value):
    return Val("json", encode_json(value))


def encode_json(value):
    import json as module

    return module.dumps(value).encode()


LIMITS = LeaderLimits()


class World:
    def __init__(self, count=1000, limits=LIMITS):
        self.nodes, self.blobs = make_nodes()
        self.namespaces = Namespaces(count)
        self.leader = Leader(self.namespaces, self.nodes, self.blobs, SHA256, NOW, [], limits)
        self.serial = 0
        self.out = []

    def send(self, *ops, guards=(), otherwise=(), client="c", **more):
        self.serial += 1
        commit = Commit("primary", CommitId(client, self.serial), 0, list(ops), list(guards), list(otherwise), **more)
        self.out += self.leader.step(ask("leader.commit", commit, tag=self.serial), NOW)
        return commit

    def turn(self):
        out, self.out = self.out + work(self.leader), []
        self.leader.check()
        return out

    def do(self, *ops, **more):
        """Send one commit; return its answer."""
        self.send(*ops, **more)
        (answer,) = responses(self.turn())
        return body(answer, Committed)

    def fails(self, *ops, **more):
        before = self.namespaces.find("primary").root
        self.send(*ops, **more)
        (answer,) = responses(self.turn())
        assert self.namespaces.find("primary").root is before, "nothing changed"
        return error(answer)

    def last_change(self, key):
        return self.namespaces.find("primary").last_change(key, self.nodes)

    def get(self, key):
        root = self.namespaces.find("primary").root
        return Lookup(self.nodes, lambda _: None, "primary", root.ref, split_key(key), False).advance().value


@pytest.fixture
def world():
    return World()


def value(key, compare, operand):
    return Guard(key, GUARD_VALUE, compare, operand)


# -------------------------------------------------------------------------------------------------------------- guards


def test_guards_choose_between_two_branches(world):
    world.do(Put("state", json("ready")))
    done = world.do(put("x", 1), guards=[value("state", "==", json("ready"))], otherwise=[put("y", 1)])
    assert (done.succeeded, done.version) == (True, 2)
    done = world.do(put("x", 2), guards=[value("state", "!=", json("ready"))], otherwise=[put("y", 1)])
    assert (done.succeeded, done.version) == (False, 3)
    assert [world.get(key) for key in "xy"] == [Val("raw", b"1"), Val("raw", b"1")]


def test_guards_that_fail_without_else_make_no_version(world):
    world.do(put("x", 1))
    done = world.do(put("x", 2), guards=[Guard("x", GUARD_EXISTS, "==", False)])
    assert (done.succeeded, done.version, done.ref) == (False, 1, world.namespaces.find("primary").root.ref)


@pytest.mark.parametrize(
    ("there", "compare", "operand", "holds"),
    [
        (json(5), "==", json(5), True),
        (json(5), "==", json(5.0), False),
        (json(5), "<", json(5.5), True),
        (json(-1), ">=", json(0), False),
        (json("b"), ">", json("a"), True),
        (json("ä" * 300), "<=", json("ö" * 300), True),
        (None, "==", json(5), False),
        (None, "!=", json(5), True),
        (None, "<", json(5), False),
        (Val("raw", b"5"), "==", json(5), False),
        (Val("raw", b"x" * 5000), "==", Val("raw", b"x" * 5000), True),
        (Val("raw", b"x" * 5000), "==", Val("raw", b"x" * 4999 + b"y"), False),
        (Link("a"), "==", Link("a"), True),
        (Link("a"), "!=", Link("b"), True),
    ],
)
def test_comparison_of_values(world, there, compare, operand, holds):
    if there is not None:
        world.do(Put("k", there))
    assert world.do(put("x", 1), guards=[value("k", compare, operand)]).succeeded is holds


@pytest.mark.parametrize(
    "guard",
    [
        value("text", "<", json(1)),
        value("raw", "<", json(1)),
        value("dir", "==", json(1)),
        value("link", "==", json(1)),
        value("n", "<", Val("json", b"[1]")),
        value("n", "<", Val("json", b"{")),
        value("n", "<", Link("a")),
        value("n", "==", 3),
        value("n", "==", True),
        Guard("n", GUARD_VERSION, "==", json(1)),
        Guard("n", GUARD_VERSION, "==", True),
        Guard("n", GUARD_EXISTS, "==", 1),
        Guard("n", GUARD_EXISTS, "<", True),
    ],
)
def test_guards_of_the_wrong_type_fail(world, guard):
    world.do(Put("text", json("x")), put("raw", 1), put("dir.x", 1), Put("link", Link("n")), Put("n", json(1)))
    assert isinstance(world.fails(put("x", 1), guards=[guard]), errors.InvalidValue)


def test_every_guard_is_evaluated_although_one_does_not_hold(world):
    world.do(Put("text", json("x")))
    wrong = [Guard("text", GUARD_EXISTS, "==", False), value("text", "<", json(1))]
    assert isinstance(world.fails(guards=wrong), errors.InvalidValue)


def test_malformed_guards_are_refused(world):
    assert isinstance(world.fails(guards=[value("k", "~", json(1))]), errors.InvalidRequest)
    assert isinstance(world.fails(guards=[Guard("k", 7, "==", 1)]), errors.InvalidRequest)
    assert isinstance(world.fails(guards=[value("", "==", json(1))]), errors.InvalidKey)
    assert isinstance(world.fails(durable=True), errors.InvalidRequest)


def test_the_version_of_the_last_change(world):
    world.do(put("a.b", 1))  # 1
    world.do(put("c", 1))  # 2
    world.do(put("a.b", 1))  # 3: the same again is no change

    def last(key, number):
        return world.do(guards=[Guard(key, GUARD_VERSION, "==", number)], otherwise=[]).succeeded

    assert last("a.b", 1)
    assert last("a", 1)
    world.do(put("a.x", 1))
    assert last("a", world.namespaces.find("primary").root.version)
    assert last("a.b", 1)
    assert last("nothing", 0)
    assert last("c", 2)


def test_a_guard_on_a_change_before_the_oldest_kept_version_is_decided_where_possible():
    world = World(count=3)
    for number in range(6):
        world.do(put("k" if not number else "other", number))
    namespace = world.namespaces.find("primary")
    oldest = namespace.oldest
    assert oldest == 4

    def holds(compare, number):
        """In a batch that is not sealed: no version is made, so the oldest stays."""
        edit = Edit(world.nodes, namespace.root.ref)
        batch = Batch(namespace.root, edit, world.leader.validator, LIMITS, world.last_change)
        return run_to_end(batch.place_in_slices([], guards=[Guard("k", GUARD_VERSION, compare, number)])).succeeded

    assert holds("<=", oldest)
    assert holds("<", oldest + 1)
    assert holds("!=", oldest + 1)
    assert holds(">=", 0)
    assert not holds(">", oldest)
    assert not holds("==", -1)
    for compare, number in (("==", 1), ("<", 2), (">=", 1), ("==", oldest), ("!=", 0)):
        failed = world.fails(guards=[Guard("k", GUARD_VERSION, compare, number)])
        assert isinstance(failed, errors.SnapshotCollected), (compare, number)


def test_a_guarded_commit_shares_no_version_with_a_write_to_the_keys_it_reads(world):
    world.do(Put("n", json(0)))
    world.send(Put("n", json(1)))
    world.send(put("x", 1), guards=[value("n", "==", json(1))])
    world.send(put("y", 1), guards=[value("n", "==", json(1))])
    world.send(Put("n", json(2)))
    world.send(put("z", 1), guards=[value("n", "==", json(2))])
    out = world.turn()
    made = [body(msg, Setroot).keys for msg in out if msg.topic == "kvs.setroot"]
    assert made == [["n"], ["x", "y"], ["n"], ["z"]], "commits that only read a key share a version"
    assert all(body(msg, Committed).succeeded for msg in responses(out))


# ---------------------------------------------------------------------------------------------------- atomic operations


def test_results(world):
    done = world.do(
        Add("n", 5), put("x", 1), Exchange("x", json(2)), Swap("s", None, json(1)), Swap("s", json(2), json(3))
    )
    assert done.results == [
        OpResult(True, 5),
        OpResult(),
        OpResult(True, None, Val("raw", b"1")),
        OpResult(True, None, None),
        OpResult(False, None, json(1)),
    ]
    assert world.do(put("x", 1)).results == []
    assert world.do(Add("n", 1, 6), Add("n", 1, 6), Add("n", -7)).results == [
        OpResult(True, 6),
        OpResult(False, 6),
        OpResult(True, -1),
    ]
    assert world.do(Swap("s", json(1), None)).results == [OpResult(True, None, json(1))]
    assert world.get("s") is None


@pytest.mark.parametrize(
    "there",
    [
        json("5"), json(5.0), json([1]), json(None), json(True), json(1 << 63), Val("raw", b"5"), Val("json", b"x"),
        Val("ndarray;<i8;1", bytes(8)), Val("json", b"1" * 300), Link("n"),
    ],
)  # fmt: skip
def test_additions_to_anything_but_an_integer_fail(world, there):
    world.do(Put("k", there))
    assert isinstance(world.fails(put("before", 1), Add("k", 1)), errors.InvalidValue)


@pytest.mark.parametrize(("start", "amount"), [(MAX, 1), (-MAX - 1, -1), (1, MAX), (0, MAX + 1)])
def test_a_sum_past_64_bits_changes_nothing(world, start, amount):
    world.do(Put("n", json(start)))
    assert isinstance(world.fails(put("before", 1), Add("n", amount)), errors.InvalidValue)
    assert world.do(Add("n", 0)).results == [OpResult(True, start)]


def test_values_are_equal_however_they_are_cut_into_blobs(world):
    data = bytes(range(256)) * 40
    refs = []
    for piece in (data[:5000], data[5000:]):
        refs.append(SHA256(piece))
        world.blobs.put(refs[-1], piece)
    world.do(Put("k", Val("raw", data)))
    cut = ValRef("raw", len(data), tuple(refs))
    assert world.do(Swap("k", cut, json(1))).results[0].done
    world.do(Put("k", cut))
    assert not world.do(Swap("k", Val("raw", data[:-1] + b"x"), json(1))).results[0].done


def test_a_directory_changed_by_the_same_transaction_cannot_be_exchanged(world):
    world.do(put("d.x", 1))
    assert isinstance(world.fails(put("d.y", 1), Exchange("d", json(1))), errors.InvalidRequest)
    old = world.do(Exchange("d", json(1)), put("e", 1)).results[0].object
    assert type(old) is Dir
    world.do(Put("d", old))
    assert world.get("d.x") == Val("raw", b"1")


def test_a_resent_commit_gets_the_same_results(world):
    commit = world.send(Add("n", 1), guards=[Guard("n", GUARD_EXISTS, "==", False)])
    (first,) = responses(world.turn())
    world.do(Add("n", 10))
    for _ in range(2):
        world.leader.step(ask("leader.commit", commit, tag=99), NOW)
    again = responses(world.turn())
    assert [msg.body for msg in again] == [first.body] * 2
    assert world.get("n") == json(11)
    refused = world.send(put("n", 1), guards=[Guard("n", GUARD_EXISTS, "==", False)])
    world.turn()
    world.do(Unlink("n"))
    world.leader.step(ask("leader.commit", refused, tag=99), NOW)
    (answer,) = responses(world.turn())
    assert not body(answer, Committed).succeeded, "the guard would hold now, but the commit was answered before"
    assert world.get("n") is None


# -------------------------------------------------------------------------------------------------------------- events


def test_events_are_published_once_after_their_setroot(world):
    commit = world.send(put("a", 1), events=[("run.a", b"1"), ("run.b", b"")])
    world.send(put("b", 1), events=[("run.c", b"")])
    out = world.turn()
    assert [msg.topic for msg in out] == ["kvs.setroot", "event.committed", "leader.commit", "leader.commit"]
    published, root = body(out[1], Published), body(out[0], Setroot)
    assert published.events == [("run.a", b"1"), ("run.b", b""), ("run.c", b"")]
    assert published.snapshot == ("primary", 1, root.ref, root.time)
    world.leader.step(ask("leader.commit", commit, tag=99), NOW)
    assert [msg.topic for msg in world.turn()] == ["leader.commit"]


def test_a_commit_that_is_not_applied_publishes_no_event(world):
    absent = [Guard("a", GUARD_EXISTS, "==", True)]
    world.send(put("b", 1), guards=absent, otherwise=[put("c", 1)], events=[("run.a", b"")])
    world.send(put("a", 1), put("a.b", 1), events=[("run.a", b"")])
    assert sorted(msg.topic for msg in world.turn()) == ["kvs.setroot", "leader.commit", "leader.commit"]
    assert isinstance(world.fails(events=[("", b"")]), errors.InvalidRequest)
    assert isinstance(world.fails(events=[("x", bytes(2 << 20))]), errors.TooLarge)


# ------------------------------------------------------------------------------------------------------------ in slices


def pieces(ops):
    return [encode_body(ops[at : at + 1000]) for at in range(0, len(ops), 1000)]


def test_a_hundred_thousand_operations_become_one_version_over_many_short_turns(world):
    ops = [put(f"d{index % 10}.k{index}", index) for index in range(100_000)]
    world.send(put("before", 1))
    world.send(*ops[:1000], more=pieces(ops[1000:]))
    world.send(put("after", 1))
    turns, out = 0, []
    while world.leader.deadline <= NOW:
        sealed = world.nodes.inserted
        out += world.leader.tick(NOW)
        assert world.nodes.inserted - sealed <= LIMITS.turn_steps + LIMITS.slice_nodes
        turns += 1
    assert turns >= 100, "an operation is a step"
    assert [body(msg, Setroot).keys for msg in out if msg.topic == "kvs.setroot"] == [["before"], None, ["after"]]
    assert [body(msg, Committed).version for msg in responses(out)] == [1, 2, 3]
    assert world.get("d7.k99997") == Val("raw", b"99997")


def test_another_namespace_commits_during_a_large_transaction(world):
    MvccService(world.namespaces, world.nodes, world.leader)
    world.leader.create("work", 1, None, NOW)
    ops = [put(f"k{index}", index) for index in range(20_000)]
    world.send(*ops[:1000], more=pieces(ops[1000:]))
    world.leader.tick(NOW)
    assert world.leader.blocks_collection
    commit = Commit("work", CommitId("d", 1), 0, [put("x", 1)])
    world.leader.step(ask("leader.commit", commit, tag=99), NOW)
    (answer,) = responses(world.leader.tick(NOW))
    assert answer.tag == 99
    assert world.leader.blocks_collection
    world.turn()
    assert not world.leader.blocks_collection


def test_a_large_transaction_that_fails_late_changes_nothing(world):
    ops = [put(f"k{index}", index) for index in range(5000)]
    assert isinstance(world.fails(*ops[:1000], more=pieces([*ops[1000:], put("k0.x", 1)])), errors.NotADirectory)
    assert isinstance(world.fails(put("a", 1), more=[b"\xc1"]), errors.InvalidRequest)
    assert isinstance(world.fails(put("a", 1), more=[encode_body([put("a", 1)] * 1001)]), errors.TooLarge)
    assert world.get("k0") is None


def test_results_of_a_large_transaction(world):
    done = world.do(*[Add("n", 1)] * 1000, more=pieces([Add("n", 1)] * 1000 + [put("x", 1)]))
    assert [result.number for result in done.results] == [*range(1, 2001), None]


@pytest.mark.parametrize("count", [0, 1, 1000, 1001, 3000])
def test_clients_send_long_transactions_in_pieces(count):
    ops = [put(f"k{index}", index) for index in range(count)]
    first, more = in_pieces(ops)
    decoded = [msgspec.msgpack.decode(piece, type=list[Op]) for piece in more]
    assert [*first, *(op for piece in decoded for op in piece)] == ops
    assert max(map(len, [first, *decoded])) <= 1000
    assert all(decoded), "no piece is empty"


def test_a_long_transaction_that_is_not_in_pieces_is_refused_before_it_is_decoded(world):
    ops = [put("a", 1)] * 10_001
    assert isinstance(world.fails(*ops), errors.InvalidRequest)
    assert isinstance(world.fails(guards=[value("no", "==", json(1))], otherwise=ops), errors.InvalidRequest)
    part = Contribution(CommitId("d", 1), ops)
    with pytest.raises(errors.InvalidRequest, match="length <= 10000"):
        world.leader.step(control("leader.fence", Fence("primary", "f", 2, [part])), NOW)


def test_the_else_branch_of_a_large_transaction(world):
    ops = [put(f"k{index}", index) for index in range(5000)]
    never = [value("no", "==", json(1))]
    world.send(put("a", 1), guards=never, otherwise=ops[:1000], otherwise_more=pieces(ops[1000:]))
    assert world.leader.blocks_collection, "encoded pieces may name blobs that nothing else names"
    (answer,) = responses(world.turn())
    assert (body(answer, Committed).succeeded, world.get("a"), world.get("k4999")) == (False, None, Val("raw", b"4999"))
    done = world.do(put("a", 1), guards=[Guard("no", GUARD_EXISTS, "==", False)], otherwise_more=pieces([put("k0", 0)]))
    assert (done.succeeded, world.get("a"), world.get("k1")) == (True, Val("raw", b"1"), Val("raw", b"1"))
    done = world.do(guards=never, otherwise_more=pieces([put("only", 1)]))
    assert (done.succeeded, world.get("only")) == (False, Val("raw", b"1"))
    assert isinstance(world.fails(guards=never, otherwise_more=[b"\xc1"]), errors.InvalidRequest)
    assert isinstance(world.fails(guards=never, otherwise_more=[b""] * 1001), errors.TooLarge)


def test_a_fence_of_many_operations_becomes_one_version(world):
    ops = [put(f"k{index}", index) for index in range(3000)]
    for client in "ab":
        part = Contribution(CommitId(client, 1), ops[:1000], 0, pieces([*ops[1000:], put(client, 1)]), [b"r" * 32])
        world.leader.step(control("leader.fence", Fence("primary", "f", 2, [part])), NOW)
        assert list(world.leader.pinned()).count(b"r" * 32) == "ab".index(client) + 1, "kept until it is complete"
    out = world.turn()
    (made,) = [body(msg, Setroot) for msg in out if msg.topic == "kvs.setroot"]
    assert (made.version, made.keys, len(made.fences[0].ids)) == (1, None, 2)
    assert [world.get(key) for key in ("k2999", "a", "b")] == [Val("raw", b"2999"), Val("raw", b"1"), Val("raw", b"1")]


def test_a_large_transaction_starts_over_after_a_reset(world):
    ops = [put(f"k{index}", index) for index in range(5000)]
    world.do(put("old", 1))
    old = world.namespaces.find("primary").root.ref
    world.do(put("old", 2))
    world.send(*ops[:1000], more=pieces(ops[1000:]))
    world.send(put("after", 1))
    world.leader.tick(NOW)
    world.leader.reset(SavedNamespace("primary", 1, old, NOW), NOW)
    out = world.turn()
    assert [body(msg, Committed).version for msg in responses(out)] == [4, 5]
    assert world.get("old") == Val("raw", b"1")
    assert world.get("k4999") == Val("raw", b"4999")


def test_a_large_transaction_fails_when_its_namespace_is_removed(world):
    world.leader.create("work", 1, None, NOW)
    ops = [put(f"k{index}", index) for index in range(5000)]
    commit = Commit("work", CommitId("d", 1), 0, ops[:1000], more=pieces(ops[1000:]))
    world.leader.step(ask("leader.commit", commit), NOW)
    world.leader.tick(NOW)
    world.namespaces.remove("work")
    out = world.leader.drop("work") + world.turn()
    assert isinstance(error(responses(out)[0]), errors.NoSuchNamespace)
    assert not world.leader.blocks_collection


def test_a_large_directory_is_checked_in_slices(world):
    edit = Edit(world.nodes, world.nodes.insert(Leaf([], [])))
    edit.mark()
    for index in range(30_000):
        edit.put([f"k{index}"], Val("raw", b""))
    ref, _ = edit.seal()
    world.send(Put("copy", Dir(ref)))
    turns = 0
    while world.leader.deadline <= NOW:
        world.leader.tick(NOW)
        turns += 1
    assert turns > 10
    world.send(Put("again", Dir(ref)))
    world.leader.tick(NOW)
    assert world.leader.deadline > NOW, "it is known to be complete"
    assert world.get("again") == Dir(ref)


# -------------------------------------------------------------------------------------------------- against plain dicts

KEYS = ["a", "a.b", "a.b.c", "n", "l", "l.b"]
objects = st.sampled_from([json(1), json(2), json("x"), Val("raw", b"y"), Val("raw", b"z" * 300), Link("a"), Link("l")])
operations = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), objects),
    st.builds(Append, st.sampled_from(KEYS), st.sampled_from([b"1", b"2"])),
    st.builds(Unlink, st.sampled_from(KEYS)),
    st.builds(Mkdir, st.sampled_from(KEYS)),
    st.builds(
        Add, st.sampled_from(["n", "n", "a", "l.b"]), st.sampled_from([1, -2, MAX]), st.sampled_from([None, None, 2])
    ),
    st.builds(Exchange, st.sampled_from(KEYS), objects),
    st.builds(Swap, st.sampled_from(KEYS), st.one_of(st.none(), objects), st.one_of(st.none(), objects)),
)
guards = st.one_of(
    st.builds(Guard, st.sampled_from(KEYS), st.just(GUARD_VALUE), st.sampled_from(["==", "!=", "<", ">="]), objects),
    st.builds(Guard, st.sampled_from(KEYS), st.just(GUARD_EXISTS), st.sampled_from(["==", "!="]), st.booleans()),
    st.builds(
        Guard, st.sampled_from([*KEYS, "."]), st.just(GUARD_VERSION), st.sampled_from(["==", "<="]), st.integers(0, 6)
    ),
)
transactions = st.tuples(
    st.lists(operations, max_size=4), st.lists(guards, max_size=2), st.lists(operations, max_size=2), st.booleans()
)


class Made:
    def __init__(self, number, tree):
        self.version = number
        self.tree = tree


@settings(max_examples=300, deadline=None)
@given(st.lists(transactions, max_size=8), st.booleans())
@example([([Put("a", Val("json", b'"x"')), Append("a", b"1")], [], [], False)], False)
def test_any_transactions_have_the_outcome_of_the_model(sent, slowly):
    """Several in a turn share versions; each must have the outcome that it has alone."""
    world = World(limits=LeaderLimits(turn_steps=1, slice_ops=1, slice_nodes=1, large_ops=1) if slowly else LIMITS)
    blobs = from_wire.BlobReader(world.blobs.get)
    store = ModelStore({}, "primary")
    commits, answers = [], []
    for ops, asked, otherwise, ends in sent:
        commits.append(world.send(*ops, guards=asked, otherwise=otherwise))
        if ends:
            answers += world.turn()
    answers += world.turn()
    found = {msg.tag: msg for msg in responses(answers)}
    made = [Made(0, {})]
    for tag, commit in enumerate(commits, 1):
        answer = found.pop(tag)
        number = world.namespaces.find("primary").root.version + 1 if answer.status else body(answer, Committed).version
        asked = from_wire.transaction(commit, blobs.plain)
        if answer.status:
            with pytest.raises(FluxmpiError) as caught:
                store.commit(asked, lambda key: last(made, key))
            assert type(caught.value).code == answer.status
            continue
        told = body(answer, Committed)
        follows = told.succeeded or commit.otherwise
        before = [one for one in made if one.version < number] if follows else made
        outcome = store.commit(asked, lambda key, before=before: last(before, key))
        assert told.succeeded is outcome.succeeded
        if told.results:
            steps = asked.steps if told.succeeded else asked.otherwise
            results = [from_wire.result(*pair, blobs.plain) for pair in zip(steps, told.results, strict=True)]
            assert results == outcome.results
        else:
            assert not any(outcome.results)
        if outcome.made:
            if made[-1].version != number:
                made.append(Made(number, None))
            made[-1].tree = store.tree
    assert not found
    assert blobs.tree(world.namespaces.find("primary").root.ref) == store.tree


def last(facts, key):
    return (facts[-1].version, True) if key == "." else last_change(facts, key)
