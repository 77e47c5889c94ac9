"""A namespace at rank 0: which of its versions last changed a key."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_nodes

from fluxmpi.errors import FluxmpiError
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, MvccLimits
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.objects import Link, Val, split_key
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.node import Leaf
from fluxmpi.kvs.wire import RootInfo

KEYS = ["a", "a.b", "a.b.c", "a.bc", "d", "d.e"]

operations = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(KEYS), st.integers(0, 2)),
    st.tuples(st.just("unlink"), st.sampled_from(KEYS)),
    st.tuples(st.just("mkdir"), st.sampled_from(KEYS)),
    st.tuples(st.just("ask"), st.sampled_from(KEYS)),
    st.tuples(st.just("restore"), st.integers(0, 10)),
)


class World:
    def __init__(self, kept=1000, limits=MVCC_LIMITS):
        self.nodes, _ = make_nodes()
        self.namespace = Namespace(RootInfo("primary", 0, self.nodes.insert(Leaf([], [])), 0.0), 0, kept, limits)
        self.roots = [self.namespace.root]

    def advance(self, ref, keys):
        self.roots.append(RootInfo("primary", len(self.roots), ref, 0.0))
        self.namespace.advance(self.roots[-1], keys)
        self.namespace.check()

    def commit(self, kind, key, *value):
        edit = Edit(self.nodes, self.namespace.root.ref)
        mark, parts = edit.mark(), split_key(key)
        try:
            if kind == "put":
                touched = [edit.put(parts, Val("json", b"%d" % value[0]))]
            else:
                touched = [getattr(edit, kind)(parts)]
        except FluxmpiError:
            edit.rollback(mark)
            touched = []
        self.advance(edit.seal()[0], touched)

    def found(self, key, version):
        root = self.roots[version]
        return Lookup(self.nodes, lambda _: None, "primary", root.ref, split_key(key), False).advance().value

    def last_change(self, key):
        return self.namespace.last_change(key, self.nodes)

    def expected(self, key):
        """The last change, by comparing all versions."""
        oldest = next(iter(self.namespace.history))
        for version in range(self.namespace.root.version, oldest, -1):
            if self.found(key, version) != self.found(key, version - 1):
                return version, True
        return oldest, False


@settings(max_examples=200, deadline=None)
@given(
    st.lists(operations, max_size=25),
    st.sampled_from([3, 1000]),
    st.sampled_from([1, 1000]),
    st.sampled_from([3, 1000]),
)
def test_the_last_change_equals_that_of_comparing_all_versions(done, kept, keys, total):
    world = World(kept, MvccLimits(version_keys_max=keys, indexed_keys_max=total))
    for what in done:
        if what[0] == "ask":
            assert world.last_change(what[1]) == world.expected(what[1])
        elif what[0] == "restore":
            world.advance(world.roots[what[1] % len(world.roots)].ref, None)
        else:
            world.commit(*what)
    for key in KEYS:
        assert world.last_change(key) == world.expected(key)


def test_an_object_behind_another_link_counts_as_changed():
    world = World()
    world.commit("put", "real.x", 1)
    edit = Edit(world.nodes, world.namespace.root.ref)
    edit.mark()
    world.advance((edit.put(["way"], Link("real")), edit.seal()[0])[1], ["way"])
    world.commit("put", "real.x", 2)
    edit = Edit(world.nodes, world.namespace.root.ref)
    edit.mark()
    world.advance((edit.mkdir(["other"]), edit.seal()[0])[1], ["other"])
    assert world.last_change("real.x") == (3, True)
    assert world.last_change("way") == (2, True)


def test_a_compacted_version_leaves_the_index():
    world = World(4)
    world.last_change("a")
    for number in range(50):
        world.commit("put", f"k{number}", 1)
        world.last_change("a")
    numbers = world.namespace.key_index.statistics()
    assert numbers["versions"] <= 4
    assert numbers["indexed"] <= 4
