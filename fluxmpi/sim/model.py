"""The KVS as plain dicts: what one commit does, and what a key means, told as simply as can be.

A tree is a dict from names to ``Value``, ``Link`` or another dict. Trees are never changed: an edit copies the dicts on its
way, so every version's tree stays, and what two versions have in common is the same object.

``Walker`` reads a real tree into this form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidKey, InvalidRequest, IsADirectory, LinkLoop, NoSuchBlob, NotADirectory
from fluxmpi.kvs.nodes import Inner, decode_node
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, Object, Val, ValRef, join_key, split_key
from fluxmpi.kvs.wire import Append, Mkdir, Op, Put, Unlink

Tree = dict[str, Any]


class Value(NamedTuple):
    type: str
    data: bytes


Change = tuple[str, "Value | Link | None", bool]
"""As in a notification: key, what is there now, whether there was a value or link before."""


@dataclass(slots=True)
class Walker:
    """From real objects to plain ones. ``blob`` is the store of rank 0."""

    blob: Callable[[Ref], bytes | None]
    _trees: dict[Ref, Tree]

    def __init__(self, blob: Callable[[Ref], bytes | None]) -> None:
        self.blob = blob
        self._trees = {}

    def bytes(self, ref: Ref) -> bytes:
        blob = self.blob(ref)
        if blob is None:
            raise NoSuchBlob(f"rank 0 lacks blob {ref.hex()[:12]}")
        return blob

    def plain(self, obj: Object) -> Any:
        if isinstance(obj, Val):
            return Value(obj.type, bytes(obj.data))
        if isinstance(obj, ValRef):
            data = b"".join(map(self.bytes, obj.refs))
            assert len(data) == obj.size, f"a value of {len(data)} bytes says that it has {obj.size}"
            return Value(obj.type, data)
        return self.tree(obj.ref) if isinstance(obj, Dir) else obj

    def tree(self, ref: Ref) -> Tree:
        tree = self._trees.get(ref)
        if tree is None:
            tree = self._trees[ref] = dict(self._entries(ref))
        return tree

    def _entries(self, ref: Ref) -> Iterator[tuple[str, Any]]:
        node = decode_node(self.bytes(ref), ref)
        if isinstance(node, Inner):
            for child in node.refs:
                yield from self._entries(child)
        else:
            for name, obj in zip(node.names, node.objects, strict=True):
                yield name, self.plain(obj)


# ------------------------------------------------------------------------------------------------------------- reading


def lookup(tree: Tree, key: str, follow: bool) -> tuple[Any, bool]:
    """What stands at a key, or None; and whether the way went through a link. The last link is followed if ``follow``."""
    parts, index, links = split_key(key), 0, 0
    thing: Any = tree
    while index < len(parts):
        if not isinstance(thing, dict) or parts[index] not in thing:
            return None, links > 0
        thing = thing[parts[index]]
        index += 1
        if isinstance(thing, Link) and (index < len(parts) or follow):
            links += 1
            if links > LINKS_MAX:
                raise LinkLoop("over LINKS_MAX links")
            parts, index, thing = split_key(thing.target) + parts[index:], 0, tree
    return thing, links > 0


def changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    """What a recursive watch of ``key`` tells when it was ``old`` and is ``new``: values and links, in order of key."""
    if old is new:
        return
    if old != new and (is_leaf(old) or is_leaf(new)):
        yield key, new if is_leaf(new) else None, is_leaf(old)
    before: Tree = old if isinstance(old, dict) else {}
    after: Tree = new if isinstance(new, dict) else {}
    prefix = "" if key == "." else f"{key}."
    for name in sorted({**before, **after}):
        yield from changes(prefix + name, before.get(name), after.get(name))


def is_leaf(thing: Any) -> bool:
    return thing is not None and not isinstance(thing, dict)


# ------------------------------------------------------------------------------------------------------------- editing


class Edit:
    """One commit after another on a tree; ``walker`` knows blobs and directories that a commit refers to."""

    def __init__(self, tree: Tree, namespace: str, walker: Walker) -> None:
        self.tree = tree
        self._namespace = namespace
        self._walker = walker

    def apply(self, ops: list[Op]) -> list[str]:
        """All of the operations, and the keys they touched, links resolved; or the error of the first that fails."""
        before = self.tree
        try:
            return [self._apply(op) for op in ops]
        except Exception:
            self.tree = before
            raise

    def _apply(self, op: Op) -> str:
        parts = split_key(op.key)
        if isinstance(op, Put):
            return self._put(parts, self._settled(op.object))
        if isinstance(op, Append):
            return self._append(parts, op.data)
        if isinstance(op, Mkdir):
            return join_key(self._open(parts, len(parts))[1])
        if isinstance(op, Unlink):
            return self._unlink(parts)
        raise InvalidRequest("no such operation")

    def _settled(self, obj: Object) -> Any:
        if isinstance(obj, Link):
            split_key(obj.target)
        return self._walker.plain(obj)

    def _put(self, parts: list[str], thing: Any) -> str:
        if not parts:
            raise InvalidKey("the root cannot be replaced")
        directory, parts = self._open(parts, len(parts) - 1)
        directory[parts[-1]] = thing
        return join_key(parts)

    def _append(self, parts: list[str], data: bytes) -> str:
        old = self._resolve(parts)[1]
        if isinstance(old, dict):
            raise IsADirectory("append to a directory")
        if isinstance(old, Link) or (old is not None and old.type.startswith("ndarray")):
            raise InvalidRequest("append to what cannot grow")
        return self._put(parts, Value("raw", (old.data if old is not None else b"") + data))

    def _unlink(self, parts: list[str]) -> str:
        if not parts:
            raise InvalidKey("the root cannot be removed")
        parts, thing = self._resolve(parts)
        if thing is not None:
            directory, parts = self._open(parts, len(parts) - 1)
            del directory[parts[-1]]
        return join_key(parts)

    def _open(self, parts: list[str], count: int) -> tuple[Tree, list[str]]:
        """The directory of the first ``count`` parts, made if missing, and copied with all above it; the parts resolved."""
        tail = len(parts) - count
        index = links = 0
        directory = self.tree = dict(self.tree)
        while index < len(parts) - tail:
            thing = directory.get(parts[index])
            if isinstance(thing, Link):
                links += 1
                parts = self._follow(thing, parts, index, links)
                directory, index = self.tree, 0
                continue
            if is_leaf(thing):
                raise NotADirectory("a value on the way")
            directory[parts[index]] = thing = dict(thing or {})
            directory = thing
            index += 1
        return directory, parts

    def _resolve(self, parts: list[str]) -> tuple[list[str], Any]:
        """The parts with the links on the way resolved, and what is there."""
        thing: Any = self.tree
        index = links = 0
        while index < len(parts):
            if isinstance(thing, dict):
                thing = thing.get(parts[index])
                index += 1
            elif isinstance(thing, Link):
                links += 1
                parts = self._follow(thing, parts, index - 1, links)
                thing, index = self.tree, 0
            else:
                return parts, None
        return parts, thing

    def _follow(self, link: Link, parts: list[str], index: int, links: int) -> list[str]:
        if link.namespace is not None and link.namespace != self._namespace:
            raise InvalidRequest("through a link into another namespace")
        if links > LINKS_MAX:
            raise LinkLoop("over LINKS_MAX links")
        return split_key(join_key(split_key(link.target) + parts[index + 1 :]))
