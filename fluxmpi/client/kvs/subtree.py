"""The values below a directory as a mutable mapping: ``h.kvs.subtree("run")``."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any

from fluxmpi.client.kvs.reading import Entry, Reading
from fluxmpi.client.kvs.writing import Writing
from fluxmpi.errors import InvalidKey, NoSuchKey
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Val, ValRef, join_key, split_key


class Subtree(MutableMapping[str, Any]):
    """The values below a directory as a mutable mapping; made by ``h.kvs.subtree``.

    Keys are relative: ``h.kvs.subtree("run")["config"]`` is ``h.kvs.get("run.config")``. It has values only: a key that
    is a directory raises IsADirectory, and is not ``in`` it. Iteration leaves links out; ``s[key]`` follows them.

    It is as convenient as a dict, but not as cheap:

    - ``s[key]``, ``key in s``, ``get``: a read; microseconds if it was read before, otherwise a round trip
    - ``s[key] = value``: a commit, so a round trip to rank 0 and a new version
    - ``update``, ``clear``: one commit for everything, atomic
    - ``del s[key]``, ``pop``, ``setdefault``, ``popitem``: a read and a commit, between which other clients may write; where that
      matters, use ``h.kvs.txn()``, ``exchange`` or ``compare_and_swap``
    - ``for``, ``items``, ``values``: a walk over everything below, at one version: a round trip for each directory, and for each
      1,000 entries of a large one; long values are loaded one by one
    - ``len``, ``==``: such a walk, to its end; ``==`` compares all values
    - ``bool``: the beginning of such a walk
    """

    def __init__(self, kvs: Subtrees, key: str) -> None:
        self._kvs = kvs
        self._key = join_key(split_key(key))

    def _whole(self, key: str) -> str:
        """Return the whole key of a relative one. Raises InvalidKey for the directory itself."""
        if not split_key(key):
            raise InvalidKey(f"'{key}' is the directory '{self._key}' itself: name a key below it")
        return key if self._key == ROOT_KEY else f"{self._key}{SEPARATOR}{key}"

    def __getitem__(self, key: str) -> Any:
        return self._kvs.get(self._whole(key))

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        try:
            found = self._kvs.get_object(self._whole(key), follow=True)
        except (NoSuchKey, InvalidKey):
            return False
        return not isinstance(found, Dir)

    def __setitem__(self, key: str, value: Any) -> None:
        self._kvs.commit({self._whole(key): value})

    def __delitem__(self, key: str) -> None:
        whole = self._whole(key)
        found = self._kvs.get_object(whole)
        if isinstance(found, Dir):
            raise NoSuchKey(f"'{key}' is a directory, not a value: unlink it, or clear its subtree")
        self._kvs.unlink(whole)

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Set several keys, in one commit."""
        values: Iterable[tuple[str, Any]] = other.items() if isinstance(other, Mapping) else other
        changed = {self._whole(key): value for key, value in [*values, *more.items()]}
        if changed:
            self._kvs.commit(changed)

    def clear(self) -> None:
        """Remove everything below, also directories and links, in one commit."""
        with self._kvs.txn() as txn:
            for entry in self._entries(recursive=False):
                txn.unlink(entry.key)

    def _entries(self, recursive: bool = True) -> Iterator[Entry]:
        """Yield the entries below, of one version; none if there is no such directory."""
        snapshot = self._kvs.snapshot()
        try:
            yield from self._kvs.entries(self._key, recursive=recursive, at=snapshot)
        except NoSuchKey:
            return

    def _values(self) -> Iterator[tuple[str, Entry]]:
        skip = 0 if self._key == ROOT_KEY else len(self._key) + 1
        for entry in self._entries():
            if isinstance(entry.object, Val | ValRef):
                yield entry.key[skip:], entry

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self._values())

    def __len__(self) -> int:
        return sum(1 for _ in self._values())

    def __bool__(self) -> bool:
        return next(self._values(), None) is not None

    def items(self) -> ItemsView[str, Any]:
        """Return the keys with their values, all of one version."""
        return _SubtreeItems(self)

    def values(self) -> ValuesView[Any]:
        """Return the values, all of one version."""
        return _SubtreeValues(self)

    def __repr__(self) -> str:
        return f"<Subtree {self._key} of {self._kvs.name}>"


class Subtrees(Reading, Writing):
    """The method of ``h.kvs`` that opens subtrees."""

    def subtree(self, key: str = ROOT_KEY) -> Subtree:
        """Return the values below a directory as a mutable mapping, with keys relative to it.

        Args:
            key: the directory, which need not exist yet.

        Example:
            >>> run = h.kvs.subtree("doc.settings")
            >>> run["dt"] = 0.1
            >>> run.update({"solver.name": "cg", "solver.steps": 100})      # one commit
            >>> dict(run)
            {'dt': 0.1, 'solver.name': 'cg', 'solver.steps': 100}
            >>> run.clear()
        """
        return Subtree(self, key)


class _SubtreeItems(ItemsView[str, Any]):
    _mapping: Subtree

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return ((key, entry.value) for key, entry in self._mapping._values())


class _SubtreeValues(ValuesView[Any]):
    _mapping: Subtree

    def __iter__(self) -> Iterator[Any]:
        return (entry.value for _, entry in self._mapping._values())
