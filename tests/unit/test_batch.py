"""A batch, the version under construction: which transactions share it, which conflict, and what a failure leaves."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import put
from trees import SHA256, Blobs, empty, make_nodes, val

from fluxmpi import errors
from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.kvs.leader.batch import Batch
from fluxmpi.kvs.leader.limits import LeaderLimits
from fluxmpi.kvs.leader.validation import ObjectValidator
from fluxmpi.kvs.objects import UNKNOWN_SIZE, VAL_BYTES_MAX, Dir, Link, Val, ValRef, split_key
from fluxmpi.kvs.store.edit import Edit, run_to_end
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Inner, Leaf, encode_node, level
from fluxmpi.kvs.store.node import check as check_tree
from fluxmpi.kvs.wire import Append, Exchange, Mkdir, Put, PutShared, RootInfo, Swap, Unlink

LIMITS = LeaderLimits()


class World:
    """A namespace with batches, and no committer."""

    def __init__(self):
        self.nodes, self.blobs = make_nodes()
        self.values = ObjectValidator(self.blobs, SHA256, LIMITS)
        self.root = empty(self.nodes)
        self.begin()

    def begin(self):
        self.edit = Edit(self.nodes, self.root)
        base = RootInfo("primary", 0, self.root, 0.0)
        self.batch = Batch(base, self.edit, self.values, LIMITS, lambda key: (0, True))

    def place(self, *ops):
        """Place a transaction by the method that a commit takes, in one go; False when it conflicts."""
        ops = list(ops)
        if len(ops) == 1 and type(ops[0]) is Put and type(ops[0].object) is Val:
            placed = self.batch.place_put(ops[0])
        elif self.batch.needs_slices(ops):
            placed = run_to_end(self.batch.place_in_slices(ops)) is not None
        else:
            placed = self.batch.place(ops) is not None
        if placed:
            self.batch.entries.append(ops)
        return placed

    def seal(self):
        self.root, _ = run_to_end(self.batch.seal_in_slices())
        check_tree(self.nodes, self.root)
        self.begin()
        return self.root

    def do(self, *ops):
        assert self.place(*ops)
        return self.seal()

    def get(self, key, follow=True):
        return Lookup(self.nodes, lambda _: self.root, "primary", self.root, split_key(key), follow).advance().value

    def read(self, key):
        thing = self.get(key)
        return thing.data if type(thing) is Val else b"".join(self.blobs[ref] for ref in thing.refs)


@pytest.fixture
def world():
    return World()


# ------------------------------------------------------------------------------------------------------------ conflicts


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (put("a", 1), put("a", 2)),
        (put("a", 1), put("a", 1)),
        (put("a", 1), Unlink("a")),
        (Append("a", b"x"), Append("a", b"y")),
        (put("a.b", 1), put("a.b.", 2)),
        (put("a.b.c", 1), Unlink("a")),
        (Unlink("a"), put("a.b.c", 1)),
        (put("a.b.c", 1), Mkdir("a.b")),
        (Mkdir("a"), put("a.b", 1)),
        (put("a.b.c", 1), put("a.b", 2)),
        (Mkdir("."), put("a", 1)),
        (put("a", 1), Mkdir(".")),
        (put("link.x", 1), put("dir.x", 2)),
        (put("dir.x", 1), put("link.x", 2)),
        (put("dir.x", 1), put("deep.x", 2)),
        (Unlink("dir"), put("link.x", 2)),
        (Put("link", Link("other")), put("link.x", 1)),
    ],
)
def test_transactions_with_overlapping_keys_conflict(world, first, second):
    world.do(Mkdir("dir"), Mkdir("other"), Put("link", Link("dir")), Put("deep", Link("link")))
    assert world.place(first)
    before = world.batch.keys[:]
    assert not world.place(second)
    assert world.batch.keys == before
    one = world.seal()
    assert world.place(second), "the next batch takes it"
    two = world.seal()
    assert world.batch.number == 1
    assert one != two or first == put("a", 1) or isinstance(second, Mkdir)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (put("a", 1), put("b", 2)),
        (put("a.b", 1), put("a.c", 2)),
        (put("a.b", 1), put("a.bc", 2)),
        (put("ab", 1), put("a", 2)),
        (put("a.b", 1), put("ab", 2)),
        (put("dir.x", 1), put("link.y", 2)),
        (Unlink("a"), put("b.a", 2)),
    ],
)
def test_disjoint_transactions_share_a_batch_with_the_result_of_any_order(world, first, second):
    world.do(Mkdir("dir"), Put("link", Link("dir")))
    root = world.root
    assert world.place(first)
    assert world.place(second)
    together = world.seal()
    world.root = root
    world.begin()
    world.do(second)
    assert world.do(first) == together


def test_one_transaction_may_write_a_key_many_times(world):
    world.do(put("a", 1), put("a", 2), Unlink("a"), put("a.b", 3), Append("a.b", b"4"))
    assert world.read("a.b") == b"34"


KEYS = st.sampled_from(["a", "a.b", "a.b.c", "a.c", "ab", "b", "l", "l.b", "l.b.c", "."])
OPS = st.one_of(
    st.builds(put, KEYS, st.integers(0, 3)),
    st.builds(Unlink, KEYS),
    st.builds(Mkdir, KEYS),
    st.builds(Append, KEYS, st.just(b"+")),
    st.builds(lambda key: Put(key, Link("a")), KEYS),
)


@settings(max_examples=100)
@given(st.lists(st.lists(OPS, min_size=1, max_size=3), max_size=8))
def test_any_batches_have_the_outcome_of_one_transaction_per_version(transactions):
    """Merging changes neither the last root nor any outcome, and every value put is some version's value."""
    merged, single = World(), World()
    for ops in transactions:
        outcome = []
        for world in (merged, single):
            try:
                while not world.place(*ops):
                    world.seal()
                outcome.append(None)
            except errors.FluxmpiError as error:
                outcome.append((type(error), error.text))
        single.seal()
        assert outcome[0] == outcome[1]
    assert merged.seal() == single.seal()


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("op", "kind"),
    [
        (put("v.x", 1), errors.NotADirectory),
        (Mkdir("v"), errors.NotADirectory),
        (Append("v.x", b""), errors.NotADirectory),
        (Append("d", b""), errors.IsADirectory),
        (Append(".", b""), errors.IsADirectory),
        (put(".", 1), errors.InvalidKey),
        (Unlink("."), errors.InvalidKey),
        (put("", 1), errors.InvalidKey),
        (put("...", 1), errors.InvalidKey),
        (put("a\0", 1), errors.InvalidKey),
        (put("k" * 10_240, 1), errors.InvalidKey),
        (put(".".join("k" * 129), 1), errors.InvalidKey),
        (put("loop.x", 1), errors.LinkLoop),
        (Put("k", Link("")), errors.InvalidKey),
        (Put("k", ValRef("raw", 3, (SHA256(b"no such"),))), errors.NoSuchBlob),
        (Put("k", ValRef("raw", 3, (b"short",))), errors.NoSuchBlob),
        (Put("k", Dir(SHA256(b"no such"))), errors.NoSuchBlob),
        (put("far.x", 1), errors.InvalidRequest),
        (PutShared("k", 0), errors.InvalidRequest),
        (Append("array", b"x"), errors.InvalidRequest),
        (Append("link", b"x"), errors.InvalidRequest),
    ],
)
def test_a_transaction_that_fails_changes_nothing(world, op, kind):
    world.do(
        put("u", 0),
        put("v", 1),
        Mkdir("d"),
        Put("loop", Link("loop")),
        Put("link", Link("v")),
        Put("far", Link("x", "other")),
        Put("array", Val("ndarray;<f8;1", np.zeros(1).tobytes())),
    )
    assert world.place(put("n.first", 1))
    ops = [put("n.second", 1), Unlink("u"), Mkdir("n.d.e"), op]
    if op.key == ".":  # overlaps every key
        assert not world.place(*ops)
        world.seal()
    with pytest.raises(kind):
        world.place(*ops)
    assert world.place(put("n.third", 1))
    world.seal()
    assert [world.get(key) for key in ("u", "n.first", "n.third")] == [val(0), val(1), val(1)]
    assert world.get("n.second") is None
    assert world.get("n.d") is None


def test_a_transaction_that_fails_leaves_no_footprint(world):
    with pytest.raises(errors.InvalidKey):
        world.place(put("a", 1), put("", 1))
    assert world.batch.keys == []
    assert world.place(put("b", 1))
    with pytest.raises(errors.InvalidKey):
        world.place(put("a", 1), put("", 1))
    assert world.place(put("a", 2))
    assert world.batch.keys == ["b", "a"]


def test_changed_keys_are_resolved(world):
    world.do(Mkdir("dir"), Put("link", Link("dir")))
    world.place(put("link.x", 1), Mkdir("link.new."), Unlink("link"))
    assert world.batch.keys == ["dir.x", "dir.new", "link"]


# ------------------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("size", [0, 1, VAL_BYTES_MAX, VAL_BYTES_MAX + 1, BLOB_BYTES_MAX, BLOB_BYTES_MAX + 1, 3 << 20])
def test_long_values_become_blobs_of_bounded_size(world, size):
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    world.do(Put("k", Val("json", data)))
    thing = world.get("k")
    assert thing.type == "json"
    assert world.read("k") == data
    if size <= VAL_BYTES_MAX:
        assert type(thing) is Val
    else:
        assert type(thing) is ValRef
        assert thing.size == size
        assert len(thing.refs) == -(-size // BLOB_BYTES_MAX)


def test_a_value_may_name_stored_blobs(world):
    pieces = [b"a" * 1000, b"b" * 1000]
    for piece in pieces:
        world.blobs.put(SHA256(piece), piece)
    refs = tuple(map(SHA256, pieces))
    world.do(Put("k", ValRef("raw", 2000, refs)))
    assert world.read("k") == b"".join(pieces)
    with pytest.raises(errors.NoSuchBlob, match="store it before the commit"):
        world.place(Put("k", ValRef("raw", 2000, (*refs, SHA256(b"c")))))


def test_a_value_whose_size_is_not_that_of_its_blobs_is_refused(world):
    world.blobs.put(SHA256(b"abc"), b"abc")
    for size in (0, 2, 4, -2, 1 << 40):
        with pytest.raises(
            errors.InvalidRequest, match=f"says that it has {size} bytes, and its blobs have 3 together"
        ):
            world.place(Put("k", ValRef("raw", size, (SHA256(b"abc"),))))


@pytest.mark.parametrize("count", [0, 1, 3, 300, 1000])
def test_a_value_without_a_size_gets_it(world, count):
    """As a valref of Flux; the blobs of a long list are checked in slices."""
    pieces = [b"piece %d" % n for n in range(count)]
    for piece in pieces:
        world.blobs.put(SHA256(piece), piece)
    value = ValRef("raw", UNKNOWN_SIZE, tuple(map(SHA256, pieces)))
    world.do(Put("k", value), Put("again", value), Swap("swapped", None, value))
    for key in ("k", "again", "swapped"):
        assert world.get(key).size == len(b"".join(pieces))
        assert world.read(key) == b"".join(pieces)


# ----------------------------------------------------------------------------------------------- directories as objects


def test_a_directory_of_this_store_can_be_put_elsewhere(world):
    world.do(*(put(f"d.e.k{n}", n) for n in range(2000)), Put("d.big", Val("raw", bytes(3000))))
    d = world.get("d")
    world.do(Put("copy", d))
    assert world.get("copy") == d
    assert world.read("copy.e.k77") == b"77"
    world.do(put("copy.e.k77", "new"))
    assert world.read("d.e.k77") == b"77"


LEVEL_0 = [name for name in (f"n{n}" for n in range(100)) if level(name) == 0]
LEVEL_1 = next(name for name in (f"n{n}" for n in range(1000)) if level(name) == 1)
ONE = Val("raw", b"1")


def store(world, node):
    blob = node if type(node) is bytes else encode_node(node)
    world.blobs.put(SHA256(blob), blob)
    return SHA256(blob)


@pytest.mark.parametrize(
    "node",
    [
        b"",
        b"no node",
        Leaf(["b", "a"], [ONE, ONE]),
        Leaf(["a"], []),
        Leaf(["a.b"], [ONE]),
        Leaf([""], [ONE]),
        Leaf(["\0"], [ONE]),
        Leaf(sorted([LEVEL_1, LEVEL_1 + "~"]), [ONE, ONE]),
        Leaf(["a"], [Dir(SHA256(b"nowhere"))]),
        Leaf(["a"], [Dir(b"short")]),
        Leaf(["a"], [ValRef("raw", 7, (SHA256(b"nowhere"),))]),
        Leaf(["a"], [ValRef("raw", 7, ())]),
        Leaf(["a"], [ValRef("raw", UNKNOWN_SIZE, ())]),
        Inner(1, ["a"], [SHA256(b"nowhere")]),
        Inner(1, ["a", "b"], [SHA256(b"nowhere"), SHA256(b"nowhere")]),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_directory_that_is_not_complete_and_canonical_is_refused(world, node, depth):
    """One in the tree would keep every later checkpoint from being written."""
    ref = store(world, node)
    for _ in range(depth):
        ref = store(world, Leaf(["a"], [Dir(ref)]))
    for _ in range(2):
        with pytest.raises((errors.InvalidRequest, errors.NoSuchBlob, errors.InvalidKey)):
            world.place(Put("d", Dir(ref)))
    assert world.place(Put("d", Dir(store(world, Leaf(["a"], [ONE])))))


def test_a_directory_with_nodes_cut_at_wrong_names_is_refused(world):
    names = sorted(LEVEL_0[:6])
    left, right = Leaf(names[:3], [ONE] * 3), Leaf(names[3:], [ONE] * 3)
    root = Inner(1, [names[2], names[5]], [store(world, left), store(world, right)])
    with pytest.raises(errors.InvalidRequest, match="where its names do"):
        world.place(Put("d", Dir(store(world, root))))


# ------------------------------------------------------------------------------------------------------------ append


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * LIMITS.append_blob_bytes), max_size=8), st.booleans())
def test_appends_add_up(sizes, sealed):
    world = World()
    pieces = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    expected = b"".join(pieces)
    if sealed:
        for data in pieces:
            world.do(Append("log", data))
    else:
        world.do(*(Append("log", data) for data in pieces))
    if sizes:
        assert world.read("log") == expected
        thing = world.get("log")
        assert type(thing) is Val or thing.size == len(expected)


def test_a_log_of_short_lines_is_few_blobs(world):
    for _ in range(2):
        world.do(*[Append("log", b"x" * 100)] * 1000)
    thing = world.get("log")
    assert thing.size == 200_000
    assert len(thing.refs) <= 200_000 // LIMITS.append_blob_bytes + 1


def test_append_to_values_of_every_kind(world):
    world.do(Put("j", Val("json", b"[1]")), Put("big", Val("raw", bytes(1000))), Put("none", ValRef("raw", 0, ())))
    world.do(Append("j", b"x"), Append("big", b"y"), Append("none", b"z"), Append("new.log", b"w"))
    assert (world.read("j"), world.read("big"), world.read("none")) == (b"[1]x", bytes(1000) + b"y", b"z")
    assert world.read("new.log") == b"w"
    assert isinstance(world.blobs, Blobs)


@pytest.mark.parametrize("size", [3, 200, 1000, 300_000])
def test_an_append_to_a_text_follows_the_text(world, size):
    """And not the closing quote of the JSON string."""
    text = '"' + "ü" * size
    world.do(Put("t", world.values.normalize(Val("json", msgspec.json.encode(text)))))
    world.do(Append("t", b"+"))
    assert world.read("t") == text.encode() + b"+"
    assert world.get("t").type == "raw"


def test_an_append_to_a_long_json_text_is_refused(world):
    world.do(Put("t", world.values.normalize(Val("json", b'"' + bytes(32).replace(b"\0", b"x") * (1 << 15) + b'"'))))
    with pytest.raises(errors.TooLarge, match="1,048,578 bytes stored as JSON"):
        world.place(Append("t", b"+"))
    assert not world.batch.entries


def test_an_append_to_invalid_json_follows_its_bytes(world):
    world.do(Put("t", Val("json", b'"open')), Append("t", b"+"))
    assert world.read("t") == b'"open+'


def chain(world, levels, leaf):
    """A directory of so many levels, the lowest of which is ``leaf``."""
    ref = store(world, leaf)
    for _ in range(levels - 1):
        ref = store(world, Leaf(["a"], [Dir(ref)]))
    return Dir(ref)


@pytest.mark.parametrize(("key", "depth"), [("k", 1), ("k.k.k", 3), ("link.k", 3)])
def test_a_directory_that_would_nest_past_the_components_of_a_key_is_refused(world, key, depth):
    """Each key in it can be named, and no walk of a tree meets more levels."""
    world.do(Put("link", Link("x.y")), Mkdir("x.y"))
    for leaf, levels in ((Leaf(["a"], [ONE]), 128 - depth), (Leaf([], []), 129 - depth)):
        world.do(Put(key, chain(world, levels, leaf)))
        before = world.get(key)
        for op in (Put, Exchange):
            with pytest.raises(errors.TooLarge, match="129 components"):
                world.place(op(key, chain(world, levels + 1, leaf)))
        assert world.get(key) == before
    with pytest.raises(errors.TooLarge, match="5000 levels"):
        world.place(Put(key, chain(world, 5000, Leaf(["a"], [ONE]))))


def test_the_height_of_a_directory_is_found_again_when_it_was_forgotten(world):
    tall = chain(world, 127, Leaf(["a"], [ONE]))
    world.do(Put("k", tall))
    world.values.forget()
    with pytest.raises(errors.TooLarge, match="129 components"):
        world.place(Put("k.k", tall))
    shared = Dir(store(world, Leaf(["a", "b", "c"], [tall, ONE, tall])))
    with pytest.raises(errors.TooLarge, match="129 components"):
        world.place(Put("s", shared))
