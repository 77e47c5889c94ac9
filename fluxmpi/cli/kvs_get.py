"""``fluxmpi kvs get | readlink``: reading values, now and as they change."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from fluxmpi.cli.common import (
    AtParam,
    Command,
    about,
    connect,
    namespace_option,
    options,
    write,
    write_json,
    write_line,
)
from fluxmpi.client.values import JSON, RAW, decode_value
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchKey
from fluxmpi.kvs.objects import ROOT_KEY, SEPARATOR, Dir, Object, Val, ValRef
from fluxmpi.kvs.wire import PRIMARY

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs import Kvs
    from fluxmpi.client.watch import Change, Watch

DOUBLE_BYTES = 8
"""JSON's numbers are doubles for most who read them: a longer float is written as its bytes."""

at_option = click.option(
    "-a", "--at", type=AtParam(), metavar="WHERE",
    help="Read at a snapshot, a version, a blobref, what 'kvs getroot' printed, or a time: -5min, 2026-01-31T12:00, @SECONDS.",
)  # fmt: skip

form_options = options(
    click.option("-r", "--raw", "form", flag_value="raw", help="Print the bytes, an array's too, without a newline."),
    click.option("-t", "--treeobj", "form", flag_value="treeobj", help="Print the object that stands at the key."),
    click.option("-j", "--json", "form", flag_value="json", help="Print the value as JSON, for programs."),
    click.option("-l", "--label", is_flag=True, help="Print KEY= before the value."),
)


@click.command(
    cls=Command,
    examples="""
fluxmpi kvs get run.steps
fluxmpi kvs get -r run.mesh > mesh.bin
fluxmpi kvs get --at primary@12:9f86d081884c7d65 run.steps
fluxmpi kvs get --at -5min run.steps
fluxmpi kvs get -w -c 3 run.step
fluxmpi kvs get -W run.ready
""",
)
@namespace_option
@form_options
@at_option
@click.option("-f", "--fresh", is_flag=True, help="Ask rank 0 for the newest version first.")
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the key exists.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Go on and print every new value.")
@click.option("-u", "--uniq", is_flag=True, help="With -w: skip what was written again with the value that it had.")
@click.option(
    "-A", "--append", is_flag=True, help="With -w: print what is appended, or all of a value that is written anew."
)
@click.option("--full", is_flag=True, hidden=True, help="For flux-kvs's scripts; every watch is full here.")
@click.option(
    "-S", "--stream", is_flag=True, hidden=True, help="For flux-kvs's scripts; long values come in pieces here."
)
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="COUNT", help="With -w: end after COUNT values.")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def get(
    namespace: str | None,
    form: str | None,
    label: bool,
    at: str | None,
    fresh: bool,
    waitcreate: bool,
    watching: bool,
    uniq: bool,
    append: bool,
    full: bool,
    stream: bool,
    count: int | None,
    keys: tuple[str, ...],
) -> None:
    """Print the value stored under each KEY: JSON strings as plain text, other JSON as it is stored, bytes as they are.

    A newline is added, unless the value is empty or -r is given.
    """
    if at is not None and (watching or waitcreate or fresh):
        raise click.UsageError("--at reads the past: it goes with none of --watch, --waitcreate and --fresh.")
    if (uniq or append or count) and not watching:
        raise click.UsageError("--uniq, --append and --count go with --watch.")
    with connect() as h:
        if fresh:
            h.kvs.getroot(fresh=True, namespace=namespace or PRIMARY)
        if watching:
            _get_watching(h, keys, namespace or PRIMARY, form, label, waitcreate, uniq, append, count)
            return
        place = None if at is None else h.kvs.snapshot(namespace, at=at)
        for key in keys:
            with about(key):
                if waitcreate:
                    _wait_created(h, key, namespace or PRIMARY)
                found = h.kvs.get_object(key, follow=form != "treeobj", at=place, namespace=namespace)
                _print_value(h.kvs, key, found, form, label)


def _print_value(kvs: Kvs, key: str, found: Object, form: str | None, label: bool) -> None:
    if form == "treeobj":
        from fluxmpi.client.treeobj import to_treeobj

        write_line((f"{key}=" if label else "") + to_treeobj(found), flush=True)
        return
    if not isinstance(found, Val | ValRef):
        if isinstance(found, Dir):
            raise IsADirectory(f"key '{key}' is a directory: list it with 'kvs ls' or 'kvs dir'")
        raise InvalidRequest(f"key '{key}' is a link; --treeobj prints it")
    if form == "raw" and found.type != JSON:
        _print_raw(kvs, key, found, label)
        return
    data = kvs.bytes_of(found)
    if form == "json":
        write_json({key: json_value(found.type, data)} if label else json_value(found.type, data), flush=True)
        return
    shown = (raw if form == "raw" else display)(found.type, data)
    newline = b"\n" if form != "raw" and shown else b""
    write((f"{key}=".encode() if label else b"") + shown + newline)
    sys.stdout.flush()


def _print_raw(kvs: Kvs, key: str, found: Val | ValRef, label: bool) -> None:
    """The bytes as they are, piece by piece, however many they are. How far it is, is shown if they do not go to a terminal."""
    from fluxmpi.cli.progress import progress

    if label:
        write(f"{key}=")
    with kvs.reader_of(found) as reader, progress(key, reader.size) as tell:
        for piece in reader.pieces():
            write(piece)
            if tell is not None and not sys.stdout.isatty():
                tell(reader.tell())
    sys.stdout.flush()


def display(type_: str, data: bytes | bytearray) -> bytes:
    """A value for a person."""
    if type_ == RAW:
        return bytes(data)
    if type_ == JSON and not data.lstrip().startswith(b'"'):
        return bytes(data)
    value = decode_value(type_, data)
    return value.encode() if isinstance(value, str) else str(value).encode()


def raw(type_: str, data: bytes | bytearray) -> bytes:
    """A value for a program: bytes as they are stored, but a text without the quotes that JSON puts around it."""
    return display(type_, data) if type_ == JSON else bytes(data)


def json_value(type_: str, data: bytes | bytearray) -> Any:
    """A value as something that JSON can say: bytes that are no text, and arrays, as objects."""
    return in_json(type_, decode_value(type_, data))


def in_json(type_: str, value: Any) -> Any:
    """The same of a value that was decoded. JSON has no NaN and no infinity: those of an array are null."""
    if type_ == RAW:
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(value).decode()}
    if type_ != JSON:
        base = {"dtype": value.dtype.str, "shape": list(value.shape)}
        if value.dtype.kind == "f" and value.dtype.itemsize <= DOUBLE_BYTES:
            return {**base, "data": msgspec.json.decode(msgspec.json.encode(value.tolist()))}
        if value.dtype.kind in "biuU":
            return {**base, "data": value.tolist()}
        return {**base, "base64": base64.b64encode(value.tobytes()).decode()}
    return value


# ---------------------------------------------------------------------------------------------------------- watching


@contextmanager
def _no_directory(key: str) -> Iterator[None]:
    """Say which command watches a directory."""
    try:
        yield
    except IsADirectory:
        name = "." if key == ROOT_KEY else f"{key.rstrip(SEPARATOR)}."
        raise IsADirectory(
            f"key '{key}' is a directory: 'fluxmpi kvs watch {name}' prints what changes below it"
        ) from None


def _wait_created(h: Handle, key: str, namespace: str) -> None:
    with _no_directory(key), h.kvs.watch(key, recursive=False, glob=False, namespace=namespace) as watch:
        while (change := watch.get()) is not None and change.deleted:
            pass


def _get_watching(
    h: Handle,
    keys: tuple[str, ...],
    namespace: str,
    form: str | None,
    label: bool,
    waitcreate: bool,
    uniq: bool,
    append: bool,
    count: int | None,
) -> None:
    for change in _changes(h, keys, namespace, waitcreate, uniq or append):
        assert change.object is not None
        if append and form in (None, "raw") and change.added is not None:
            newline = b"" if form == "raw" else b"\n"
            write((f"{change.key}=".encode() if label else b"") + change.added + newline)
            sys.stdout.flush()
        else:
            _print_value(h.kvs, change.key, change.object, form, label)
        if count is not None:
            count -= 1
            if not count:
                return


def _changes(h: Handle, keys: tuple[str, ...], namespace: str, waitcreate: bool, uniq: bool) -> Iterator[Change]:
    """What each key holds, then every value that it gets. Raises NoSuchKey when one is gone."""
    from fluxmpi.client.handle import first_ready

    watches: dict[str, Watch] = {}
    for key in keys:
        watches[key] = watch = h.kvs.watch(
            key, recursive=False, glob=False, namespace=namespace, uniq=uniq, wait=waitcreate
        )
        if waitcreate:
            continue
        with about(key), _no_directory(key):
            update = watch.update()
        changes = update.changes if update else []
        if not changes:
            raise NoSuchKey(f"no key '{key}' yet; --waitcreate waits for it")
        yield from changes
    while True:
        stream = first_ready(h, [watch.stream for watch in watches.values()])
        key = next(key for key, watch in watches.items() if watch.stream is stream)
        with about(key), _no_directory(key):
            update = watches[key].update()
        if update is None:
            return
        for change in update.changes:
            if change.object is not None:
                yield change
            elif not waitcreate:
                raise NoSuchKey(f"key '{key}' was removed in version {update.version}; --waitcreate waits for it again")


def link_text(namespace: str | None, target: str) -> str:
    return target if namespace is None else f"{namespace}::{target}"


@click.command(cls=Command, examples="fluxmpi kvs readlink run.latest")
@namespace_option
@at_option
@click.option("-o", "--namespace-only", "part", flag_value="namespace", help="Print the namespace, if there is one.")
@click.option("-k", "--key-only", "part", flag_value="key", help="Print the key without the namespace.")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def readlink(namespace: str | None, at: str | None, part: str | None, keys: tuple[str, ...]) -> None:
    """Print the key that each link points to; in another namespace, as NS::KEY."""
    with connect() as h:
        place = None if at is None else h.kvs.snapshot(namespace, at=at)
        for key in keys:
            with about(key):
                link = h.kvs.readlink(key, at=place, namespace=namespace)
            if part == "namespace" and link.namespace is not None:
                write_line(link.namespace)
            else:
                write_line(link.target if part == "key" else link_text(link.namespace, link.target))
