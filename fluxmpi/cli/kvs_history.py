"""``fluxmpi kvs history | log | diff | retention | lease | gc``: past versions, and how long they are retained."""

from __future__ import annotations

import subprocess
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import click

from fluxmpi.cli.common import (
    AtParam,
    Command,
    Duration,
    Size,
    TimeArgumentCommand,
    at_option,
    connect,
    count_option,
    error_context,
    json_option,
    kvs_of,
    namespace_option,
    number_text,
    plural,
    print_error,
    size_text,
    write_json,
    write_line,
)
from fluxmpi.cli.render import object_json, object_text
from fluxmpi.kvs.objects import ROOT_KEY
from fluxmpi.kvs.wire import EVERY_KEY
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.kvs.history import VersionInfo

NOT_RUNNABLE, NOT_FOUND = 126, 127
"""Exit statuses of a command that could not be run, as in a shell."""


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time).isoformat(timespec="milliseconds")


@click.command(cls=Command, examples="fluxmpi kvs history run.steps\nfluxmpi kvs history -c 5 --json --at -1h run")
@namespace_option
@at_option
@count_option
@json_option
@click.argument("key")
def history(namespace: str | None, at: str | None, count: int | None, as_json: bool, key: str) -> None:
    """Print the retained versions that changed KEY, newest first: VERSION TIME VALUE. --at: start at that version.

    Values that 'kvs retention --values' retains follow, with the versions that had them.
    """
    with connect() as h, error_context(key):
        for number, past in enumerate(kvs_of(h, namespace).history(key, at=at), 1):
            if as_json:
                write_json(
                    {
                        "version": past.version,
                        "time": past.snapshot.time,
                        "snapshot": str(past.snapshot),
                        "value": object_json(h.kvs, past.object),
                        "deleted": past.deleted,
                        "existed": past.existed,
                    }
                )
            else:
                write_line(f"{past.version} {_clock(past.snapshot.time)} {object_text(h.kvs, past.object)}")
            if number == count:
                return


@click.command(cls=Command, examples="fluxmpi kvs log -c 10\nfluxmpi kvs log --json -N work")
@namespace_option
@count_option
@json_option
def log(namespace: str | None, count: int | None, as_json: bool) -> None:
    """Print the retained versions, newest first: VERSION TIME KEYS. '?' if the changed keys are no longer known."""
    with connect() as h:
        for number, entry in enumerate(kvs_of(h, namespace).log(), 1):
            if as_json:
                snapshot = str(entry.snapshot)
                line = {"version": entry.version, "time": entry.time, "snapshot": snapshot, "commits": entry.commits}
                write_json({**line, "keys": entry.keys})
            else:
                write_line(f"{entry.version} {_clock(entry.time)} {_keys(entry)}")
            if number == count:
                return


def _keys(entry: VersionInfo) -> str:
    if entry.keys is not None:
        return " ".join(entry.keys)
    return "?" if entry.version else "(created)"


@click.command(
    cls=TimeArgumentCommand,
    examples='fluxmpi kvs diff 12 15\nfluxmpi kvs diff "$(fluxmpi kvs getroot -S)" 15 run\nfluxmpi kvs diff -5min',
)
@namespace_option
@json_option
@click.argument("a", metavar="A", type=AtParam())
@click.argument("b", metavar="B", type=AtParam(), required=False)
@click.argument("key", required=False, default=ROOT_KEY)
def diff(namespace: str | None, as_json: bool, a: str, b: str | None, key: str) -> None:
    """Print the changes below KEY from version A to B: '-KEY=VALUE' has the value in A, '+KEY=VALUE' that in B.

    A and B are versions as --at takes them: a number, a snapshot, a blobref or a time.  [default of B: the newest]
    """
    with connect() as h:
        for each in kvs_of(h, namespace).diff(a, b, key):
            if as_json:
                write_json(
                    {"key": each.key, "before": object_json(h.kvs, each.old), "after": object_json(h.kvs, each.new)}
                )
                continue
            for sign, found in (("-", each.old), ("+", each.new)):
                if found is not None:
                    write_line(f"{sign}{each.key}={object_text(h.kvs, found)}")


@click.command(
    cls=Command,
    examples="fluxmpi kvs retention                           print it\n"
    "fluxmpi kvs retention --count 1000 --age 1h     versions, and for how long\n"
    "fluxmpi kvs retention --bytes 64M -N work       memory for the past of namespace work\n"
    "fluxmpi kvs retention --count 1                 keep no past\n"
    "fluxmpi kvs retention --values 20 --key 'job.*.state'    the last 20 values of each such key\n"
    "fluxmpi kvs retention --values 0 --key 'job.*.state'     remove that rule",
)
@namespace_option
@json_option
@click.option("-c", "--count", type=click.IntRange(max=INTEGER_MAX), metavar="N", help="Retain N versions.")
@click.option(
    "-A",
    "--age",
    type=Duration(),
    metavar="DURATION",
    help="Compact a version DURATION (seconds, or 90s, 10m, 1h) after the next one was committed; 0 is no limit.",
)
@click.option(
    "-b",
    "--bytes",
    "size",
    type=Size(),
    metavar="SIZE",
    help="Retain older versions while what only they hold has at most SIZE (bytes, or 512K, 64M, 1G).",
)
@click.option(
    "-V",
    "--values",
    type=click.IntRange(0, INTEGER_MAX),
    metavar="N",
    help="Retain the last N values of each key that --key matches, beyond their versions; 0 removes the rule.",
)
@click.option(
    "--full",
    type=click.Choice(["end", "wait"]),
    help="When watches lag too far: end them, or let commits wait.  [default: end]",
)
@click.option("-k", "--key", metavar="PATTERN", help="With --values: a key, 'dir.' or a pattern.  [default: every key]")
def retention(
    namespace: str | None,
    as_json: bool,
    count: int | None,
    age: float | None,
    size: int | None,
    values: int | None,
    key: str | None,
    full: Literal["end", "wait"] | None,
) -> None:
    """Print how many versions are retained, how long, and in how much memory. With options, set that first.

    The oldest versions go first, and the newest one is always retained. An older version is compacted: it cannot be read
    any more, unless a lease retains it. SIZE is enforced by garbage collections: see 'fluxmpi kvs gc'.

    The values that --values retains can still be read when their versions have gone, key by key, with 'kvs history KEY'
    and 'kvs get --at VERSION KEY'.
    """
    if key is not None and values is None:
        raise click.UsageError("--key needs --values: how many values of each matching key to retain.")
    with connect() as h:
        kvs = kvs_of(h, namespace)
        kept = kvs.retention(count=count, age_s=age, bytes=size, values=values, key=key or EVERY_KEY, full=full)
    if as_json:
        rules = [{"key": rule.key, "values": rule.values} for rule in kept.values]
        write_json(
            {"count": kept.count, "age_s": kept.age_s, "bytes": kept.bytes, "values": rules, "full": kept.full or "end"}
        )
        return
    age_text = f", {number_text(kept.age_s)} s" if kept.age_s else ""
    write_line(f"{plural(kept.count, 'version')}{age_text}, {size_text(kept.bytes or 0)}")
    if kept.full == "wait":
        write_line("commits wait for watches that lag too far")
    for rule in kept.values:
        write_line(f"{rule.key}: {plural(rule.values, 'value')} of each key")


@click.command(
    cls=TimeArgumentCommand,
    examples='fluxmpi kvs lease "$SNAPSHOT" -- ./analyse\n'
    "fluxmpi kvs lease 12 -- sh -c 'fluxmpi kvs get --at 12 run.steps'",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@namespace_option
@click.argument("snapshot", type=AtParam())
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def lease(ctx: click.Context, namespace: str | None, snapshot: str, command: tuple[str, ...]) -> None:
    """Retain a version while COMMAND runs: SNAPSHOT, a version number, or the newest version at a time.

    \b
    Exit status: that of COMMAND, or
      128 + N   COMMAND was ended by signal N
      127       COMMAND was not found
      126       COMMAND could not be executed
    """
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("Missing argument 'COMMAND...'.")
    with connect() as h, kvs_of(h, namespace).lease(snapshot):
        try:
            status = subprocess.run(command, check=False).returncode
        except OSError as error:
            print_error(f"cannot run {command[0]}: {error.strerror}")
            status = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE
    ctx.exit(status if status >= 0 else 128 - status)


@click.command(cls=Command, examples="fluxmpi kvs gc\nfluxmpi kvs gc --status --json")
@json_option
@click.option("-s", "--status", "only", is_flag=True, help="Print the result of the last collection; do not start one.")
def gc(as_json: bool, only: bool) -> None:
    """Collect garbage now, and print what is live, what history and leases retain, and what was freed.

    The instance also collects by itself; this command only starts a collection earlier.
    """
    with connect() as h:
        status = h.kvs.gc(run=not only)
    if as_json:
        write_json({name: getattr(status, name) for name in status.__struct_fields__})
        return
    kinds = (
        ("live", "live"),
        ("history", "retained by history"),
        ("leased", "retained by leases"),
        ("garbage", "garbage, freed"),
    )
    for name, text in kinds:
        blobs, size = getattr(status, f"{name}_blobs"), getattr(status, f"{name}_bytes")
        write_line(f"{text}: {plural(blobs, 'blob')}, {plural(size, 'byte')}")
    limit = f" of {plural(status.bytes_max, 'byte')}" if status.bytes_max else ""
    write_line(f"store: {plural(status.blobs, 'blob')}, {plural(status.bytes, 'byte')}{limit}")
    longest = f"longest slice {status.longest_slice_s * 1000:.1f} ms"
    write_line(f"collections: {status.cycles}, freed {plural(status.freed_bytes, 'byte')}; {longest}")
