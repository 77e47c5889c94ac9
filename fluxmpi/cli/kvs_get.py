"""``fluxmpi kvs get | readlink``: read values, once or as they change."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from fluxmpi.cli.common import (
    Command,
    at_option,
    connect,
    error_context,
    kvs_of,
    namespace_option,
    options,
    write,
    write_json,
    write_line,
)
from fluxmpi.cli.render import link_text, stored_json, value_bytes, value_text
from fluxmpi.client.values import JSON
from fluxmpi.errors import InvalidRequest, IsADirectory, NoSuchKey, SnapshotCollected
from fluxmpi.kvs.objects import SEPARATOR, Dir, Object, Val, ValRef

if TYPE_CHECKING:
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs.kvs import Kvs
    from fluxmpi.client.kvs.watch import Change, Watch
    from fluxmpi.client.snapshot import Snapshot

JSON_FORM, FULL_JSON_FORM = "json", "full json"

form_options = options(
    click.option("-r", "--raw", "form", flag_value="raw", help="Print the stored bytes, without a newline."),
    click.option(
        "-t", "--treeobj", "form", flag_value="treeobj", help="Print the object at the key as a treeobj (RFC 11)."
    ),
    click.option("-j", "--json", "form", flag_value=JSON_FORM, help="Print the value as JSON; of an array its type."),
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
@click.option("-f", "--fresh", is_flag=True, help="Read the newest version of rank 0 first.")
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the key exists. There is no timeout.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Print each new value, until interrupted.")
@click.option("-u", "--uniq", is_flag=True, help="With -w: do not print a value that equals the previous one.")
@click.option(
    "-A",
    "--append",
    is_flag=True,
    help="With -w: print each append by itself, and a value that was written anew whole.",
)
@click.option(
    "--full",
    is_flag=True,
    help="With -j: print an array with its elements. With -w: as -u, for flux-kvs compatibility.",
)
@click.option(
    "-S",
    "--stream",
    is_flag=True,
    hidden=True,
    help="Accepted for flux-kvs compatibility, not with --watch: long values are always streamed.",
)
@click.option(
    "-c", "--count", type=click.IntRange(min=0), metavar="N", help="With -w: exit after N values; 0: no limit."
)
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
    """Print the value of each KEY: a JSON string without quotes, other JSON as stored, bytes unchanged.

    --json prints of an array {"type": "ndarray", "dtype": DTYPE, "shape": [N, ...]}; --full adds the elements as "data",
    or, if JSON cannot hold them, as "base64".

    A newline follows, unless the value is empty or -r is given, and a final NUL is left out. On a terminal, control
    characters are shown as \\x1b. -r writes the bytes as they are.

    Exit status: 1 if a KEY does not exist, is a directory, or with -w was removed after it existed.
    """
    if at is not None and (watching or waitcreate or fresh):
        raise click.UsageError("--at reads one version: it cannot be combined with --watch, --waitcreate or --fresh.")
    if (uniq or append or count) and not watching:
        raise click.UsageError("--uniq, --append and --count need --watch.")
    if stream and watching:
        raise click.UsageError("--stream reads the value once: it cannot be combined with --watch.")
    if form == JSON_FORM and full:
        form = FULL_JSON_FORM
    with connect(streaming=watching or waitcreate) as h:
        kvs = kvs_of(h, namespace)
        if fresh:
            kvs.version(fresh=True)
        if watching:
            _print_changes(h, kvs, keys, form, label, waitcreate, uniq or full, append, count)
            return
        state = _state(kvs, at)
        for key in keys:
            with error_context(key):
                if waitcreate:
                    _wait_created(kvs, key)
                found = kvs.get_object(key, follow=form != "treeobj", at=state)
                _print_value(kvs, key, found, form, label)


def _print_value(kvs: Kvs, key: str, found: Object, form: str | None, label: bool) -> None:
    if form == "treeobj":
        from fluxmpi.client.treeobj import to_treeobj

        write_line((f"{key}=" if label else "") + to_treeobj(found), flush=True)
        return
    if not isinstance(found, Val | ValRef):
        if isinstance(found, Dir):
            raise IsADirectory(f"key '{key}' is a directory: list it with 'fluxmpi kvs ls' or 'fluxmpi kvs dir'")
        raise InvalidRequest(f"key '{key}' is a link: print it with --treeobj")
    if form == "raw" and found.type != JSON:
        _print_raw(kvs, key, found, label)
        return
    if form in (JSON_FORM, FULL_JSON_FORM):
        value = stored_json(kvs, found, form == FULL_JSON_FORM)
        write_json({key: value} if label else value, flush=True)
        return
    data = kvs.bytes_of(found)
    _write_value(key, (value_bytes if form == "raw" else value_text)(found.type, data), form, label)


def _write_value(key: str, shown: bytes, form: str | None, label: bool) -> None:
    newline = b"\n" if form != "raw" and shown else b""
    write((f"{key}=".encode() if label else b"") + shown + newline, raw=form == "raw")
    sys.stdout.flush()


def _print_raw(kvs: Kvs, key: str, found: Val | ValRef, label: bool) -> None:
    """Write the bytes piece by piece, in bounded memory. A progress bar is shown unless stdout is a terminal."""
    from fluxmpi.cli.progress import show_progress

    if label:
        write(f"{key}=")
    with kvs.file_of(found) as file, show_progress(key, file.size) as report:
        for piece in file.pieces():
            write(piece, raw=True)
            if report is not None and not sys.stdout.isatty():
                report(file.tell())
    sys.stdout.flush()


def _state(kvs: Kvs, at: str | None) -> Snapshot | str | None:
    """Return the state to read, one for all keys; ``at`` itself if the version has gone: past values may be kept."""
    try:
        return None if at is None else kvs.snapshot(at)
    except SnapshotCollected:
        return at


# ---------------------------------------------------------------------------------------------------------- watching


@contextmanager
def _suggest_kvs_watch(key: str) -> Iterator[None]:
    """Name in an IsADirectory error the command that watches a directory."""
    try:
        yield
    except IsADirectory:
        name = f"{key.rstrip(SEPARATOR)}."
        raise IsADirectory(
            f"key '{key}' is a directory: 'fluxmpi kvs watch {name}' prints what changes below it"
        ) from None


def _wait_created(kvs: Kvs, key: str) -> None:
    with _suggest_kvs_watch(key), kvs.watch_key(key) as watch:
        while (change := watch.get()) is not None and change.deleted:
            pass


def _print_changes(
    h: Handle,
    kvs: Kvs,
    keys: tuple[str, ...],
    form: str | None,
    label: bool,
    waitcreate: bool,
    uniq: bool,
    append: bool,
    count: int | None,
) -> None:
    """Print the values of the keys as they change, ``count`` of them. With ``append``, each append is one."""
    printed = 0
    for key, change in _changes(h, kvs, keys, waitcreate, uniq):
        assert change.object is not None
        appends = change.appends if append and form in (None, "raw") else None
        pieces: Sequence[bytes | None] = appends or [None]
        for piece in pieces:
            if piece is None:
                _print_value(kvs, key, change.object, form, label)
            else:
                _write_value(key, piece, form, label)
            printed += 1
            if printed == count:
                return


def _changes(h: Handle, kvs: Kvs, keys: tuple[str, ...], waitcreate: bool, uniq: bool) -> Iterator[tuple[str, Change]]:
    """Yield each key with its value, then with every new value. Raises NoSuchKey when a key is removed."""
    watches: list[Watch] = []
    existing: dict[str, None] = {}
    for key in keys:
        watch = kvs.watch_key(key, rewrites=not uniq, wait=waitcreate)
        watches.append(watch)
        if waitcreate:
            continue
        with error_context(key), _suggest_kvs_watch(key):
            update = watch.update()
        changes = update.changes if update else []
        if not changes:
            raise NoSuchKey(f"no key '{key}'; --waitcreate waits until it exists")
        existing[key] = None
        yield from ((key, change) for change in changes)
    while True:
        ready = h.wait_any(watches)
        key = next(key for key, watch in zip(keys, watches, strict=True) if watch is ready)
        with error_context(key), _suggest_kvs_watch(key):
            update = ready.update()
        if update is None:
            return
        for change in update.changes:
            if change.object is not None:
                existing[key] = None
                yield key, change
            elif key in existing:
                raise NoSuchKey(f"key '{key}' was removed in version {update.version}")


@click.command(cls=Command, examples="fluxmpi kvs readlink run.latest\nfluxmpi kvs readlink --at -1h run.latest")
@namespace_option
@at_option
@click.option(
    "-o",
    "--namespace-only",
    "part",
    flag_value="namespace",
    help="Print the namespace of the target, if the link has one.",
)
@click.option("-k", "--key-only", "part", flag_value="key", help="Print the target without the namespace.")
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
def readlink(namespace: str | None, at: str | None, part: str | None, keys: tuple[str, ...]) -> None:
    """Print the target of each link KEY: a key, or NS::KEY if it is in another namespace."""
    with connect() as h:
        kvs = kvs_of(h, namespace)
        state = _state(kvs, at)
        for key in keys:
            with error_context(key):
                link = kvs.readlink(key, at=state)
            if part == "namespace" and link.namespace is not None:
                write_line(link.namespace)
            else:
                write_line(link.target if part == "key" else link_text(link))
