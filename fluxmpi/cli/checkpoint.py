"""``fluxmpi checkpoint save | list | restore``: the store to HDF5, and back."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from fluxmpi.blobref import to_text
from fluxmpi.cli.common import CONTEXT, Group, connect, counted, json_option, write_json, write_line
from fluxmpi.kvs.wire import Progress, Restore, Restored, Save, Saved

if TYPE_CHECKING:
    from fluxmpi.client.handle import Stream

LEADER = 0


@click.group(cls=Group, context_settings=CONTEXT)
def checkpoint() -> None:
    """The whole store in one HDF5 file, that an instance of any size can go on from.

    \b
    fluxmpi start -n 4 --checkpoint run.h5 -- ./work           saved when it ends
    fluxmpi start -n 8 --checkpoint run.h5 --resume -- ./work  goes on from there
    """


@checkpoint.command(examples="fluxmpi checkpoint save\nfluxmpi checkpoint save --file before-step-12.h5")
@click.option("-f", "--file", "path", metavar="FILE", help="Where to.  [default: the instance's --checkpoint]")
@json_option
def save(path: str | None, as_json: bool) -> None:
    """Save the store, as it is now; commits go on meanwhile. Rank 0 writes the file; older ones are kept beside it."""
    with connect() as h:
        body = Save(os.path.abspath(path) if path else None)
        saved = _follow(h.stream("checkpoint.save", body, target=LEADER, reply=Progress, last=Saved), "saving")
    if as_json:
        write_json({"path": saved.path, "blobs": saved.blobs, "bytes": saved.bytes, "roots": _roots(saved.roots)})
        return
    write_line(f"{saved.path}: {counted(saved.blobs, 'blob')}, {counted(saved.bytes, 'byte')}")
    _print_roots(saved.roots)


@checkpoint.command("list", examples="fluxmpi checkpoint list run.h5\nfluxmpi checkpoint list --verify --json run.h5")
@click.option("--verify", is_flag=True, help="Read every blob and check its digest.")
@json_option
@click.argument("file")
@click.pass_context
def list_(ctx: click.Context, verify: bool, as_json: bool, file: str) -> None:
    """Show what is in FILE and in the older ones beside it, newest first; needs no instance.

    The exit status is 1 when FILE itself is damaged.
    """
    from fluxmpi.drivers.checkpoint import list_generations

    found = list_generations(file, verify=verify)
    for item in found:
        roots = [(root.namespace, root.version, root.ref, root.time) for root in item.roots]
        if as_json:
            line = {
                "path": item.path,
                "state": item.state,
                "damage": item.damage,
                "created": item.created,
                "instance": item.instance,
                "hash": item.algorithm,
                "file_bytes": item.file_bytes,
                "blobs": item.blob_count,
                "bytes": item.byte_count,
                "roots": _roots(roots),
            }
            write_json(line)
        elif item.damage:
            write_line(f"{item.path}: damaged: {item.damage}")
        else:
            saved = _clock(item.created)
            write_line(
                f"{item.path}: saved {saved} by {item.instance}, "
                f"{counted(item.blob_count, 'blob')}, {counted(item.byte_count, 'byte')}"
            )
            _print_roots(roots)
    ctx.exit(1 if found[0].damage else 0)


@checkpoint.command(examples="fluxmpi checkpoint restore run.h5")
@json_option
@click.argument("file")
def restore(as_json: bool, file: str) -> None:
    """Put back what FILE holds: each of its namespaces gets a new version, with the saved root.

    Nothing is changed unless the whole file is good. What was committed since stays readable by its version.
    """
    with connect() as h:
        body = Restore(os.path.abspath(file))
        restored = _follow(
            h.stream("checkpoint.restore", body, target=LEADER, reply=Progress, last=Restored), "restoring"
        )
    if as_json:
        write_json({"path": restored.path, "blobs": restored.blobs, "roots": _roots(restored.roots)})
        return
    write_line(f"{restored.path}: {counted(restored.blobs, 'blob')}")
    _print_roots(restored.roots)


def _follow(stream: Stream, what: str) -> Any:
    """Show progress on a terminal; the last answer."""
    if not sys.stderr.isatty():
        for _ in stream:
            pass
        return stream.last
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        for progress in stream:
            bar.update(task, completed=progress.done, total=progress.total)
    return stream.last


def _roots(roots: list[tuple[str, int, bytes, float]]) -> list[dict[str, Any]]:
    names = ("namespace", "version", "root", "time")
    return [
        dict(zip(names, (namespace, version, to_text(ref), when), strict=True))
        for namespace, version, ref, when in roots
    ]


def _print_roots(roots: list[tuple[str, int, bytes, float]]) -> None:
    for namespace, version, ref, when in roots:
        write_line(f"  {namespace} version {version} of {_clock(when)}  {to_text(ref)}")


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
