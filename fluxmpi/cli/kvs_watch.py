"""``fluxmpi kvs watch``: the changes of a key, a directory, or of what matches a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fluxmpi.cli.common import (
    Command,
    about,
    connect,
    json_option,
    namespace_option,
    write_json,
    write_line,
)
from fluxmpi.cli.kvs_get import display, json_value, link_text
from fluxmpi.kvs.objects import Dir, Val, ValRef
from fluxmpi.kvs.wire import PRIMARY
from fluxmpi.message import INTEGER_MAX

if TYPE_CHECKING:
    from fluxmpi.client.kvs import Kvs
    from fluxmpi.client.watch import Change, Update


@click.command(
    cls=Command,
    examples="""
fluxmpi kvs watch run.step
fluxmpi kvs watch --json job.
fluxmpi kvs watch 'job.*.state'
fluxmpi kvs watch --since 120 --progress '**.log'
fluxmpi kvs watch -c 10 --versions .
""",
)
@namespace_option
@json_option
@click.option(
    "-R", "--recursive", is_flag=True, help="PATTERN is a directory: print what changes below. As 'KEY.' does."
)
@click.option("-G", "--no-glob", is_flag=True, help="PATTERN is a key, though it has a '*', '?' or '['.")
@click.option(
    "-s",
    "--since",
    type=click.IntRange(0, INTEGER_MAX),
    metavar="VERSION",
    help="Begin with what changed after VERSION.",
)
@click.option("--latest", is_flag=True, help="Leave versions out when the output is slow, and go on with the newest.")
@click.option("-n", "--no-initial", is_flag=True, help="Do not print what is there already.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="COUNT", help="End after COUNT changes.")
@click.option("-V", "--versions", is_flag=True, help="Print the version before each change.")
@click.option("--progress", is_flag=True, help="Print '# VERSION' when all up to there was printed, as after --since.")
@click.argument("pattern")
def watch(
    namespace: str | None,
    as_json: bool,
    recursive: bool,
    no_glob: bool,
    since: int | None,
    latest: bool,
    no_initial: bool,
    count: int | None,
    versions: bool,
    progress: bool,
    pattern: str,
) -> None:
    """Print every change of a key, of all keys below a directory written 'KEY.', or of those that match a pattern.

    In a pattern, '*', '?' and '[…]' stand for part of one component, and a component '**' for any number of them. First
    comes what is there. A line reads KEY=VALUE, or for a key that was removed, '-KEY'. With --json a line also has the
    version and the snapshot, which --at of any other command takes.
    """
    left = count
    with (
        connect() as h,
        h.kvs.watch(
            pattern,
            recursive=recursive or None,
            glob=False if no_glob else None,
            since=since,
            mode="latest" if latest else "every",
            initial=not no_initial,
            namespace=namespace or PRIMARY,
        ) as watched,
    ):
        if progress:
            watched.progress()
        for update in watched.updates():
            if progress and not update.changes:
                _print_progress(update, as_json)
            for change in update.changes:
                with about(change.key):
                    _print_change(h.kvs, change, as_json, versions)
                left = None if left is None else left - 1
                if left == 0:
                    return


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
            line["value"] = json_value(found.type, data)
        if isinstance(change.old, Val | ValRef):
            line["previous"] = json_value(change.old.type, kvs.bytes_of(change.old))
        write_json({**line, "existed": change.existed, "deleted": change.deleted}, flush=True)
        return
    prefix = f"{change.version} " if versions else ""
    if found is None:
        write_line(f"{prefix}-{change.key}", flush=True)
    elif isinstance(found, Val | ValRef):
        write_line(f"{prefix}{change.key}=".encode() + display(found.type, data), flush=True)
    elif isinstance(found, Dir):
        write_line(f"{prefix}{change.key}.", flush=True)
    else:
        write_line(f"{prefix}{change.key} -> {link_text(found.namespace, found.target)}", flush=True)
