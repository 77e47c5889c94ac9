"""Helpers of the tests of trees: sources of blobs, a plain build, and a model of nested dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.kvs.objects import Dir, Object, Val, split_key
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import RETIRED_MAX, Found, Leaf, Missing, NodeCache, level

SHA256 = digest_function("sha256")


class Blobs(dict[Ref, bytes]):
    """A source that keeps all blobs, and counts reads."""

    reads = 0
    cycle = 0
    bytes = 0

    def hold(self, ref: Ref) -> bytes | None:
        return self.get(ref)

    def get(self, ref: Ref, default: Any = None) -> bytes | None:
        self.reads += 1
        return super().get(ref, default)

    def put(self, ref: Ref, blob: bytes) -> None:
        self[ref] = blob


class Hidden:
    """A source that shows a blob of ``store`` only after ``reveal``."""

    def __init__(self, store: Blobs) -> None:
        self.store = store
        self.shown: set[Ref] = set()
        self.asked: list[Ref] = []

    def get(self, ref: Ref) -> bytes | None:
        return self.store.get(ref) if ref in self.shown else None

    def put(self, ref: Ref, blob: bytes) -> None:
        raise AssertionError("a reader does not write")

    def reveal(self, refs: list[Ref]) -> None:
        assert refs, "Missing must name a ref"
        assert len(set(refs)) == len(refs), "a ref was asked for twice"
        assert not self.shown & set(refs), "a ref was asked for that was revealed before"
        self.asked += refs
        self.shown |= set(refs)


def make_nodes(nodes_max: int = 1000, retired_max: int = RETIRED_MAX) -> tuple[NodeCache, Blobs]:
    store = Blobs()
    return NodeCache(store, SHA256, nodes_max, retired_max), store


def empty(nodes: NodeCache) -> Ref:
    return nodes.insert(Leaf([], []))


def val(text: object) -> Val:
    return Val("raw", str(text).encode())


def build(nodes: NodeCache, entries: dict[str, Object] | Iterable[str]) -> Ref:
    """Build a tree with these keys in one transaction, and return its root. Names alone get values."""
    edit = Edit(nodes, empty(nodes))
    if not isinstance(entries, dict):
        entries = {name: val(name) for name in entries}
    for key, thing in entries.items():
        edit.put(split_key(key), thing)
    return edit.seal()[0]


def run(walk: Any, hidden: Hidden | None = None, **arguments: Any) -> Found:
    """Advance until a result is found, revealing the missing blobs."""
    while True:
        match walk.advance(**arguments):
            case Missing(refs):
                assert hidden is not None, "a blob is missing although none is hidden"
                hidden.reveal(refs)
            case found:
                return found


def names_of_level(wanted: int, count: int, at_least: bool = True) -> list[str]:
    """The first ``count`` names n0, n1, … of that level (or more)."""
    names: list[str] = []
    index = 0
    while len(names) < count:
        name = f"n{index}"
        found = level(name)
        if found == wanted or (at_least and found > wanted):
            names.append(name)
        index += 1
    return names


# ------------------------------------------------------------------------------------------------ a model: nested dicts

Tree = dict[str, Any]
"""Names to objects or to Trees."""


def build_model(nodes: NodeCache, tree: Tree) -> Ref:
    """Build a model, each directory by itself and names in reverse: unlike a session does. Return its root."""
    edit = Edit(nodes, empty(nodes))
    for name, thing in sorted(tree.items(), reverse=True):
        edit.put([name], Dir(build_model(nodes, thing)) if isinstance(thing, dict) else thing)
    return edit.seal()[0]


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All keys in the order of a diff, a directory before the keys below it."""
    for name, thing in sorted(tree.items()):
        yield prefix + name, thing
        if isinstance(thing, dict):
            yield from flatten(thing, f"{prefix}{name}.")


def copy(tree: Tree) -> Tree:
    return {name: copy(thing) if isinstance(thing, dict) else thing for name, thing in tree.items()}
