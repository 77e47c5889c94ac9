"""What roots reach: every blob once, a parent before its children, and the number of keys."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_nodes

from fluxmpi.kvs.mvcc.reach import Reach
from fluxmpi.kvs.objects import Dir, Val, ValRef, split_key
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf

names = st.sampled_from(["a", "b", "c", "d.e", "d.f", "g.h.i", "g.h.j", "k"])
operations = st.lists(st.tuples(names, names, st.integers(0, 3)), max_size=30)


def walk(nodes, blobs, roots, step):
    reach = Reach(nodes, blobs, roots)
    taken = []
    while not reach.done:
        taken += reach.take(step)
        done, total = reach.progress
        assert done == len(taken) <= total
    return reach, taken


@settings(max_examples=200, deadline=None)
@given(operations, st.integers(1, 50))
def test_each_blob_once_and_the_number_of_keys(steps, step):
    nodes, blobs = make_nodes()
    edit = Edit(nodes, nodes.insert(Leaf([], [])))
    keys = {}
    for directory, name, kind in steps:
        key = f"x{directory}.y{name}"
        if kind == 3:
            blob = f"long {name}".encode()
            ref = nodes.insert(Leaf([name], [Val("raw", blob)]))
            edit.put(split_key(key), ValRef("raw", 1, [ref]))
        else:
            edit.put(split_key(key), Val("raw", b"%d" % kind))
        keys[key] = kind
    root = edit.seal()[0]
    reach, taken = walk(nodes, blobs, [root, root], step)
    refs = [ref for ref, _ in taken]
    assert len(set(refs)) == len(refs)
    assert refs[0] == root
    assert all(blobs.get(ref) == blob for ref, blob in taken)
    assert reach.keys(root) == len(keys)


def test_a_shared_directory_is_walked_once_and_its_keys_count_twice():
    nodes, blobs = make_nodes()
    shared = nodes.insert(Leaf(["a", "b"], [Val("raw", b"1"), Val("raw", b"2")]))
    middle = nodes.insert(Leaf(["s"], [Dir(shared)]))
    root = nodes.insert(Leaf(["p", "q", "r"], [Dir(shared), Dir(middle), Val("raw", b"3")]))
    reach, taken = walk(nodes, blobs, [root], 1)
    assert sorted(ref for ref, _ in taken) == sorted([root, middle, shared])
    assert (reach.keys(root), reach.keys(middle), reach.keys(shared)) == (5, 2, 2)


def test_a_value_whose_blob_is_a_directory_is_walked_all_the_same():
    """A value may have the bytes of a directory's node: it is written once, and the directory is complete."""
    nodes, blobs = make_nodes()
    below = nodes.insert(Leaf(["z"], [Val("raw", b"9")]))
    shared = nodes.insert(Leaf(["d"], [Dir(below)]))
    for order in (["v", "w"], ["w", "v"]):
        root = nodes.insert(Leaf(["v", "w"], [ValRef("raw", 1, [shared]) if n == "v" else Dir(shared) for n in order]))
        _, taken = walk(nodes, blobs, [root], 1)
        assert sorted(ref for ref, _ in taken) == sorted([root, shared, below])
