"""Diffs compared with plain models: correct, symmetric, in slices, resumable, in time that grows with the changes only."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import SHA256, Hidden, build, build_model, flatten, make_nodes, names_of_level, run, val

from fluxmpi import errors
from fluxmpi.kvs.objects import Dir, Link
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import MISSING_MAX, Found, Inner, Leaf, Missing, NodeCache, level

NAMES = [f"n{index}" for index in range(100_000)]


def changes(nodes, a, b, prefix=""):
    found = run(Diff(nodes, a, b, prefix), limit=10**9)
    assert not found.more
    return found.value


def edited(nodes, root, put=(), unlink=(), thing=None):
    edit = Edit(nodes, root)
    for key in put:
        edit.put(key.split("."), thing or val("new"))
    for key in unlink:
        edit.unlink(key.split("."))
    return edit.seal()[0]


@pytest.fixture(scope="module")
def large():
    nodes, store = make_nodes(nodes_max=20000)
    root = build(nodes, NAMES)
    assert nodes.node(root).level + 1 == HEIGHT
    return nodes, store, root


# -------------------------------------------------------------------------------------------------------------- right


def test_values_that_are_added_changed_and_removed():
    nodes, _ = make_nodes()
    a = build(nodes, {"a": val(1), "b": val(2), "c": val(3)})
    b = build(nodes, {"b": val(2), "c": val(4), "d": Link("b")})
    assert changes(nodes, a, b) == [("a", val(1), None), ("c", val(3), val(4)), ("d", None, Link("b"))]
    assert changes(nodes, a, a) == []


def test_of_a_directory_on_both_sides_only_changes_below_are_reported():
    nodes, _ = make_nodes()
    a = build(nodes, {"d.e.x": val(1), "d.e.y": val(2), "d.z": val(3)})
    b = edited(nodes, a, put=["d.e.x"])
    assert changes(nodes, a, b) == [("d.e.x", val(1), val("new"))]


def test_an_added_or_removed_directory_is_reported_with_all_below_it():
    nodes, _ = make_nodes()
    a = build(nodes, {"k": val(0)})
    b = build(nodes, {"d.e.x": val(1), "d.y": val(2), "k": val(0)})
    made = changes(nodes, a, b)
    assert [(key, old) for key, old, _ in made] == [("d", None), ("d.e", None), ("d.e.x", None), ("d.y", None)]
    assert [type(new) for _, _, new in made[:2]] == [Dir, Dir]
    assert [new for _, _, new in made[2:]] == [val(1), val(2)]
    assert changes(nodes, b, a) == [(key, new, old) for key, old, new in made]


def test_a_value_that_becomes_a_directory():
    nodes, _ = make_nodes()
    a, b = build(nodes, {"d": val(1)}), build(nodes, {"d.x": val(2)})
    (first, second) = changes(nodes, a, b)
    assert first[:2] == ("d", val(1))
    assert type(first[2]) is Dir
    assert second == ("d.x", None, val(2))


def test_a_missing_side():
    nodes, _ = make_nodes()
    a = build(nodes, {"x": val(1), "y": val(2)})
    assert changes(nodes, None, a) == [("x", None, val(1)), ("y", None, val(2))]
    assert changes(nodes, a, None) == [("x", val(1), None), ("y", val(2), None)]
    assert changes(nodes, None, None) == []


@pytest.mark.parametrize("prefix", ["job.7", "job.7."])
def test_the_prefix_is_the_key_of_the_directories(prefix):
    nodes, _ = make_nodes()
    assert changes(nodes, None, build(nodes, {"x": val(1)}), prefix) == [("job.7.x", None, val(1))]
    assert changes(nodes, None, build(nodes, {"x": val(1)}), ".") == [("x", None, val(1))]


def test_keys_are_ordered_by_their_components():
    nodes, _ = make_nodes()
    root = build(nodes, {"a.b": val(1), "a-c": val(2), "b": val(3)})
    assert [key for key, _, _ in changes(nodes, None, root)] == ["a", "a.b", "a-c", "b"]


names = st.sampled_from(["a", "b", "c", "a-", "é", *NAMES[:12], *names_of_level(1, 3), *names_of_level(2, 2)])
models = st.recursive(
    st.dictionaries(names, st.integers(0, 2).map(val), max_size=15),
    lambda inner: st.dictionaries(names, inner | st.integers(0, 2).map(val), max_size=12),
    max_leaves=40,
)


def naive(nodes, a, b):
    def objects(model):
        return {
            key: Dir(build_model(nodes, thing)) if isinstance(thing, dict) else thing for key, thing in flatten(model)
        }

    old, new = objects(a), objects(b)
    keys = sorted(old.keys() | new.keys(), key=lambda key: key.split("."))
    return [
        (key, old.get(key), new.get(key))
        for key in keys
        if old.get(key) != new.get(key) and not (type(old.get(key)) is Dir and type(new.get(key)) is Dir)
    ]


@given(models, models, st.integers(1, 9))
@settings(max_examples=150)
def test_diffs_equal_a_naive_one_also_in_slices_and_when_suspended(a, b, limit):
    full, store = make_nodes()
    root_a, root_b = build_model(full, a), build_model(full, b)
    hidden = Hidden(store)
    walk = Diff(NodeCache(hidden, SHA256), root_a, root_b)
    reported = []
    while True:
        found = run(walk, hidden, limit=limit)
        assert len(found.value) <= limit
        reported += found.value
        if not found.more:
            break
        assert len(found.value) == limit
    assert reported == naive(full, a, b)
    assert walk.advance() == Found([])


keys = st.lists(names, min_size=1, max_size=4).map(".".join)


@given(models, models, keys, st.integers(1, 5))
@settings(max_examples=150)
def test_a_diff_can_begin_after_any_key(a, b, key, limit):
    full, store = make_nodes()
    root_a, root_b = build_model(full, a), build_model(full, b)
    reported = naive(full, a, b)

    def by_components(key):
        return key.split(".")

    for at in {key, *(change[0] for change in reported)}:
        hidden = Hidden(store)
        rest = run(Diff(NodeCache(hidden, SHA256), root_a, root_b, after=at), hidden, limit=10**9)
        assert rest.value == [change for change in reported if by_components(change[0]) > by_components(at)]
    pages, last, more = [], None, True
    while more:
        hidden = Hidden(store)
        found = run(Diff(NodeCache(hidden, SHA256), root_a, root_b, "job.7", after=last), hidden, limit=limit)
        pages += found.value
        more = found.more
        last = found.value[-1][0] if found.value else last
    assert pages == [(f"job.7.{key}", old, new) for key, old, new in reported]


def test_after_must_be_a_key_in_the_directory():
    nodes, _ = make_nodes()
    a, b = build(nodes, {"x": val(1)}), build(nodes, {"x": val(2)})
    with pytest.raises(errors.InvalidRequest, match=r"'job\.8\.x' is not in 'job\.7'"):
        Diff(nodes, a, b, "job.7", after="job.8.x")
    assert run(Diff(nodes, a, b, "job.7", after="job.7")).value == [("job.7.x", val(1), val(2))]


def test_a_diff_after_a_key_reads_the_path_to_it_only(large):
    nodes, store, root = large
    other = edited(nodes, root, put=NAMES)
    hidden = Hidden(store)
    last = sorted(NAMES)[-5]
    found = run(Diff(NodeCache(hidden, SHA256), root, other, after=last), hidden, limit=10**9)
    assert [key for key, _, _ in found.value] == sorted(NAMES)[-4:]
    assert len(hidden.asked) < 4 * HEIGHT


@given(models, models)
@settings(max_examples=40)
def test_diffs_are_symmetric(a, b):
    nodes, _ = make_nodes()
    root_a, root_b = build_model(nodes, a), build_model(nodes, b)
    assert changes(nodes, root_b, root_a) == [(key, new, old) for key, old, new in changes(nodes, root_a, root_b)]


@given(st.sets(st.sampled_from(NAMES[:500])), st.sets(st.sampled_from(NAMES[:500])), st.sampled_from([100, 500]))
@settings(max_examples=100)
def test_diffs_of_one_directory_edited(put, unlink, count):
    full, store = make_nodes()
    a = build(full, NAMES[:count])
    b = edited(full, a, put=sorted(put - unlink), unlink=sorted(unlink))
    hidden = Hidden(store)
    reported = run(Diff(NodeCache(hidden, SHA256), a, b), hidden, limit=10**9).value
    before, after = set(NAMES[:count]), (set(NAMES[:count]) | put) - unlink
    assert reported == [
        (name, val(name) if name in before else None, val("new") if name in after else None)
        for name in sorted((put - unlink) | (before & unlink))
    ]


# --------------------------------------------------------------------------------------------------------------- cost


def reads_of(store, a, b):
    """How many nodes a diff reads, in how many rounds, and the changes."""
    hidden = Hidden(store)
    walk = Diff(NodeCache(hidden, SHA256), a, b)
    rounds = 0
    while isinstance(answer := walk.advance(limit=10**9), Missing):
        rounds += 1
        assert len(answer.refs) <= MISSING_MAX
        hidden.reveal(answer.refs)
    return len(hidden.asked), rounds, answer.value


HEIGHT = 4
"""Levels of the tree of 100,000 names."""


@pytest.mark.parametrize("name", ["n5", "n50000", "n99999", *names_of_level(2, 2), *names_of_level(3, 2)])
@pytest.mark.parametrize("operation", ["put", "unlink", "insert"])
def test_one_change_in_100_000_names_reads_two_paths(large, name, operation):
    nodes, store, root = large
    key = name + "!" if operation == "insert" else name
    changed = edited(nodes, root, **({"unlink": [key]} if operation == "unlink" else {"put": [key]}))
    for a, b in ((root, changed), (changed, root)):
        reads, rounds, reported = reads_of(store, a, b)
        assert [change[0] for change in reported] == [key]
        # An added or removed boundary has two paths on one side, and one on the other side.
        if operation == "put" or not level(key):
            assert reads == 2 * HEIGHT
            assert rounds == HEIGHT
        else:
            assert reads <= 4 * HEIGHT
            assert rounds <= 2 * HEIGHT


def test_ten_changes_read_ten_times_as_much_in_few_more_rounds(large):
    nodes, store, root = large
    keys = NAMES[5::10007]
    reads, rounds, reported = reads_of(store, root, edited(nodes, root, put=keys))
    assert [key for key, _, _ in reported] == sorted(keys)
    assert reads <= 2 * HEIGHT * len(keys)
    assert rounds <= HEIGHT + 2 * len(keys)


def test_inserted_names_read_the_new_nodes_and_those_they_replace(large):
    nodes, store, root = large
    keys = [key for name in NAMES[5::1007] if not level(key := name + "!")]
    edit = Edit(nodes, root)
    for key in keys:
        edit.put([key], val("new"))
    changed, new = edit.seal()
    for a, b in ((root, changed), (changed, root)):
        reads, _, reported = reads_of(store, a, b)
        assert [key for key, _, _ in reported] == sorted(keys)
        assert reads == 2 * len(new)


def test_a_run_of_names_removed_or_added_costs_its_length(large):
    nodes, store, root = large
    gone = sorted(NAMES)[30000:31000]
    changed = edited(nodes, root, unlink=gone)
    for a, b in ((root, changed), (changed, root)):
        reads, rounds, reported = reads_of(store, a, b)
        assert [key for key, _, _ in reported] == gone
        assert reads <= 1000 / 16 * 1.5 + 4 * HEIGHT
        assert rounds <= 3 * HEIGHT


def test_equal_roots_are_not_read():
    hidden = Hidden(make_nodes()[1])
    assert Diff(NodeCache(hidden, SHA256), b"\1" * 32, b"\1" * 32).advance() == Found([])


def test_many_changed_directories_are_loaded_together():
    nodes, store = make_nodes()
    a = build(nodes, {f"job.{name}.{leaf}": val(name) for name in NAMES[:10] for leaf in ("state", "id")})
    b = edited(nodes, a, put=[f"job.{name}.state" for name in NAMES[:10]])
    reads, rounds, reported = reads_of(store, a, b)
    assert len(reported) == 10
    assert reads >= 2 * (10 + 2)
    assert rounds <= 5


def test_directories_in_a_new_directory_are_loaded_together():
    nodes, store = make_nodes()
    reads, rounds, reported = reads_of(store, None, build(nodes, {f"job.{name}.id": val(name) for name in NAMES[:10]}))
    assert len(reported) == 1 + 2 * 10
    assert reads >= 10 + 2
    assert rounds <= 5


def test_a_new_directory_is_loaded_level_by_level():
    nodes, store = make_nodes()
    reads, rounds, reported = reads_of(store, None, build(nodes, NAMES[:1000]))
    assert len(reported) == 1000
    assert rounds <= 10 < reads / 5


def test_a_diff_asks_for_at_most_missing_max_nodes():
    nodes, store = make_nodes()
    high = names_of_level(2, 1)[0]
    wide = build(nodes, [high, *(f"n{index}" for index in range(40_000) if level(f"n{index}") < 2)])
    assert max(len(nodes.node(ref).names) for ref in store) > 2 * MISSING_MAX
    for a, b in ((None, wide), (build(nodes, {"a": val(1)}), wide)):
        assert len(reads_of(store, a, b)[2]) > 30_000
    directories = build(nodes, {f"d{index}.x": val(index) for index in range(400)})
    assert len(reads_of(store, None, directories)[2]) == 800


# ----------------------------------------------------------------------------------------------------------- limits


def test_a_limit_of_zero_is_refused():
    nodes, _ = make_nodes()
    with pytest.raises(errors.InvalidRequest, match="limit"):
        Diff(nodes, None, None).advance(limit=0)


def test_a_wrong_child_and_a_blob_that_is_not_a_node():
    nodes, store = make_nodes()
    leaf = nodes.insert(Leaf(["a", "b"], [val(1), val(2)]))
    crooked = nodes.insert(Inner(2, ["b", "c"], [leaf, leaf]))
    store[b"\1" * 32] = b"\1"
    for bad in (crooked, b"\1" * 32):
        for a, b in ((bad, leaf), (leaf, bad), (bad, None)):
            with pytest.raises(errors.ProtocolError):
                Diff(nodes, a, b).advance()


def test_a_diff_of_trees_that_are_not_canonical_ends():
    nodes, _ = make_nodes()
    one, other = (nodes.insert(Leaf(["a", "m", "z"], [val(index)] * 3)) for index in range(2))
    tall = nodes.insert(Inner(1, ["m", "z"], [nodes.insert(Leaf(["b", "m"], [val(3)] * 2)), one]))
    for a, b in ((one, tall), (tall, other), (tall, one)):
        assert not run(Diff(nodes, a, b), limit=100).more
