"""``fluxmpi checkpoint save | list | restore``: save the store to an HDF5 file, and restore it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from fluxmpi.blobref import to_text
from fluxmpi.cli.common import CONTEXT, LEADER, Group, connect, json_option, plural, write_json, write_line
from fluxmpi.cli.progress import show_progress
from fluxmpi.kvs.wire import Progress, Restore, Restored, Save, Saved

if TYPE_CHECKING:
    from fluxmpi.client.future import Stream


@click.group(cls=Group, context_settings=CONTEXT)
def checkpoint() -> None:
    """Save the store to an HDF5 file, list the contents of one, restore from one.

    A checkpoint does not depend on the number of brokers: an instance of any size can start from it.

    \b
    Examples:
      fluxmpi start -n 4 --checkpoint run.h5 -- ./work             save when the instance ends
      fluxmpi start -n 8 --checkpoint run.h5 --resume -- ./work    start from the saved store
    """


@checkpoint.command(examples="fluxmpi checkpoint save\nfluxmpi checkpoint save --file before-step-12.h5")
@click.option(
    "-f", "--file", "path", metavar="FILE", help="The file to write.  [default: the --checkpoint of 'fluxmpi start']"
)
@json_option
def save(path: str | None, as_json: bool) -> None:
    """Save the store as it is now, without blocking commits.

    Rank 0 writes the file, so FILE must be on a file system of its node. Older files are kept beside it.
    """
    with connect() as h:
        body = Save(os.path.abspath(path) if path else None)
        saved = _follow(h.stream("checkpoint.save", body, target=LEADER, reply=Progress, last=Saved), "saving")
    if as_json:
        write_json({"path": saved.path, "blobs": saved.blobs, "bytes": saved.bytes, "roots": _roots(saved.roots)})
        return
    write_line(f"{saved.path}: {plural(saved.blobs, 'blob')}, {plural(saved.bytes, 'byte')}")
    _print_roots(saved.roots)


@checkpoint.command("list", examples="fluxmpi checkpoint list run.h5\nfluxmpi checkpoint list --verify --json run.h5")
@click.option("--verify", is_flag=True, help="Read every blob and verify its digest.")
@json_option
@click.argument("file")
@click.pass_context
def list_(ctx: click.Context, verify: bool, as_json: bool, file: str) -> None:
    """List the contents of FILE and of the older files beside it, newest first. No instance is needed.

    Exit status: 1 if FILE is damaged.
    """
    from fluxmpi.drivers.checkpoint import list_generations, saved_namespaces

    found = list_generations(file, verify=verify)
    for item in found:
        roots = [(root.namespace, root.version, root.ref, root.time) for root in item.roots]
        keys = [saved.keys for saved in saved_namespaces(item.path, item.roots)]
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
                "roots": [root | {"keys": count} for root, count in zip(_roots(roots), keys, strict=True)],
            }
            write_json(line)
        elif item.damage:
            write_line(f"{item.path}: damaged: {item.damage}")
        else:
            saved = _clock(item.created)
            write_line(
                f"{item.path}: saved {saved} by {item.instance}, "
                f"{plural(item.blob_count, 'blob')}, {plural(item.byte_count, 'byte')}"
            )
            _print_roots(roots, keys)
    ctx.exit(1 if found[0].damage else 0)


@checkpoint.command(examples="fluxmpi checkpoint restore run.h5")
@json_option
@click.argument("file")
def restore(as_json: bool, file: str) -> None:
    """Restore the namespaces in FILE: each gets a new version, with the saved root.

    The whole file is verified first; if it is damaged, nothing changes. Versions that were committed since it was saved
    can still be read by their number.
    """
    with connect() as h:
        body = Restore(os.path.abspath(file))
        restored = _follow(
            h.stream("checkpoint.restore", body, target=LEADER, reply=Progress, last=Restored), "restoring"
        )
    if as_json:
        write_json({"path": restored.path, "blobs": restored.blobs, "roots": _roots(restored.roots)})
        return
    write_line(f"{restored.path}: {plural(restored.blobs, 'blob')}")
    _print_roots(restored.roots)


def _follow(stream: Stream[Progress], what: str) -> Any:
    """Show the progress of a stream on a terminal, and return its last response."""
    with show_progress(what) as report:
        for progress in stream:
            if report is not None:
                report(progress.done, progress.total)
    return stream.last


def _roots(roots: list[tuple[str, int, bytes, float]]) -> list[dict[str, Any]]:
    names = ("namespace", "version", "root", "time")
    return [
        dict(zip(names, (namespace, version, to_text(ref), when), strict=True))
        for namespace, version, ref, when in roots
    ]


def _print_roots(roots: list[tuple[str, int, bytes, float]], keys: Sequence[int] = ()) -> None:
    """Print a line for each root; ``keys``: their numbers of keys, -1 where the file does not tell."""
    for (namespace, version, ref, when), count in zip(roots, keys or [-1] * len(roots), strict=True):
        counted = f", {plural(count, 'key')}" if count >= 0 else ""
        write_line(f"  {namespace} version {version} of {_clock(when)}{counted}  {to_text(ref)}")


def _clock(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
