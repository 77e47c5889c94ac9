"""A directory of one snapshot as a mapping: ``h.kvs.dir("job")``. Nothing is read before it is asked for.

    jobs = h.kvs.dir("job")
    jobs["7"]["state"], jobs["7.state"]       two ways down; a name that stands for a directory gives a Directory
    for name, value in jobs.items(): …        in order of name
    jobs.prefix("7"), jobs.range("5", "8")    parts of it, as lazy
    for page in jobs.pages(100): …            lists of (name, value)

It shows the version that it was opened at, ``snapshot``, whatever is committed meanwhile: open another one for what is new.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from fluxmpi.client.content import load_blobs
from fluxmpi.client.kvs.reading import PAGE_ENTRIES, Entry, Reading
from fluxmpi.client.kvs.stored_value import of_a_version
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.client.values import decode_value
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Link, ValRef, split_key


class Directory(Mapping[str, Any]):
    """What its operations cost, of n entries, where nothing was read before:

    ``d[name]``, ``name in d``   one round trip; then microseconds, for what stands beside it, too
    ``for``, ``items``, …        a round trip for each PAGE_ENTRIES entries, and one for each long value, several on the way
    ``prefix``, ``range``        nothing; their iteration reads only what is in them
    ``len``                      an iteration over all names
    ``bool``                     one round trip

    Links are followed; in ``items``, ``values`` and ``pages`` one that leads nowhere has the value None.
    """

    def __init__(
        self, kvs: Reading, key: str, snapshot: Snapshot, prefix: str = "", begin: str = "", end: str | None = None
    ) -> None:
        self._kvs = kvs
        self._parts = split_key(key)
        self._prefix = prefix
        self._begin = begin
        self._end = end
        self.snapshot = snapshot

    @property
    def key(self) -> str:
        return SEPARATOR.join(self._parts) or ROOT_KEY

    def _below(self, name: str) -> str:
        return SEPARATOR.join([*self._parts, name])

    # ---------------------------------------------------------------------------------------------------------- one name

    def __getitem__(self, name: str) -> Any:
        """The value of a name, or of a key relative to this directory; a Directory for a directory. NoSuchKey, a KeyError."""
        if not self._has_room_for(split_key(name)[0] if name != ROOT_KEY else ""):
            raise NoSuchKey(f"there is no key '{name}' in this part of '{self.key}'")
        key = self._below(name)
        try:
            return self._kvs.get(key, at=self.snapshot)
        except IsADirectory:
            return Directory(self._kvs, key, self.snapshot)

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str)
            and self._has_room_for(split_key(name)[0] if name != ROOT_KEY else "")
            and self._kvs.exists(self._below(name), at=self.snapshot)
        )

    def _has_room_for(self, name: str) -> bool:
        """Whether the name would be in this part of the directory."""
        return (
            bool(name)
            and name.startswith(self._prefix)
            and self._begin <= name
            and (self._end is None or name < self._end)
        )

    # ------------------------------------------------------------------------------------------------------------- parts

    def prefix(self, prefix: str) -> Directory:
        """The entries whose name starts with ``prefix``."""
        if not prefix.startswith(self._prefix):
            if not self._prefix.startswith(prefix):
                return self.range("", "")
            prefix = self._prefix
        return Directory(self._kvs, self.key, self.snapshot, prefix, self._begin, self._end)

    def range(self, begin: str = "", end: str | None = None) -> Directory:
        """The entries whose name is at least ``begin`` and below ``end``; None: to the last."""
        ends = [bound for bound in (self._end, end) if bound is not None]
        return Directory(
            self._kvs, self.key, self.snapshot, self._prefix, max(self._begin, begin), min(ends) if ends else None
        )

    # --------------------------------------------------------------------------------------------------------- many names

    def entries(self, page: int = PAGE_ENTRIES) -> Iterator[Entry]:
        """What stands in it, in order, without loading long values; ``page`` entries for each round trip."""
        for entries in self._pages(page):
            yield from entries

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.entries())

    def __len__(self) -> int:
        return sum(len(page) for page in self._pages(PAGE_ENTRIES))

    def __bool__(self) -> bool:
        return next(self.entries(1), None) is not None

    def pages(self, size: int = PAGE_ENTRIES) -> Iterator[list[tuple[str, Any]]]:
        """(name, value) in order, in lists of ``size``; the last one may be shorter."""
        if size < 1:
            raise InvalidRequest(f"a page has 1 or more entries, not {size}")
        page: list[tuple[str, Any]] = []
        for entry in self._loaded(min(size, PAGE_ENTRIES)):
            page.append(entry)
            if len(page) == size:
                yield page
                page = []
        if page:
            yield page

    def items(self) -> ItemsView[str, Any]:
        return _DirectoryItems(self)

    def values(self) -> ValuesView[Any]:
        return _DirectoryValues(self)

    def _pages(self, size: int) -> Iterator[list[Entry]]:
        """The entries of this part, at most ``size`` for each round trip."""
        namespace, ref = self.snapshot.namespace, self.snapshot.ref
        after = self._begin
        if after and SEPARATOR not in after and self._has_room_for(after):
            try:
                found = self._kvs.get_object(self._below(after), at=self.snapshot)
                yield [Entry(self._below(after), after, found, self._kvs._channel)]
            except NoSuchKey:
                pass
        more = self._end is None or after < self._end
        while more:
            entries, more, _ = self._kvs._page(self.key, self._prefix, after, size, namespace, ref)
            if entries:
                after = entries[-1][0]
            if self._end is not None and after >= self._end:
                entries = [entry for entry in entries if entry[0] < self._end]
                more = False
            if entries:
                yield [Entry(self._below(name), name, found, self._kvs._channel) for name, found in entries]

    def _loaded(self, size: int = PAGE_ENTRIES) -> Iterator[tuple[str, Any]]:
        """Names with their values; the blobs of those to come are on their way meanwhile."""
        kvs = self._kvs
        for page in self._pages(size):
            wanted = [
                entry.object.refs[0]
                for entry in page
                if isinstance(entry.object, ValRef) and _fits(entry.object) and not kvs._is_cached(entry.object)
            ]
            coming = load_blobs(kvs._channel, wanted)
            next_wanted = 0
            for entry in page:
                found = entry.object
                if isinstance(found, Dir):
                    yield entry.name, Directory(kvs, entry.key, self.snapshot)
                elif isinstance(found, Link):
                    yield entry.name, self.get(entry.name)
                elif (
                    isinstance(found, ValRef) and next_wanted < len(wanted) and found.refs[:1] == (wanted[next_wanted],)
                ):
                    next_wanted += 1
                    with of_a_version():
                        blob = next(coming)
                    yield entry.name, decode_value(found.type, blob)
                else:
                    yield entry.name, entry.value

    def __repr__(self) -> str:
        part = f" from '{self._begin}'" if self._begin else ""
        part += f" to '{self._end}'" if self._end is not None else ""
        part += f" prefix '{self._prefix}'" if self._prefix else ""
        return f"<Directory {self.key}{part} of {self.snapshot.namespace}@{self.snapshot.version}>"


def _fits(found: ValRef) -> bool:
    return len(found.refs) == 1


class _DirectoryItems(ItemsView[str, Any]):
    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._mapping._loaded()  # type: ignore[attr-defined]


class _DirectoryValues(ValuesView[Any]):
    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._loaded())  # type: ignore[attr-defined]


class Directories(Reading):
    """The part of ``h.kvs`` that opens directories."""

    def dir(self, key: str = ROOT_KEY, *, at: AtLike = None) -> Directory:
        """A directory as it is now, or ``at`` a snapshot: a lazy mapping, in order. NoSuchKey, NotADirectory."""
        snapshot = self.snapshot(at)
        found = self.get_object(key, follow=True, at=snapshot)
        if not isinstance(found, Dir):
            raise NotADirectory(f"'{key}' is not a directory")
        return Directory(self, key, snapshot)
