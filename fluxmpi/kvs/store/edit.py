"""Edits of the tree: the leader makes one version from the one before. ``node`` has the rules of the shape.

An ``Edit`` is a session on a root directory. Nodes that it changes are *dirty*: copies in memory, without a ref.
``seal`` encodes and digests them once, however many operations changed them, children before parents::

    clean ──(first change: decode, copy)──> dirty ──(seal)──> clean, under a new ref
                                            │   ^
                                            └───┘ a change by a later transaction copies it again

Several transactions follow one another in one session. Each can be undone by keeping the root from before it::

    mark = edit.mark()
    try:
        for op in ops: edit.put(…)
    except FluxmpiError:
        edit.rollback(mark)

Invariants:

- A dirty node has an *owner*, the number of the transaction that made it, which alone changes it. So all nodes that a
  mark reaches stay as they were, and the costs of ``mark`` and ``rollback`` do not depend on the size. An operation
  without a mark (``put_without_mark``) belongs to the transaction before it.
- After every operation, dirty and clean nodes together are canonical.
- An operation that raises may have made directories or copies before: roll back. Marks are never harmed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from typing import Any, ClassVar, TypeVar

from fluxmpi.blobref import Ref
from fluxmpi.errors import InvalidKey, InvalidRequest, LinkLoop, NoSuchBlob, NotADirectory
from fluxmpi.kvs.objects import LINKS_MAX, Dir, Link, Object, join_key, split_key
from fluxmpi.kvs.store.node import Inner, Leaf, Node, NodeCache, check_child, level, ref_text
from fluxmpi.kvs.wire import PRIMARY

_T = TypeVar("_T")
Steps = Generator[int, None, _T]
"""Work in slices. It yields the number of steps since the last yield, one for each operation or node of 10 to 30 µs."""

SLICE_NODES = 64
"""Nodes sealed in one slice, by default."""


def run_to_end(work: Steps[_T]) -> _T:
    """Run all slices at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: _T = end.value
            return result


class _Leaf:
    """A dirty leaf. ``has_dirty``: an object may be a ``_Directory``, which becomes a ``Dir`` at the seal."""

    __slots__ = ("has_dirty", "names", "objects", "owner", "ref")
    level: ClassVar[int] = 0

    def __init__(self, owner: int, names: list[str], objects: list[Any], has_dirty: bool) -> None:
        self.owner = owner
        self.names = names
        self.objects = objects
        self.has_dirty = has_dirty
        self.ref = b""

    def copy(self, owner: int) -> _Leaf:
        return _Leaf(owner, self.names[:], self.objects[:], self.has_dirty)

    def split(self, at: int) -> _Leaf:
        """Keep the first ``at`` entries, and return a new leaf with the others."""
        right = _Leaf(self.owner, self.names[at:], self.objects[at:], self.has_dirty)
        del self.names[at:], self.objects[at:]
        return right

    def freeze(self) -> Node:
        if not self.has_dirty:
            return Leaf(self.names, self.objects)
        objects = [
            obj if type(obj) is not _Directory else Dir(obj.root if type(obj.root) is bytes else obj.root.ref)
            for obj in self.objects
        ]
        return Leaf(self.names, objects)


class _Inner:
    """A dirty inner node. ``refs[i]`` is a child's ref, or the child itself while it is dirty."""

    __slots__ = ("level", "names", "owner", "ref", "refs")

    def __init__(self, owner: int, level: int, names: list[str], refs: list[Any]) -> None:
        self.owner = owner
        self.level = level
        self.names = names
        self.refs = refs
        self.ref = b""

    def copy(self, owner: int) -> _Inner:
        return _Inner(owner, self.level, self.names[:], self.refs[:])

    def split(self, at: int) -> _Inner:
        right = _Inner(self.owner, self.level, self.names[at:], self.refs[at:])
        del self.names[at:], self.refs[at:]
        return right

    def freeze(self) -> Node:
        return Inner(self.level, self.names, [ref if type(ref) is bytes else ref.ref for ref in self.refs])


class _Directory:
    """A directory opened for writing. ``root``: its root node if that is dirty, else the node's ref."""

    __slots__ = ("owner", "root")

    def __init__(self, owner: int, root: Any) -> None:
        self.owner = owner
        self.root = root


Mark = _Directory
_Path = list[tuple[_Inner, int]]
"""Dirty inner nodes from a directory's root down to a leaf, each with the index of the next one on the path."""


class Edit:
    """A session of edits of a namespace; see the module's text. The source of ``nodes`` must have the whole tree.

    ``parts`` are components of keys as ``split_key`` makes them. Links on the way are followed, one at the end is not:
    a put replaces the link. ``put``, ``unlink`` and ``mkdir`` return the key with links resolved, and set ``changed``
    to whether an entry was written or removed.

    Raises (all operations): NoSuchBlob for a missing node; ProtocolError for a blob that is not a node; LinkLoop;
    InvalidKey for a link whose target is not a key; InvalidRequest for a link that leaves the namespace.
    """

    def __init__(
        self, nodes: NodeCache, root_ref: Ref, namespace: str = PRIMARY, slice_nodes: int = SLICE_NODES
    ) -> None:
        self.namespace = namespace
        self.changed = False
        self._nodes = nodes
        self._slice_nodes = slice_nodes
        self._owner = 1
        self._root = _Directory(0, root_ref)
        self._replaced: list[Ref] = []
        """Clean nodes that were copied for a change, perhaps by a transaction that was rolled back."""

    # -------------------------------------------------------------------------------------------------- transactions

    def mark(self) -> Mark:
        """Begin a transaction. ``rollback`` of the mark undoes it, until ``seal``."""
        self._owner += 1
        return self._root

    def rollback(self, mark: Mark) -> None:
        """Undo all operations since ``mark``. Marks made before it stay valid."""
        self._root = mark

    def seal(self) -> tuple[Ref, list[tuple[Ref, bytes]]]:
        """Put the dirty nodes into ``nodes``. Return the root's ref, and their refs and blobs, children before parents.

        The session continues from that root. A node that equals one in the store is returned all the same: a collection
        that runs may be about to drop the stored one.
        """
        return run_to_end(self.seal_in_slices())

    def seal_in_slices(self) -> Steps[tuple[Ref, list[tuple[Ref, bytes]]]]:
        """``seal`` in slices. Until it has ended, nothing else may be done with this session."""
        root = self._root.root
        new: list[tuple[Ref, bytes]] = []
        replaced, self._replaced = self._replaced, []
        if type(root) is bytes:
            return root, new
        self._nodes.retire(replaced)  # before the new ones are cached: one of them may be equal
        slice_nodes = self._slice_nodes
        order = [root]
        for count, node in enumerate(order, 1):
            if not count % slice_nodes:
                yield slice_nodes // 4
            if type(node) is _Inner:
                order += [child for child in node.refs if type(child) is not bytes]
            elif node.has_dirty:
                order += [obj.root for obj in node.objects if type(obj) is _Directory and type(obj.root) is not bytes]
        insert = self._nodes.insert
        for count, node in enumerate(reversed(order), 1):
            node.ref = insert(node.freeze(), new)
            if not count % slice_nodes:
                yield slice_nodes
        self._root = _Directory(self._owner, root.ref)
        return root.ref, new

    # ---------------------------------------------------------------------------------------------------- operations

    def put(self, parts: list[str], obj: Object) -> str:
        """Set an entry and make the directories above it. It replaces any object, also a directory (as in Flux).

        Raises NotADirectory for a value on the way (Flux replaces it by a directory), InvalidKey for the root.
        """
        if not parts:
            raise InvalidKey("'.' is the root directory: it cannot be replaced")
        directory, parts = self._open(parts, len(parts) - 1)
        self._insert(directory, parts[-1], obj)
        self.changed = True
        return ".".join(parts)

    def put_without_mark(self, parts: list[str], obj: Object) -> bool:
        """Apply a transaction that is one ``put``, without a mark. Return False, unchanged, if a link is on the path.

        It continues with the nodes of the transaction before it, without copying them. It never has to be undone: it
        makes directories only below a missing one, where it cannot fail.
        """
        if not parts:
            raise InvalidKey("'.' is the root directory: it cannot be replaced")
        directory, _ = self._open(parts, len(parts) - 1, follow=False)
        if directory is None:
            return False
        self._insert(directory, parts[-1], obj)
        return True

    def mkdir(self, parts: list[str], replace: bool = False) -> str:
        """Make a directory and those above it. One that exists stays, also behind a link.

        Raises NotADirectory for a value on the way or at the end; with ``replace``, a directory replaces it (as in Flux).
        """
        self.changed = False
        _, parts = self._open(parts, len(parts), replace=replace)
        return join_key(parts)

    def unlink(self, parts: list[str]) -> str:
        """Remove an entry, if it exists. Raises InvalidKey for the root."""
        if not parts:
            raise InvalidKey("'.' is the root directory: it cannot be removed")
        parts, obj = self._resolve(parts)
        self.changed = obj is not None
        if self.changed:
            directory, parts = self._open(parts, len(parts) - 1)
            self._remove(directory, parts[-1])
        return ".".join(parts)

    def get(self, parts: list[str]) -> Object | None:
        """Return the object of a key in the session's state, or None. A link at the end is not followed.

        A directory that the session has changed has no ref before the seal: it is returned as ``Dir(b"")``.
        """
        return self.resolve(parts)[1]

    def resolve(self, parts: list[str]) -> tuple[str, Object | None]:
        """Return the key with links resolved, and its object as ``get`` returns it."""
        parts, obj = self._resolve(parts)
        if type(obj) is _Directory:
            obj = Dir(obj.root if type(obj.root) is bytes else b"")
        return join_key(parts), obj

    # --------------------------------------------------------------------------------------------------------- paths

    def _open(self, parts: list[str], count: int, follow: bool = True, replace: bool = False) -> tuple[Any, list[str]]:
        """Open the directory of the first ``count`` parts for writing, and make it if missing. Resolve the parts.

        Without ``follow``: None, and nothing is changed, if a link is on the way. ``replace``: also in place of a value.
        """
        owner = self._owner
        tail = len(parts) - count
        root = self._root
        if root.owner != owner:
            root = self._root = _Directory(owner, root.root)
        directory = root
        index = links = 0
        while index < len(parts) - tail:
            name = parts[index]
            leaf, _ = self._descend(directory, name)
            at = bisect_left(leaf.names, name)
            obj = leaf.objects[at] if at < len(leaf.names) and leaf.names[at] == name else None
            if type(obj) is _Directory:
                if obj.owner != owner:
                    obj = leaf.objects[at] = _Directory(owner, obj.root)
            elif type(obj) is Dir:
                obj = leaf.objects[at] = _Directory(owner, obj.ref)
                leaf.has_dirty = True
            elif type(obj) is Link:
                if not follow:
                    return None, parts
                links += 1
                parts = self._follow(obj, parts, index, links)
                directory, index = root, 0
                continue
            elif obj is None or replace:
                obj = _Directory(owner, _Leaf(owner, [], [], False))
                self._insert(directory, name, obj)
                self.changed = True
            else:
                at_key = join_key(parts[: index + 1])
                raise NotADirectory(f"'{at_key}' is a value: '{join_key(parts)}' cannot be below it")
            directory = obj
            index += 1
        return directory, parts

    def _resolve(self, parts: list[str]) -> tuple[list[str], Any]:
        """Return the parts with links resolved, and the object or None. An opened directory is a ``_Directory``."""
        obj: Any = self._root
        index = links = 0
        while index < len(parts):
            kind = type(obj)
            if kind is _Directory:
                obj = self._find(obj.root, parts[index])
            elif kind is Dir:
                obj = self._find(obj.ref, parts[index])
            elif kind is Link:
                links += 1
                parts = self._follow(obj, parts, index - 1, links)
                obj, index = self._root, 0
                continue
            else:
                return parts, None
            index += 1
        return parts, obj

    def _follow(self, link: Link, parts: list[str], index: int, links: int) -> list[str]:
        """Return the parts after the link at ``index`` is followed, the ``links``-th on this path."""
        key = join_key(parts)
        if link.namespace is not None and link.namespace != self.namespace:
            raise InvalidRequest(f"'{key}': a commit cannot write through a link into namespace '{link.namespace}'")
        if links > LINKS_MAX:
            raise LinkLoop(f"'{key}': over {LINKS_MAX} links on the way")
        return split_key(join_key(split_key(link.target) + parts[index + 1 :]))

    # --------------------------------------------------------------------------------------------- one directory's tree

    def _load(self, ref: Ref) -> Node:
        node = self._nodes.node(ref)
        if node is None:
            raise NoSuchBlob(f"blob {ref_text(ref)}, a node of a directory, is missing")
        return node

    def _find(self, node: Any, name: str) -> Any:
        """Return the object of that name below a node, clean or dirty, or None."""
        while True:
            if type(node) is bytes:
                node = self._load(node)
            at = bisect_left(node.names, name)
            if at == len(node.names):
                return None
            if node.level:
                parent, node = node, node.refs[at]
                if type(node) is bytes:
                    node = self._load(node)
                    check_child(node, parent, at)
            else:
                return node.objects[at] if node.names[at] == name else None

    def _thaw(self, ref: Ref, node: Node) -> Any:
        self._replaced.append(ref)
        if type(node) is Leaf:
            return _Leaf(self._owner, node.names[:], node.objects[:], False)
        assert type(node) is Inner
        return _Inner(self._owner, node.level, node.names[:], node.refs[:])

    def _child(self, parent: _Inner, index: int) -> Any:
        """Return the child at ``index`` of a node that this transaction owns, copied if it does not own the child."""
        child = parent.refs[index]
        if type(child) is bytes:
            node = self._load(child)
            check_child(node, parent, index)
            child = parent.refs[index] = self._thaw(child, node)
        elif child.owner != self._owner:
            child = parent.refs[index] = child.copy(self._owner)
        return child

    def _descend(self, directory: _Directory, name: str) -> tuple[_Leaf, _Path]:
        """Return the leaf of ``name`` and the path to it, copied where this transaction does not own them."""
        owner = self._owner
        node = directory.root
        if type(node) is bytes:
            node = directory.root = self._thaw(node, self._load(node))
        elif node.owner != owner:
            node = directory.root = node.copy(owner)
        path: _Path = []
        while node.level:
            names = node.names
            at = bisect_left(names, name)
            if at == len(names):
                at -= 1
            path.append((node, at))
            child = node.refs[at]
            if type(child) is bytes or child.owner != owner:
                child = self._child(node, at)
            node = child
        return node, path

    def _insert(self, directory: _Directory, name: str, obj: Any) -> None:
        leaf, path = self._descend(directory, name)
        if type(obj) is _Directory:
            leaf.has_dirty = True
        names = leaf.names
        at = bisect_left(names, name)
        if at < len(names):
            if names[at] == name:
                leaf.objects[at] = obj
                return
            names.insert(at, name)
            leaf.objects.insert(at, obj)
            cut = name
            at += 1
        else:  # the new last name of the whole directory; the one before it may have to end its leaf from now on
            names.append(name)
            leaf.objects.append(obj)
            for inner, _ in path:
                inner.names[-1] = name
            if not at:
                return
            cut = names[at - 1]
        cut_level = level(cut)
        if cut_level:
            self._split(directory, path, leaf, at, cut_level)

    def _split(self, directory: _Directory, path: _Path, node: Any, at: int, cut_level: int) -> None:
        """Split ``node`` at ``at``, where it must end now, and the nodes above that must end there too.

        An insertion adds at most one end: the other names have not changed, and have their ends already.
        """
        cut = node.names[at - 1]
        while path:
            right = node.split(at)
            node_above, index = path.pop()
            node_above.names.insert(index, cut)
            node_above.refs.insert(index + 1, right)
            if cut_level <= node_above.level:
                return
            node, at = node_above, index + 1
        right = node.split(at)
        last = right.names[-1]
        above = node.level + 1
        while cut_level > above:
            node = _Inner(self._owner, above, [cut], [node])
            right = _Inner(self._owner, above, [last], [right])
            above += 1
        directory.root = _Inner(self._owner, above, [cut, last], [node, right])

    def _remove(self, directory: _Directory, name: str) -> None:
        """Remove an entry that exists."""
        leaf, path = self._descend(directory, name)
        at = bisect_left(leaf.names, name)
        if at + 1 < len(leaf.names):
            del leaf.names[at], leaf.objects[at]
            return
        depth = len(path) - 1
        while depth >= 0 and path[depth][1] + 1 == len(path[depth][0].refs):
            depth -= 1
        if depth < 0:
            self._remove_last(directory, path, leaf)
        else:
            self._join(path, depth, leaf)
        root = directory.root
        while True:  # a root with one child is replaced by the child, perhaps repeatedly
            node: Any = self._load(root) if type(root) is bytes else root
            if not node.level or len(node.refs) > 1:
                # A clean node is copied: a directory that was changed has no ref before the seal, whatever its shape.
                directory.root = self._thaw(root, node) if type(root) is bytes else root
                return
            root = node.refs[0]

    def _remove_last(self, directory: _Directory, path: _Path, leaf: _Leaf) -> None:
        """Remove the last entry of a directory, and the nodes that are then empty."""
        leaf.names.pop()
        leaf.objects.pop()
        node: Any = leaf
        while path and not node.names:
            node = path.pop()[0]
            node.names.pop()
            node.refs.pop()
        if not node.names:  # empty: a root with one child, which only users can make, would be left without any
            directory.root = leaf
        for inner, _ in path:
            inner.names[-1] = node.names[-1]

    def _join(self, path: _Path, depth: int, leaf: _Leaf) -> None:
        """Remove the last entry of a leaf that has a right neighbour, and merge them.

        All nodes below ``path[depth]`` on the path ended with that name: each is merged with its right neighbour.
        """
        pivot, index = path[depth]
        lefts: list[Any] = [inner for inner, _ in path[depth + 1 :]]
        lefts.append(leaf)
        rights: list[Any] = [self._child(pivot, index + 1)]
        while len(rights) < len(lefts):  # all are loaded before the first change
            rights.append(self._child(rights[-1], 0))
        for left, right in zip(lefts, rights, strict=True):
            left.names.pop()
            left.names += right.names
            if left.level:
                left.refs += right.refs[1:]
            else:
                left.objects.pop()
                left.objects += right.objects
                left.has_dirty |= right.has_dirty
        del pivot.names[index], pivot.refs[index + 1]
