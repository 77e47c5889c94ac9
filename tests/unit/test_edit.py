"""Edits of the tree: canonical shape for every order of writes, transactions, rollbacks, seals, links on the way."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from trees import SHA256, Blobs, Tree, build, build_model, copy, empty, make_nodes, names_of_level, val

from fluxmpi import errors
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, Val, ValRef
from fluxmpi.kvs.store import edit as tree_module
from fluxmpi.kvs.store import node as nodes_module
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import (
    LEVEL_MAX,
    Inner,
    Leaf,
    NodeCache,
    check,
    check_child,
    decode_node,
    encode_node,
    level,
)


def shuffled(names: list[str], seed: int) -> list[str]:
    names = names[:]
    random.Random(seed).shuffle(names)
    return names


NAMES = [f"n{index}" for index in range(3000)]

PINNED = ["n1", "n51", "n67", "n82", "n97"]
PINNED_ROOT = "38201595f7ede54fd01e8be674a52b124061fa654ca8c69935064a110a0ebb7c"
PINNED_LARGE_ROOT = "ce855695b0b1144512719bf16bf48f264064af779b17b370eb5e87c343813f49"


# --------------------------------------------------------------------------------------------------------- canonical


def test_levels_do_not_change_because_refs_depend_on_them():
    assert [name for name in NAMES[:100] if level(name)] == PINNED
    assert max(map(level, NAMES)) == 2


def test_a_root_ref_does_not_change_because_files_depend_on_it():
    nodes, _ = make_nodes()
    root = build(nodes, {"a": Val("json", b"1"), "b.c": Link("a"), "d": ValRef("raw", 5, (b"\1" * 32,))})
    assert root.hex() == PINNED_ROOT
    assert build(nodes, NAMES).hex() == PINNED_LARGE_ROOT


def test_the_empty_directory_is_the_leaf_without_entries():
    nodes, store = make_nodes()
    root = empty(nodes)
    assert store[root] == encode_node(Leaf([], [])) == b"\x93\x00\x90\x90"
    assert check(nodes, root) == 0


@pytest.mark.parametrize("count", [1, 2, 15, 40, 300, 3000])
def test_any_order_gives_the_same_root(count):
    nodes, _ = make_nodes()
    roots = {build(nodes, shuffled(NAMES[:count], seed)) for seed in range(4)}
    roots |= {build(nodes, sorted(NAMES[:count])), build(nodes, sorted(NAMES[:count], reverse=True))}
    assert len(roots) == 1
    assert check(nodes, roots.pop()) == count


def test_single_puts_and_a_bulk_build_give_the_same_root():
    nodes, _ = make_nodes()
    root = empty(nodes)
    for name in shuffled(NAMES[:500], 1):
        edit = Edit(nodes, root)
        edit.put([name], val(name))
        root, _ = edit.seal()
    assert root == build(nodes, NAMES[:500])


@pytest.mark.parametrize("lowest", [1, 2, 3])
def test_removing_a_boundary_equals_a_rebuild(lowest):
    nodes, _ = make_nodes()
    names = sorted(set(NAMES[:1000]) | set(names_of_level(3, 2)))
    whole = build(nodes, names)
    boundaries = [name for name in names if level(name) >= lowest]
    assert boundaries
    for gone in boundaries[:40]:
        edit = Edit(nodes, whole)
        edit.unlink([gone])
        root, _ = edit.seal()
        assert root == build(nodes, [name for name in names if name != gone]), gone
        check(nodes, root)


def test_every_root_is_canonical_while_all_names_are_removed():
    nodes, _ = make_nodes()
    names = NAMES[:200] + names_of_level(3, 2)
    left = sorted(set(names))
    edit = Edit(nodes, build(nodes, names))
    for gone in shuffled(left, 5):
        edit.unlink([gone])
        assert edit.changed
        left.remove(gone)
        root, _ = edit.seal()
        assert check(nodes, root) == len(left)
    assert root == empty(nodes)


def test_a_name_of_high_level_makes_a_chain_of_nodes_with_one_child():
    nodes, _ = make_nodes()
    high = names_of_level(3, 1)[0]
    root = nodes.node(build(nodes, [high, high + "+"]))
    assert type(root) is Inner
    assert (root.level, root.names) == (level(high), [high, high + "+"])
    child = nodes.node(root.refs[0])
    assert len(child.names) == 1
    check(nodes, build(nodes, [high, high + "+"]))
    edit = Edit(nodes, build(nodes, [high, high + "+"]))
    edit.unlink([high + "+"])
    assert edit.seal()[0] == build(nodes, [high])
    assert nodes.node(build(nodes, [high])).level == 0


def test_check_fails_for_another_cut_rule(monkeypatch):
    nodes, _ = make_nodes()
    good = build(nodes, NAMES[:200])
    monkeypatch.setattr(tree_module, "level", lambda name: level(name) if name[-1] != "7" else 1)
    other = build(nodes, NAMES[:200])
    assert other != good
    with pytest.raises(AssertionError, match="ends after"):
        check(nodes, other)


def test_a_cut_rule_that_depends_on_the_order_is_found(monkeypatch):
    nodes, _ = make_nodes()
    calls = [0]

    def every_tenth(name):
        calls[0] += 1
        return int(calls[0] % 10 == 0)

    monkeypatch.setattr(tree_module, "level", every_tenth)
    roots = {build(nodes, shuffled(NAMES[:300], seed)) for seed in range(3)}
    assert len(roots) == 3, "the test of all orders would not find a rule that is not a function of the names"


@pytest.mark.parametrize(
    "break_it",
    [
        lambda nodes, leaf: Leaf(leaf.names[::-1], leaf.objects),
        lambda nodes, leaf: Inner(1, [leaf.names[-1]], [nodes.insert(leaf)]),
        lambda nodes, leaf: Inner(1, ["a", leaf.names[-1]], [empty(nodes), nodes.insert(leaf)]),
        lambda nodes, leaf: Inner(1, [leaf.names[0], leaf.names[-1]], [nodes.insert(leaf), nodes.insert(leaf)]),
        lambda nodes, leaf: Inner(1, ["a", leaf.names[-1]], [b"\0" * 32, nodes.insert(leaf)]),
    ],
)
def test_check_finds_broken_trees(break_it):
    nodes, store = make_nodes()
    leaf = Leaf(["a", "b", "c"], [val(1)] * 3)
    assert check(nodes, nodes.insert(leaf)) == 3
    blob = encode_node(break_it(nodes, leaf))
    store[SHA256(blob)] = blob
    with pytest.raises((AssertionError, errors.ProtocolError)):
        check(nodes, SHA256(blob))


@given(st.sets(st.text(min_size=1).filter(lambda name: "." not in name and "\0" not in name)), st.randoms())
@settings(max_examples=60)
def test_any_names_in_any_order(names, rng):
    nodes, _ = make_nodes()
    ordered = sorted(names)
    other = ordered[:]
    rng.shuffle(other)
    assert build_by_parts(nodes, ordered) == build_by_parts(nodes, other)
    assert check(nodes, build_by_parts(nodes, ordered)) == len(names)


def build_by_parts(nodes, names):
    edit = Edit(nodes, empty(nodes))
    for name in names:
        edit.put([name], val(1))
    return edit.seal()[0]


# ------------------------------------------------------------------------------------------------------------ machine

components = st.sampled_from([*NAMES[:25], *names_of_level(1, 4), *names_of_level(2, 2), "é", "\U0001f600"])
keys = st.lists(components, min_size=1, max_size=3)
values = st.integers(0, 3).map(val)


class EditMachine(RuleBasedStateMachine):
    """A session compared with nested dicts: transactions, rollbacks, seals, and the same tree built in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.store = make_nodes(nodes_max=16)
        self.edit = Edit(self.nodes, empty(self.nodes))
        self.model: Tree = {}
        self.marks: list[tuple[object, Tree]] = []
        self.is_open = False

    def parent(self, parts: list[str], make: bool) -> Tree | None:
        tree = self.model
        for part in parts[:-1]:
            if part not in tree and make:
                tree[part] = {}
            tree = tree.get(part)
            if not isinstance(tree, dict):
                return None
        return tree

    @rule()
    def mark(self):
        self.marks.append((self.edit.mark(), copy(self.model)))

    @precondition(lambda self: self.marks)
    @rule(data=st.data())
    def rollback(self, data):
        index = data.draw(st.integers(0, len(self.marks) - 1))
        mark, model = self.marks[index]
        del self.marks[index:]
        self.edit.rollback(mark)
        self.model = model

    @rule(parts=keys, thing=values)
    def put(self, parts, thing):
        parent = self.parent(parts, make=True)
        if parent is None:
            with pytest.raises(errors.NotADirectory):
                self.edit.put(parts, thing)
        else:
            assert self.edit.put(parts, thing) == ".".join(parts)
            parent[parts[-1]] = thing

    @rule(parts=keys, count=st.integers(2, 30), thing=values)
    def put_many(self, parts, count, thing):
        """Put enough names to split nodes, which the single puts of a short run rarely do."""
        for name in NAMES[:count]:
            self.put([*parts[:-1], name], thing)

    @rule(parts=keys)
    def mkdir(self, parts):
        parent = self.parent(parts, make=True)
        if parent is None or not isinstance(parent.get(parts[-1], {}), dict):
            with pytest.raises(errors.NotADirectory):
                self.edit.mkdir(parts)
        else:
            parent.setdefault(parts[-1], {})
            assert self.edit.mkdir(parts) == ".".join(parts)

    @rule(parts=keys)
    def unlink(self, parts):
        parent = self.parent(parts, make=False)
        assert self.edit.unlink(parts) == ".".join(parts)
        assert self.edit.changed == bool(parent and parts[-1] in parent)
        if parent:
            parent.pop(parts[-1], None)

    @rule(parts=keys)
    def get(self, parts):
        parent = self.parent(parts, make=False)
        found, expected = self.edit.get(parts), None if parent is None else parent.get(parts[-1])
        if isinstance(expected, dict):
            assert type(found) is Dir
        else:
            assert found == expected

    @rule()
    def seal(self):
        before = dict(self.store)
        root, new = self.edit.seal()
        self.marks.clear()
        assert all(SHA256(blob) == ref for ref, blob in new)
        assert self.store.keys() - before.keys() <= {ref for ref, _ in new}, (
            "a node was stored that seal did not return"
        )
        assert self.edit.seal() == (root, [])
        assert root == build_model(self.nodes, self.model)
        check(self.nodes, root)

    @invariant()
    def the_cache_is_sound(self):
        self.nodes.check()

    def teardown(self):
        self.seal()


TestEditMachine = EditMachine.TestCase
TestEditMachine.settings = settings(max_examples=80, stateful_step_count=40, derandomize=True, deadline=None)


# ------------------------------------------------------------------------------------------------------ transactions


def test_a_transaction_is_rolled_back_alone():
    nodes, _ = make_nodes()
    start = build(nodes, NAMES[:300])
    edit = Edit(nodes, start)
    edit.mark()
    edit.put(["d", "x"], val(1))
    mark = edit.mark()
    for name in NAMES[:300]:
        edit.unlink([name])
    edit.put(["d", "x"], val(2))
    edit.put(["d", "y"], val(2))
    edit.rollback(mark)
    edit.mark()
    edit.put(["e"], val(3))
    root, _ = edit.seal()
    assert root == build(nodes, {name: val(name) for name in NAMES[:300]} | {"d.x": val(1), "e": val(3)})


def test_a_mark_does_not_see_what_later_transactions_do():
    nodes, _ = make_nodes()
    edit = Edit(nodes, empty(nodes))
    marks = []
    for name in NAMES[:100]:
        marks.append(edit.mark())
        edit.put(["d", name], val(name))
    edit.rollback(marks[50])
    root, _ = edit.seal()
    assert root == build(nodes, {f"d.{name}": val(name) for name in NAMES[:50]})


def test_a_session_continues_after_a_seal():
    nodes, _ = make_nodes()
    edit = Edit(nodes, empty(nodes))
    edit.put(["a", "b"], val(1))
    first, new = edit.seal()
    assert [ref for ref, _ in new][-1] == first, "children come before parents"
    edit.put(["a", "c"], val(2))
    second, _ = edit.seal()
    assert second == build(nodes, {"a.b": val(1), "a.c": val(2)})
    assert first == build(nodes, {"a.b": val(1)})


def test_a_seal_returns_only_the_nodes_on_the_path():
    nodes, store = make_nodes()
    root = build(nodes, NAMES)
    edit = Edit(nodes, root)
    edit.put([NAMES[1234]], val("other"))
    known = set(store)
    _, new = edit.seal()
    assert 2 < len(new) <= 5
    assert not known & {ref for ref, _ in new}


def test_a_changed_directory_moves_when_its_leaf_is_merged():
    nodes, _ = make_nodes()
    boundary = names_of_level(1, 1)[0]
    edit = Edit(nodes, build(nodes, {"a": val(1), boundary: val(2), "z.x": val(3)}))
    edit.put(["z", "y"], val(4))
    edit.unlink([boundary])
    assert edit.seal()[0] == build(nodes, {"a": val(1), "z.x": val(3), "z.y": val(4)})


def test_a_session_without_operations_makes_no_nodes():
    nodes, _ = make_nodes()
    root = build(nodes, NAMES[:50])
    edit = Edit(nodes, root)
    edit.mark()
    edit.unlink(["no", "such"])
    assert not edit.changed
    assert edit.seal() == (root, [])


@pytest.mark.parametrize("operation", ["put", "unlink", "mkdir"])
def test_a_missing_node_is_an_error_that_can_be_rolled_back(operation):
    nodes, store = make_nodes()
    names = NAMES[:300]
    root = build(nodes, {f"d.{name}": val(name) for name in names})
    lost = [ref for ref in store if ref != root]
    failures = 0
    for ref in lost:
        damaged = Blobs(store)
        del damaged[ref]
        edit = Edit(NodeCache(damaged, SHA256, 100), root)
        edit.put(["before"], val(1))
        mark = edit.mark()
        for name in names:
            try:
                if operation == "put":
                    edit.put(["d", name + "x"], val(2))
                elif operation == "unlink":
                    edit.unlink(["d", name])
                else:
                    edit.mkdir(["d", name + "y"])
            except errors.NoSuchBlob as error:
                failures += ref.hex() in error.text
                break
        edit.rollback(mark)
        sealed, _ = edit.seal()
        assert sealed == build(nodes, {f"d.{name}": val(name) for name in names} | {"before": val(1)})
    assert failures > 10


# -------------------------------------------------------------------------------------------------------------- paths


def session(**entries) -> Edit:
    nodes, _ = make_nodes()
    return Edit(nodes, build(nodes, {key.replace("_", "."): thing for key, thing in entries.items()}))


def test_a_put_replaces_any_object():
    edit = session(a_b_c=val(1))
    assert edit.put(["a"], val(2)) == "a"
    assert edit.get(["a"]) == val(2)
    assert edit.get(["a", "b"]) is None


def test_a_value_on_the_way_is_an_error_that_names_it():
    edit = session(a_b=val(1))
    for operation in (lambda: edit.put(["a", "b", "c", "d"], val(2)), lambda: edit.mkdir(["a", "b", "c", "d"])):
        with pytest.raises(errors.NotADirectory, match=r"'a\.b' is a value: 'a\.b\.c\.d'"):
            operation()
    with pytest.raises(errors.NotADirectory):
        edit.mkdir(["a", "b"])
    edit.unlink(["a", "b", "c"])
    assert not edit.changed


def test_a_directory_may_replace_a_value_on_the_way():
    edit = session(a_b=val(1), a_c=val(2), l=Link("a.c"), far=Link("a", "elsewhere"))
    assert edit.mkdir(["a", "b", "c", "d"], replace=True) == "a.b.c.d"
    assert edit.changed
    assert edit.mkdir(["l", "x"], replace=True) == "a.c.x"
    assert edit.mkdir(["a"], replace=True) == "a"
    assert not edit.changed, "a directory stays"
    assert type(edit.get(["a", "b", "c", "d"])) is type(edit.get(["a", "c", "x"])) is Dir
    with pytest.raises(errors.InvalidRequest, match="namespace"):
        edit.mkdir(["far", "x"], replace=True)


def test_the_root_is_neither_replaced_nor_removed():
    edit = session()
    for operation in (lambda: edit.put([], val(1)), lambda: edit.unlink([])):
        with pytest.raises(errors.InvalidKey, match="root directory"):
            operation()
    assert edit.mkdir([]) == "."
    assert not edit.changed
    assert type(edit.get([])) is Dir


def test_a_directory_put_as_an_object_is_shared():
    nodes, _ = make_nodes()
    root = build(nodes, {"a.x": val(1), "a.y": val(2)})
    edit = Edit(nodes, root)
    edit.put(["b"], edit.get(["a"]))
    edit.put(["b", "x"], val(3))
    assert edit.get(["b"]) == Dir(b""), "a changed directory has no ref before the seal"
    assert edit.seal()[0] == build(nodes, {"a.x": val(1), "a.y": val(2), "b.x": val(3), "b.y": val(2)})


def test_a_directory_that_shrinks_to_one_clean_node_has_no_ref_before_the_seal():
    """Found by ``python -m fluxmpi.simulator --seed 69 --steps 50 --mix watched``: it had the ref of that node."""
    nodes, _ = make_nodes()
    names = [f"k{index}" for index in range(1000)]
    last = next(name for name in names if level(name) == 1)
    first = [name for name in names if name < last and not level(name)][:3]
    entries = {f"d.{name}": val(1) for name in [*first, last]}
    after = f"d.{last}~"
    assert not level(f"{last}~"), "one leaf ends with 'last', and the other one has this name only"
    edit = Edit(nodes, build(nodes, {**entries, after: val(2)}))
    edit.unlink(after.split("."))
    assert edit.get(["d"]) == Dir(b"")
    assert edit.seal()[0] == build(nodes, entries)


def test_links_on_the_way_are_followed_one_at_the_end_is_not():
    edit = session(dir_sub_x=val(1), link=Link("dir.sub"), far=Link("link"))
    assert edit.put(["link", "y"], val(2)) == "dir.sub.y"
    assert edit.put(["far", "new", "z"], val(3)) == "dir.sub.new.z"
    assert edit.mkdir(["far"]) == "dir.sub"
    assert not edit.changed
    assert edit.get(["far", "y"]) == edit.get(["dir", "sub", "y"]) == val(2)
    assert edit.unlink(["far", "x"]) == "dir.sub.x"
    assert edit.changed
    assert edit.get(["dir", "sub", "x"]) is None
    assert edit.get(["far"]) == Link("link")
    assert edit.unlink(["far"]) == "far"
    assert edit.put(["link"], val(4)) == "link"
    assert edit.get(["dir", "sub", "y"]) == val(2)


def test_a_put_through_a_dangling_link_makes_the_directories():
    edit = session(link=Link("new.dir"))
    assert edit.put(["link", "a"], val(1)) == "new.dir.a"
    assert edit.get(["new", "dir", "a"]) == val(1)


def test_a_link_to_this_namespace_is_followed_one_to_another_is_refused():
    edit = session(here=Link("dir", "primary"), there=Link("dir", "other"), dir_a=val(1))
    assert edit.put(["here", "a"], val(2)) == "dir.a"
    for operation in (edit.unlink, edit.mkdir, edit.get, lambda parts: edit.put(parts, val(1))):
        with pytest.raises(errors.InvalidRequest, match="link into namespace 'other'"):
            operation(["there", "a"])


def test_link_loops_end():
    edit = session(a=Link("b"), b=Link("a"))
    for operation in (edit.unlink, edit.mkdir, edit.get, lambda parts: edit.put(parts, val(1))):
        with pytest.raises(errors.LinkLoop):
            operation(["a", "x"])


def test_exactly_links_max_are_followed():
    entries = {f"l{index}": Link(f"l{index + 1}") for index in range(LINKS_MAX)} | {f"l{LINKS_MAX}.x": val(1)}
    nodes, _ = make_nodes()
    edit = Edit(nodes, build(nodes, entries))
    assert edit.put(["l0", "x"], val(2)) == f"l{LINKS_MAX}.x"
    edit.put(["first"], Link("l0"))
    with pytest.raises(errors.LinkLoop):
        edit.put(["first", "x"], val(2))


def test_a_link_to_an_invalid_key_and_one_that_makes_a_key_too_long():
    edit = session(bad=Link("a\0b"), long=Link(".".join(["x"] * 100)))
    with pytest.raises(errors.InvalidKey):
        edit.put(["bad", "x"], val(1))
    with pytest.raises(errors.InvalidKey):
        edit.put(["long", *["y"] * 100], val(1))
    assert edit.put(["long", "y"], val(1)) == ".".join(["x"] * 100 + ["y"])


def test_deep_paths_of_directories_seal_without_recursion():
    nodes, _ = make_nodes()
    edit = Edit(nodes, empty(nodes))
    parts = [names_of_level(2, 1)[0]] * 2000
    edit.put(parts, val(1))
    edit.mkdir([*parts[:-1], "z"])
    root, new = edit.seal()
    assert len(new) > 2000
    assert Edit(nodes, root).get(parts) == val(1)


# ---------------------------------------------------------------------------------------------------------- bad blobs


@given(st.binary(max_size=60))
@settings(max_examples=300)
def test_random_bytes_are_refused_with_a_fluxmpi_error(blob):
    try:
        node = decode_node(blob, b"\0" * 32)
    except errors.FluxmpiError:
        return
    assert type(node) in (Leaf, Inner)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 12) | st.text(max_size=3) | st.binary(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)
texts = st.lists(st.text(max_size=2), max_size=4)
nearly = st.tuples(st.integers(0, 1), texts, st.lists(anything, max_size=4)) | st.tuples(
    st.just(1), st.integers(-1, 11), texts, st.lists(st.binary(max_size=32), max_size=4)
)


@given(anything | nearly)
@settings(max_examples=500)
def test_a_decoded_node_is_valid(thing):
    blob = msgspec.msgpack.encode(thing)
    store = Blobs({SHA256(blob): blob})
    nodes = NodeCache(store, SHA256, 10)
    try:
        node = nodes.node(SHA256(blob))
        assert node.names == sorted(set(node.names))
        assert len(node.names) == len(node.refs if type(node) is Inner else node.objects)
        edit = Edit(nodes, SHA256(blob))
        for name in node.names:
            edit.get([name])
            edit.put([name], val(1))
            edit.put([name + "x"], val(1))
            edit.unlink([name])
        edit.seal()
    except errors.FluxmpiError:
        pass


def test_a_child_that_does_not_belong_is_refused():
    nodes, _ = make_nodes()
    leaf = nodes.insert(Leaf(["a", "b"], [val(1), val(2)]))
    for crooked in (
        Inner(2, ["b", "c"], [leaf, leaf]),  # the level
        Inner(1, ["a", "c"], [leaf, leaf]),  # the last name
        Inner(1, ["b", "c"], [empty(nodes), leaf]),
    ):
        root = nodes.insert(crooked)
        for operation in (lambda edit: edit.put(["a"], val(1)), lambda edit: edit.get(["a"])):
            with pytest.raises(errors.ProtocolError, match="does not belong"):
                operation(Edit(nodes, root))


def test_a_users_root_with_one_child_can_be_emptied():
    nodes, _ = make_nodes()
    leaf = nodes.insert(Leaf(["a"], [val(1)]))
    edit = Edit(nodes, nodes.insert(Inner(2, ["a"], [nodes.insert(Inner(1, ["a"], [leaf]))])))
    edit.unlink(["a"])
    assert edit.seal()[0] == empty(nodes)


def test_a_directory_with_an_invalid_ref():
    edit = session(d=Dir(b"\1\2"))
    with pytest.raises(errors.NoSuchBlob, match="0102"):
        edit.put(["d", "x"], val(1))


# ----------------------------------------------------------------------------------------------------- the node cache


def test_the_cache_is_bounded_and_keeps_used_nodes():
    nodes, store = make_nodes(nodes_max=10)
    refs = [nodes.insert(Leaf([f"a{index}"], [val(index)])) for index in range(40)]
    nodes.check()
    used = refs[0]
    for ref in refs:
        assert nodes.node(ref) is not None
        nodes.node(used)
        nodes.check()
    reads = store.reads
    nodes.node(used)
    assert store.reads == reads, "the node used all the time was dropped"
    numbers = nodes.statistics()
    assert numbers["nodes"] <= numbers["nodes_max"] == 10
    assert numbers["evicted"] > 0
    assert nodes.clear() == numbers["nodes"]
    assert nodes.node(used) == Leaf(["a0"], [val(0)])


def test_retired_nodes_do_not_fill_the_cache_and_the_last_are_cached():
    nodes, store = make_nodes(retired_max=20)
    roots = [build(nodes, NAMES[:1000])]
    nodes.clear()
    assert check(nodes, roots[0]) == 1000
    whole = nodes.statistics()["nodes"]
    edit = Edit(nodes, roots[0])
    for number in range(100):
        edit.mark()
        edit.put([NAMES[number]], val(f"new {number}"))
        roots.append(edit.seal()[0])
        nodes.check()
    numbers = nodes.statistics()
    assert (numbers["nodes"], numbers["retired"]) == (whole, 20)
    assert numbers["evicted"] > 200
    reads = store.reads
    assert nodes.peek(roots[-2]) is nodes.node(roots[-2])
    assert store.reads == reads, "the version before the newest is not cached"
    nodes.check()
    assert nodes.statistics()["retired"] == 19, "a retired node that is used again becomes young"
    nodes.forget(roots)
    nodes.check()
    assert nodes.statistics()["retired"] < 19


def test_a_node_that_a_version_puts_again_is_not_retired():
    nodes, _ = make_nodes()
    root = build(nodes, ["a", "b"])
    before = nodes.statistics()["retired"]
    edit = Edit(nodes, root)
    was = edit.get(["a"])
    edit.put(["a"], val("other"))
    edit.put(["a"], was)
    assert edit.seal()[0] == root
    mark = edit.mark()
    edit.put(["a"], val("undone"))
    edit.rollback(mark)
    edit.seal()
    assert nodes.statistics()["retired"] == before
    nodes.check()


def test_a_missing_node_is_none_until_it_is_loaded():
    nodes, store = make_nodes()
    blob = encode_node(Leaf(["a"], [val(1)]))
    assert nodes.node(SHA256(blob)) is None
    assert nodes.statistics()["missing"] == 1
    store[SHA256(blob)] = blob
    assert nodes.node(SHA256(blob)) == Leaf(["a"], [val(1)])


def test_a_cache_of_no_nodes_is_refused():
    with pytest.raises(errors.InvalidRequest, match="nodes_max"):
        NodeCache(Blobs(), SHA256, 1)


def test_a_seal_returns_a_node_that_the_store_has():
    nodes, _ = make_nodes()
    new: list = []
    assert nodes.insert(Leaf([], []), new) == nodes.insert(Leaf([], []), new)
    assert len(new) == 2
    nodes.check()


def test_level_is_capped(monkeypatch):
    class Zero:
        def digest(self):
            return b"\0" * 32

    monkeypatch.setattr(nodes_module, "sha256", lambda _: Zero())
    assert level("any") == LEVEL_MAX


def test_check_child_accepts_the_child():
    leaf = Leaf(["a", "b"], [val(1), val(2)])
    check_child(leaf, Inner(1, ["b"], [b"\0" * 32]), 0)
