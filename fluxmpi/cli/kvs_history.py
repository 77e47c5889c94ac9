"""``fluxmpi kvs history | log | diff | retention | lease | gc``: versions over time, and how long they are kept."""

from __future__ import annotations

import subprocess
from datetime import datetime
from typing import TYPE_CHECKING

import click

from fluxmpi.cli.common import (
    AtParam,
    Command,
    PlaceCommand,
    about,
    connect,
    counted,
    fail,
    json_option,
    namespace_option,
    write_json,
    write_line,
)
from fluxmpi.cli.kvs_get import at_option, display, json_value
from fluxmpi.kvs.objects import ROOT_KEY, Dir, Link, Object, Val, ValRef
from fluxmpi.kvs.wire import PRIMARY
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.history import Version

NOT_RUNNABLE, NOT_FOUND = 126, 127
"""Exit statuses of a shell."""

count_option = click.option("-c", "--count", type=click.IntRange(min=1), metavar="COUNT", help="End after COUNT lines.")


def _shown(kvs: object, found: Object | None) -> str:
    """What stands at a key, in one line for a person."""
    if isinstance(found, Val | ValRef):
        text = display(found.type, kvs.bytes_of(found))  # type: ignore[attr-defined]
        return text.decode("utf-8", "backslashreplace").replace("\n", "\\n")
    if isinstance(found, Dir):
        return "(directory)"
    if isinstance(found, Link):
        return f"-> {found.target if found.namespace is None else f'{found.namespace}::{found.target}'}"
    return "(none)"


def _json(kvs: object, found: Object | None) -> object:
    """The value; what has none is an object with a type, as ``dir --json`` writes it."""
    if isinstance(found, Val | ValRef):
        return json_value(found.type, kvs.bytes_of(found))  # type: ignore[attr-defined]
    if isinstance(found, Dir):
        return {"type": "directory"}
    if isinstance(found, Link):
        return {"type": "link", "target": found.target, "namespace": found.namespace}
    return None


def _when(time: float) -> str:
    return datetime.fromtimestamp(time).isoformat(timespec="milliseconds")


@click.command(cls=Command, examples="fluxmpi kvs history run.steps\nfluxmpi kvs history -c 5 --json --at -1h run")
@namespace_option
@at_option
@count_option
@json_option
@click.argument("key")
def history(namespace: str | None, at: str | None, count: int | None, as_json: bool, key: str) -> None:
    """Print each version kept that changed KEY, the newest first: VERSION TIME VALUE. With --at: those up to that one."""
    with connect() as h, about(key):
        for number, past in enumerate(h.kvs.history(key, at=at, namespace=namespace), 1):
            if as_json:
                write_json(
                    {
                        "version": past.version,
                        "time": past.snapshot.time,
                        "snapshot": str(past.snapshot),
                        "value": _json(h.kvs, past.object),
                        "deleted": past.deleted,
                        "existed": past.existed,
                    }
                )
            else:
                write_line(f"{past.version} {_when(past.snapshot.time)} {_shown(h.kvs, past.object)}")
            if number == count:
                return


@click.command(cls=Command, examples="fluxmpi kvs log -c 10\nfluxmpi kvs log --json -N work")
@namespace_option
@count_option
@json_option
def log(namespace: str | None, count: int | None, as_json: bool) -> None:
    """Print the versions that are kept, the newest first: VERSION TIME KEYS. '?' is for keys that are not remembered."""
    with connect() as h:
        for number, entry in enumerate(h.kvs.log(namespace=namespace or PRIMARY), 1):
            if as_json:
                snapshot = str(entry.snapshot)
                line = {"version": entry.version, "time": entry.time, "snapshot": snapshot, "commits": entry.commits}
                write_json({**line, "keys": entry.keys})
            else:
                write_line(f"{entry.version} {_when(entry.time)} {_keys(entry)}")
            if number == count:
                return


def _keys(entry: Version) -> str:
    if entry.keys is not None:
        return " ".join(entry.keys)
    return "?" if entry.version else "(begins)"


@click.command(
    cls=PlaceCommand,
    examples='fluxmpi kvs diff 12 15\nfluxmpi kvs diff "$(fluxmpi kvs getroot -S)" 15 run\nfluxmpi kvs diff -5min',
)
@namespace_option
@json_option
@click.argument("a", metavar="A", type=AtParam())
@click.argument("b", metavar="B", type=AtParam(), required=False)
@click.argument("key", required=False, default=ROOT_KEY)
def diff(namespace: str | None, as_json: bool, a: str, b: str | None, key: str) -> None:
    """Print what changed below KEY from A to B (the newest): '-KEY=VALUE' was there, '+KEY=VALUE' is there.

    A and B are what --at takes: a snapshot, a version, a blobref, a time.
    """
    with connect() as h:
        for each in h.kvs.diff(a, b, key, namespace=namespace):
            if as_json:
                write_json({"key": each.key, "before": _json(h.kvs, each.old), "after": _json(h.kvs, each.new)})
                continue
            for sign, found in (("-", each.old), ("+", each.new)):
                if found is not None:
                    write_line(f"{sign}{each.key}={_shown(h.kvs, found)}")


@click.command(cls=Command, examples="fluxmpi kvs retention\nfluxmpi kvs retention --count 1000 --age 3600")
@namespace_option
@json_option
@click.option("-c", "--count", type=click.IntRange(max=INTEGER_MAX), metavar="COUNT", help="Keep COUNT versions.")
@click.option(
    "-A", "--age", type=float, metavar="SECONDS", help="Keep none that was followed so long ago; 0 is no bound."
)
def retention(namespace: str | None, as_json: bool, count: int | None, age: float | None) -> None:
    """Print how many versions are kept, and for how long, after setting what is given."""
    with connect() as h:
        kept = h.kvs.retention(count=count, age_s=age, namespace=namespace or PRIMARY)
    if as_json:
        write_json({"count": kept.count, "age_s": kept.age_s})
    else:
        write_line(counted(kept.count, "version") + (f", {kept.age_s:g} s" if kept.age_s else ""))


@click.command(
    cls=PlaceCommand,
    examples="fluxmpi kvs lease \"$SNAPSHOT\" -- ./analyse\nfluxmpi kvs lease 12 -- sh -c 'fluxmpi kvs get --at 12 run.steps'",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@namespace_option
@click.argument("snapshot", type=AtParam())
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def lease(ctx: click.Context, namespace: str | None, snapshot: str, command: tuple[str, ...]) -> None:
    """Keep SNAPSHOT, a version, or what was the newest at a time, while COMMAND runs; its exit status is ours.

    It is 127 for a COMMAND that is not there, 126 for one that cannot be run, 128 + N for one that signal N ended.
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    with connect() as h, h.kvs.lease(snapshot, namespace=namespace):
        try:
            status = subprocess.run(command, check=False).returncode
        except OSError as error:
            fail(f"{command[0]} cannot be run: {error.strerror}")
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    ctx.exit(status if status >= 0 else 128 - status)


@click.command(cls=Command, examples="fluxmpi kvs gc\nfluxmpi kvs gc --status --json")
@json_option
@click.option("-s", "--status", "only", is_flag=True, help="Only tell what the last collection found.")
def gc(as_json: bool, only: bool) -> None:
    """Collect garbage now, and print what is live, kept by history and leases, and was freed. It goes on by itself, too."""
    with connect() as h:
        status = h.kvs.gc(run=not only)
    if as_json:
        write_json({name: getattr(status, name) for name in status.__struct_fields__})
        return
    for name, text in (("live", "live"), ("history", "kept by history and leases"), ("garbage", "garbage, freed")):
        blobs, size = getattr(status, f"{name}_blobs"), getattr(status, f"{name}_bytes")
        write_line(f"{text}: {counted(blobs, 'blob')}, {counted(size, 'byte')}")
    longest = f"longest slice {status.longest_slice_s * 1000:.1f} ms"
    write_line(f"collections: {status.cycles}, freed {counted(status.freed_bytes, 'byte')}; {longest}")
