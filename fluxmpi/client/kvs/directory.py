"""A directory of one version as a mapping: ``h.kvs.dir("job")``. Nothing is read before it is needed.

    jobs = h.kvs.dir("job")
    jobs["7"]["state"], jobs["7.state"]       two ways to a value; the name of a directory gives a Directory
    for name, value in jobs.items(): …        in order of name
    jobs.prefix("7"), jobs.range("5", "8")    parts of it, as lazy
    for page in jobs.pages(100): …            lists of (name, value)

It shows the version at which it was opened, ``snapshot``, whatever is committed meanwhile: open another one for newer
values.
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
    """A directory of one version as a lazy mapping, in order of name; made by ``h.kvs.dir``.

    Its operations cost, if nothing was read before:

    - ``d[name]``, ``name in d``: one round trip; then microseconds, also for the names beside it
    - ``for``, ``items``, …: a round trip for each 1,000 entries, and one for each long value, several at a time
    - ``prefix``, ``range``: nothing; their iteration reads only what is in them
    - ``len``: an iteration over all names
    - ``bool``: one round trip

    Links are followed; in ``items``, ``values`` and ``pages`` a link that leads nowhere has the value None.

    Attributes:
        snapshot: the version that it shows.

    Example:
        >>> _ = h.kvs.commit({f"doc.table.k{n:03}": n for n in range(500)})
        >>> table = h.kvs.dir("doc.table")
        >>> table["k007"], "k999" in table, len(table)
        (7, False, 500)
        >>> list(table.range("k010", "k013").items()), next(iter(table.prefix("k4")))
        ([('k010', 10), ('k011', 11), ('k012', 12)], 'k400')
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
        """The directory's key."""
        return SEPARATOR.join(self._parts) or ROOT_KEY

    def _below(self, name: str) -> str:
        return SEPARATOR.join([*self._parts, name])

    # --------------------------------------------------------------------------------------------------------- one name

    def __getitem__(self, name: str) -> Any:
        """Return the value of a name, or of a key relative to this directory; a Directory for a directory.

        Raises:
            NoSuchKey: there is no such name. It is a KeyError too.
        """
        if not self._includes(_first(name)):
            raise NoSuchKey(f"there is no key '{name}' in this part of '{self.key}'")
        key = self._below(name)
        try:
            return self._kvs.get(key, at=self.snapshot)
        except IsADirectory:
            return Directory(self._kvs, key, self.snapshot)

    def __contains__(self, name: object) -> bool:
        return (
            isinstance(name, str)
            and self._includes(_first(name))
            and self._kvs.exists(self._below(name), at=self.snapshot)
        )

    def _includes(self, name: str) -> bool:
        """Whether a name belongs to this part of the directory."""
        return (
            bool(name)
            and name.startswith(self._prefix)
            and self._begin <= name
            and (self._end is None or name < self._end)
        )

    # ------------------------------------------------------------------------------------------------------------ parts

    def prefix(self, prefix: str) -> Directory:
        """Return the part of the directory whose names start with ``prefix``."""
        if not prefix.startswith(self._prefix):
            if not self._prefix.startswith(prefix):
                return self.range("", "")
            prefix = self._prefix
        return Directory(self._kvs, self.key, self.snapshot, prefix, self._begin, self._end)

    def range(self, begin: str = "", end: str | None = None) -> Directory:
        """Return the part of the directory whose names are at least ``begin`` and below ``end``; None: up to the last."""
        ends = [bound for bound in (self._end, end) if bound is not None]
        return Directory(
            self._kvs, self.key, self.snapshot, self._prefix, max(self._begin, begin), min(ends) if ends else None
        )

    # ------------------------------------------------------------------------------------------------------- many names

    def entries(self, page: int = PAGE_ENTRIES) -> Iterator[Entry]:
        """Iterate over the entries, in order, without loading long values; ``page`` entries for each round trip."""
        for entries in self._pages(page):
            yield from entries

    def __iter__(self) -> Iterator[str]:
        return (entry.name for entry in self.entries())

    def __len__(self) -> int:
        return sum(len(page) for page in self._pages(PAGE_ENTRIES))

    def __bool__(self) -> bool:
        return next(self.entries(1), None) is not None

    def pages(self, size: int = PAGE_ENTRIES) -> Iterator[list[tuple[str, Any]]]:
        """Iterate over lists of (name, value), in order, ``size`` in each; the last may be shorter.

        Raises:
            InvalidRequest: ``size`` is less than 1.

        Example:
            >>> _ = h.kvs.commit({f"doc.table.k{n:03}": n for n in range(500)})
            >>> [len(page) for page in h.kvs.dir("doc.table").pages(200)]
            [200, 200, 100]
        """
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
        """Return the names with their values, in order; long values are loaded several at a time."""
        return _DirectoryItems(self)

    def values(self) -> ValuesView[Any]:
        """Return the values, in order of name; long values are loaded several at a time."""
        return _DirectoryValues(self)

    def _pages(self, size: int) -> Iterator[list[Entry]]:
        """Yield the entries of this part, page by page, at most ``size`` for each round trip."""
        namespace, ref = self.snapshot.namespace, self.snapshot.ref
        after = self._begin
        if after and SEPARATOR not in after and self._includes(after):
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
        """Names with their values; the blobs of the next values are loaded meanwhile."""
        kvs = self._kvs
        for page in self._pages(size):
            wanted = [
                entry.object.refs[0]
                for entry in page
                if isinstance(entry.object, ValRef) and _is_one_blob(entry.object) and not kvs._is_cached(entry.object)
            ]
            blobs = load_blobs(kvs._channel, wanted)
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
                        blob = next(blobs)
                    yield entry.name, decode_value(found.type, blob)
                else:
                    yield entry.name, entry.value

    def __repr__(self) -> str:
        part = f" from '{self._begin}'" if self._begin else ""
        part += f" to '{self._end}'" if self._end is not None else ""
        part += f" prefix '{self._prefix}'" if self._prefix else ""
        return f"<Directory {self.key}{part} of {self.snapshot.namespace}@{self.snapshot.version}>"


def _first(key: str) -> str:
    """Return the first name of a relative key; none of the directory itself."""
    return next(iter(split_key(key)), "")


def _is_one_blob(found: ValRef) -> bool:
    return len(found.refs) == 1


class _DirectoryItems(ItemsView[str, Any]):
    _mapping: Directory

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self._mapping._loaded()


class _DirectoryValues(ValuesView[Any]):
    _mapping: Directory

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._mapping._loaded())


class Directories(Reading):
    """The method of ``h.kvs`` that opens directories."""

    def dir(self, key: str = ROOT_KEY, *, at: AtLike = None) -> Directory:
        """Return a directory of one version as a lazy mapping, in order of name.

        Args:
            key: the directory; links are followed.
            at: the state to read, see ``snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such key.
            NotADirectory: the key is a value.

        Example:
            >>> _ = h.kvs.commit({"doc.job.7.state": "RUN", "doc.job.7.node": "n1"})
            >>> jobs = h.kvs.dir("doc.job")
            >>> dict(jobs["7"]), jobs["7.state"]
            ({'node': 'n1', 'state': 'RUN'}, 'RUN')
        """
        snapshot = self.snapshot(at)
        found = self.get_object(key, follow=True, at=snapshot)
        if not isinstance(found, Dir):
            raise NotADirectory(f"'{key}' is not a directory")
        return Directory(self, key, snapshot)
