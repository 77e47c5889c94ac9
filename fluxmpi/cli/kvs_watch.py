"""``fluxmpi kvs watch``: print the changes of a key, of a directory, or of the keys that match a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fluxmpi.cli.common import (
    Command,
    connect,
    error_context,
    json_option,
    kvs_of,
    namespace_option,
    write_json,
    write_line,
)
from fluxmpi.cli.render import link_text, value_json, value_text
from fluxmpi.kvs.objects import SEPARATOR, Dir, Val, ValRef
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.kvs.kvs import Kvs
    from fluxmpi.client.kvs.watch import Change, Update, Watch, WatchMode


@click.command(
    cls=Command,
    examples="""
fluxmpi kvs watch run.step
fluxmpi kvs watch --json job.
fluxmpi kvs watch 'job.*.state'
fluxmpi kvs watch --after 120 --progress '**.log'
fluxmpi kvs watch -c 10 --versions .
""",
)
@namespace_option
@json_option
@click.option(
    "-R", "--recursive", is_flag=True, help="PATTERN is a directory: print all changes below it, as 'KEY.' does."
)
@click.option("-G", "--no-glob", is_flag=True, help="PATTERN is a key, even if it contains '*', '?' or '['.")
@click.option(
    "-s",
    "--after",
    type=click.IntRange(0, INTEGER_MAX),
    metavar="VERSION",
    help="Start with the changes after VERSION, which must be retained.",
)
@click.option("--latest", is_flag=True, help="When the output is slow, skip versions and continue with the newest.")
@click.option("-n", "--no-initial", is_flag=True, help="Do not print the current values first.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Exit after N changes.")
@click.option("-V", "--versions", is_flag=True, help="Prefix each change with its version.")
@click.option(
    "--progress",
    is_flag=True,
    help="Print '# VERSION' when all changes up to VERSION were printed; --after can continue there.",
)
@click.argument("pattern")
def watch(
    namespace: str | None,
    as_json: bool,
    recursive: bool,
    no_glob: bool,
    after: int | None,
    latest: bool,
    no_initial: bool,
    count: int | None,
    versions: bool,
    progress: bool,
    pattern: str,
) -> None:
    """Print every change of a key, of all keys below a directory ('KEY.'), or of all keys that match a pattern.

    In a pattern, '*', '?' and '[…]' match part of one name, and the name '**' matches any number of names.

    The current values are printed first, then each change: KEY=VALUE, or -KEY when the key was removed. --json adds the
    version and the snapshot of each change, for --at of other commands.

    Exit status: 0 after --count changes, 130 after Ctrl-C, 1 if the instance ended or --after was compacted.
    """
    remaining = count
    with (
        connect(streaming=True) as h,
        _open(kvs_of(h, namespace), pattern, recursive, no_glob, after, latest, not no_initial) as watched,
    ):
        if progress:
            watched.progress()
        for update in watched.updates():
            if progress and not update.changes:
                _print_progress(update, as_json)
            for change in update.changes:
                with error_context(change.key):
                    _print_change(h.kvs, change, as_json, versions)
                remaining = None if remaining is None else remaining - 1
                if remaining == 0:
                    return


def _open(
    kvs: Kvs, pattern: str, recursive: bool, no_glob: bool, after: int | None, latest: bool, initial: bool
) -> Watch:
    mode: WatchMode = "latest" if latest else "every"
    if recursive or no_glob:
        below = recursive or pattern.endswith(SEPARATOR)
        return kvs.watch_key(pattern, recursive=below, after=after, mode=mode, initial=initial)
    return kvs.watch(pattern, after=after, mode=mode, initial=initial)


def _print_progress(update: Update, as_json: bool) -> None:
    if as_json:
        write_json({"version": update.version, "time": update.time, "snapshot": str(update.snapshot)}, flush=True)
    else:
        write_line(f"# {update.version}", flush=True)


def _print_change(kvs: Kvs, change: Change, as_json: bool, versions: bool) -> None:
    found = change.object
    data = kvs.bytes_of(found) if isinstance(found, Val | ValRef) else b""
    if as_json:
        line = {"key": change.key, "version": change.version, "time": change.time, "snapshot": str(change.snapshot)}
        if isinstance(found, Val | ValRef):
            line["value"] = value_json(found.type, data)
        if isinstance(change.old, Val | ValRef):
            line["previous"] = value_json(change.old.type, kvs.bytes_of(change.old))
        write_json({**line, "existed": change.existed, "deleted": change.deleted}, flush=True)
        return
    prefix = f"{change.version} " if versions else ""
    if found is None:
        write_line(f"{prefix}-{change.key}", flush=True)
    elif isinstance(found, Val | ValRef):
        write_line(f"{prefix}{change.key}=".encode() + value_text(found.type, data), flush=True)
    elif isinstance(found, Dir):
        write_line(f"{prefix}{change.key}.", flush=True)
    else:
        write_line(f"{prefix}{change.key} -> {link_text(found)}", flush=True)
