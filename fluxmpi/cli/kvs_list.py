"""``fluxmpi kvs ls | dir``: list directories, in the layout of flux-kvs(1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import click

from fluxmpi.cli.common import (
    Command,
    at_option,
    connect,
    error_context,
    json_option,
    kvs_of,
    namespace_option,
    output_width,
    print_error,
    shown,
    write_json,
    write_line,
)
from fluxmpi.cli.render import link_json, link_text, stored_json, value_text
from fluxmpi.errors import FluxmpiError, NoSuchKey, NotADirectory
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Link, Object

if TYPE_CHECKING:
    from fluxmpi.client.kvs.kvs import Kvs
    from fluxmpi.client.kvs.reading import Entry
    from fluxmpi.client.snapshot import Snapshot

COLUMN_GAP = 4
ELLIPSIS = "..."

width_option = click.option(
    "-w",
    "--width",
    type=click.IntRange(min=0),
    metavar="COLS",
    help="Width of the output in columns; 0 is unlimited.  [default: the terminal's, or 80]",
)


@click.command(cls=Command, examples="fluxmpi kvs ls\nfluxmpi kvs ls -F run\nfluxmpi kvs ls -R1 job")
@namespace_option
@at_option
@click.option("-R", "--recursive", is_flag=True, help="List the directories below, too.")
@click.option("-d", "--directory", is_flag=True, help="List directories themselves, not their entries.")
@click.option("-F", "--classify", is_flag=True, help="Append '.' to directories and '@' to links.")
@width_option
@click.option("-1", "--1", "one", is_flag=True, help="Print one name per line.")
@json_option
@click.argument("keys", metavar="[KEY...]", nargs=-1)
@click.pass_context
def ls(
    ctx: click.Context,
    namespace: str | None,
    at: str | None,
    recursive: bool,
    directory: bool,
    classify: bool,
    width: int | None,
    one: bool,
    as_json: bool,
    keys: tuple[str, ...],
) -> None:
    """List the names in each directory KEY, or KEY itself if it is a value.

    Without a KEY, list the root directory.

    Exit status: 1 if a KEY does not exist; the others are listed.
    """
    columns = 1 if one else output_width(width)
    with connect() as h:
        kvs = kvs_of(h, namespace)
        lister = _Lister(kvs, kvs.snapshot(at), classify, columns)
        singles, directories, failed = lister.partition(keys or (ROOT_KEY,), directory)
        if as_json:
            write_json(lister.as_json(singles, directories, recursive))
        else:
            lister.print_all(singles, directories, recursive)
    ctx.exit(1 if failed else 0)


class _Lister:
    """Lists keys of one snapshot, for ``ls``."""

    def __init__(self, kvs: Kvs, at: Snapshot, classify: bool, columns: int) -> None:
        self._kvs = kvs
        self._at = at
        self._classify = classify
        self._columns = columns

    def partition(self, keys: Iterable[str], directory: bool) -> tuple[list[str], list[str], bool]:
        """Return (keys listed themselves, directories whose entries are listed, whether a key was invalid)."""
        singles, directories, failed = [], [], False
        for key in keys:
            try:
                found = self._object(key, follow=False)
                name = key.rstrip(SEPARATOR) or ROOT_KEY
                if key != name and not isinstance(found, Dir):
                    raise NotADirectory(f"{name} is not a directory")
                if isinstance(found, Link) and not (self._classify or directory) and self._is_link_to_directory(key):
                    found = Dir(b"")
            except FluxmpiError as error:
                print_error(error.text if key in error.text else f"{key}: {error.text}")
                failed = True
                continue
            if isinstance(found, Dir) and not directory:
                directories.append(name)
            else:
                singles.append(name + self._mark(found) if name != ROOT_KEY else name)
        return sorted(singles), sorted(directories), failed

    def _object(self, key: str, follow: bool) -> Object:
        return self._kvs.get_object(key, follow=follow, at=self._at)

    def _is_link_to_directory(self, key: str) -> bool:
        try:
            return isinstance(self._object(key, follow=True), Dir)
        except NoSuchKey:
            return False

    def _mark(self, found: Object) -> str:
        if not self._classify:
            return ""
        return {Dir: ".", Link: "@"}.get(type(found), "")

    def _marked(self, entry: Entry) -> str:
        return entry.name + self._mark(entry.object)

    def _entries(self, key: str) -> list[Entry]:
        with error_context(key):
            return list(self._kvs.entries(key, at=self._at))

    def _below(self, key: str, recursive: bool) -> Iterator[tuple[str, list[Entry]]]:
        entries = self._entries(key)
        yield key, entries
        if recursive:
            for entry in entries:
                if entry.is_directory:
                    yield from self._below(entry.key, True)

    def print_all(self, singles: list[str], directories: list[str], recursive: bool) -> None:
        for line in lay_out(singles, self._columns):
            write_line(line)
        labelled = bool(singles) or recursive or len(directories) > 1
        space = bool(singles)
        for top in directories:
            for key, entries in self._below(top, recursive):
                if labelled:
                    if space:
                        write_line("")
                    write_line(f"{key}:")
                width = max((len(shown(entry.name)) for entry in entries), default=0)
                for line in lay_out([self._marked(entry) for entry in entries], self._columns, width):
                    write_line(line)
                space = True

    def as_json(self, singles: list[str], directories: list[str], recursive: bool) -> Any:
        """Return the list of names of one directory, or an object: directory → list of names."""
        listed = {
            key: [self._marked(entry) for entry in entries]
            for top in directories
            for key, entries in self._below(top, recursive)
        }
        if not singles and not recursive and len(directories) == 1:
            return listed[directories[0]]
        return {**({"": singles} if singles else {}), **listed}


def lay_out(names: list[str], columns: int, longest: int | None = None) -> Iterator[str]:
    """Yield lines of names in columns of equal width. ``columns``: 0 is unlimited, 1 is one name per line.

    ``longest``: the length of the longest name without its mark; the default is the longest of ``names``.
    """
    names = [shown(name) for name in names]
    width = (max(map(len, names), default=0) if longest is None else longest) + COLUMN_GAP
    per_line = len(names) if columns == 0 else max(1, columns // width)
    for begin in range(0, len(names), per_line or 1):
        yield "".join(name.ljust(width) for name in names[begin : begin + per_line]).rstrip()


@click.command("dir", cls=Command, examples="fluxmpi kvs dir run\nfluxmpi kvs dir -R -w 0 .")
@namespace_option
@at_option
@click.option("-R", "--recursive", is_flag=True, help="Print the keys in the directories below, too.")
@click.option("-d", "--directory", is_flag=True, help="Print keys without their values.")
@width_option
@json_option
@click.option("--full", is_flag=True, help="With --json: print arrays with their elements.")
@click.argument("key", default=ROOT_KEY)
def dir_(
    namespace: str | None,
    at: str | None,
    recursive: bool,
    directory: bool,
    width: int | None,
    as_json: bool,
    full: bool,
    key: str,
) -> None:
    """List a directory: 'KEY = VALUE' for values, 'KEY.' for directories, 'KEY -> TARGET' for links.

    A line longer than the terminal is cut, and ends with '...'. --json prints of an array its type, dtype and shape.
    """
    if full and not as_json:
        raise click.UsageError("--full needs --json.")
    columns = output_width(width)
    with connect() as h, error_context(key):
        kvs = kvs_of(h, namespace)
        for entry in _walk(kvs, key, kvs.snapshot(at), recursive):
            if as_json:
                write_json(_json_line(h.kvs, entry, directory, full))
            else:
                write_line(_line(h.kvs, entry, directory, columns))


def _walk(kvs: Kvs, key: str, at: Snapshot, recursive: bool) -> Iterator[Entry]:
    """Yield the entries in order. With ``recursive``, a directory that is not empty is replaced by its entries."""
    for entry in kvs.entries(key, at=at):
        if not (recursive and entry.is_directory):
            yield entry
            continue
        empty = True
        for below in _walk(kvs, entry.key, at, True):
            empty = False
            yield below
        if empty:
            yield entry


def _line(kvs: Kvs, entry: Entry, directory: bool, columns: int) -> bytes:
    found = entry.object
    if isinstance(found, Dir):
        return f"{entry.key}.".encode()
    if isinstance(found, Link):
        return f"{entry.key} -> {link_text(found)}".encode()
    if directory:
        return entry.key.encode()
    text = f"{entry.key} = ".encode() + value_text(found.type, kvs.bytes_of(found))
    return shorten(text, columns)


def shorten(text: bytes, columns: int) -> bytes:
    """Return the first line up to its first control character, cut to ``columns``; '...' marks that text was left out.

    With fewer than four columns the text is returned unchanged.
    """
    room = columns - len(ELLIPSIS)
    if room <= 0:
        return text
    start = text[: 4 * room + 4].decode("utf-8", "replace")  # a character has up to four bytes
    line, _, rest = start[:room].partition("\n")
    shown = "".join(takewhile(str.isprintable, line))
    more = len(start) > room or rest or len(shown) < len(line)
    return (shown + ELLIPSIS if more else shown).encode()


def _json_line(kvs: Kvs, entry: Entry, directory: bool, full: bool) -> dict[str, Any]:
    found = entry.object
    if isinstance(found, Dir):
        return {"key": entry.key, "type": "directory"}
    if isinstance(found, Link):
        return {"key": entry.key, **link_json(found)}
    line = {"key": entry.key, "type": "value", "format": found.type}
    if directory:
        return line
    return {**line, "value": stored_json(kvs, found, full)}
