"""``fluxmpi content load | store | dropcache | stats``: blobs by their digest."""

from __future__ import annotations

import sys

import click

from fluxmpi.blobref import BLOB_BYTES_MAX, from_text, to_text
from fluxmpi.cli.common import (
    CONTEXT,
    Group,
    connect,
    json_option,
    plural,
    rank_option,
    write,
    write_json,
    write_line,
    write_statistics,
)


@click.group(cls=Group, context_settings=CONTEXT)
def content() -> None:
    """Load and store blobs: immutable bytes, at most 1 MiB, named by their digest.

    Values and directories of the KVS are stored as blobs.
    """


@content.command(examples="fluxmpi content store < data\nfluxmpi content load $(fluxmpi content store < data) > copy")
@click.option(
    "-c",
    "--chunksize",
    type=click.IntRange(1, BLOB_BYTES_MAX),
    default=BLOB_BYTES_MAX,
    show_default=True,
    metavar="BYTES",
    help="Split stdin into blobs of this size.",
)
def store(chunksize: int) -> None:
    """Store stdin as blobs, and print their blobrefs in order, one per line."""
    data = memoryview(sys.stdin.buffer.read())
    chunks = (bytes(data[begin : begin + chunksize]) for begin in range(0, len(data) or 1, chunksize))
    with connect() as h:
        for ref in h.content.store_all(chunks):
            write_line(to_text(ref))


@content.command(examples="fluxmpi content load sha256-…\nfluxmpi content load < refs > data")
@click.argument("blobrefs", metavar="[BLOBREF...]", nargs=-1)
def load(blobrefs: tuple[str, ...]) -> None:
    """Write the blobs named BLOBREF to stdout, in order. Without BLOBREF, read the names from stdin."""
    refs = [from_text(text) for text in blobrefs or sys.stdin.read().split()]
    with connect() as h:
        for blob in h.content.load_all(refs):
            write(blob)


@content.command(examples="fluxmpi content dropcache\nfluxmpi content dropcache -r 2")
@rank_option
@json_option
def dropcache(rank: int | None, as_json: bool) -> None:
    """Drop the cached blobs of a broker, and print how many. Rank 0 keeps all: it holds the store."""
    with connect() as h:
        blobs, size = h.content.dropcache(h.rank if rank is None else rank)
    if as_json:
        write_json({"blobs": blobs, "bytes": size})
    else:
        write_line(f"{plural(blobs, 'blob')}, {plural(size, 'byte')}")


@content.command(examples="fluxmpi content stats -r 0 --json")
@rank_option
@json_option
def stats(rank: int | None, as_json: bool) -> None:
    """Print the statistics of a broker's cache of blobs: NAME NUMBER."""
    with connect() as h:
        numbers = h.rpc("stats.get", target=h.rank if rank is None else rank)["content"]
    if as_json:
        write_json(numbers)
    else:
        write_statistics(numbers)
