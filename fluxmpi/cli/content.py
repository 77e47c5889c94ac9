"""``fluxmpi content load | store | dropcache | stats``: blobs by digest."""

from __future__ import annotations

import sys

import click

from fluxmpi.blobref import BLOB_BYTES_MAX, from_text, to_text
from fluxmpi.cli.common import CONTEXT, Group, connect, json_option, rank_option, write, write_json, write_line


@click.group(cls=Group, context_settings=CONTEXT)
def content() -> None:
    """Blobs of at most 1 MiB, named by their digest; what values and directories are made of."""


@content.command(examples="fluxmpi content store < data\nfluxmpi content load $(fluxmpi content store < data) > copy")
@click.option(
    "-c",
    "--chunksize",
    type=click.IntRange(1, BLOB_BYTES_MAX),
    default=BLOB_BYTES_MAX,
    show_default=True,
    metavar="BYTES",
    help="Cut stdin into blobs of this size.",
)
def store(chunksize: int) -> None:
    """Store stdin as blobs; print their blobrefs, a line each, in order."""
    data = memoryview(sys.stdin.buffer.read())
    chunks = (bytes(data[begin : begin + chunksize]) for begin in range(0, len(data) or 1, chunksize))
    with connect() as h:
        for ref in h.content.store_all(chunks):
            write_line(to_text(ref))


@content.command(examples="fluxmpi content load sha256-…\nfluxmpi content load < refs > data")
@click.argument("blobrefs", metavar="[BLOBREF...]", nargs=-1)
def load(blobrefs: tuple[str, ...]) -> None:
    """Write the blobs with these BLOBREFs to stdout, one after the other; without any, those that stdin lists."""
    refs = [from_text(text) for text in blobrefs or sys.stdin.read().split()]
    with connect() as h:
        for blob in h.content.load_all(refs):
            write(blob)


@content.command(examples="fluxmpi content dropcache -r 2")
@rank_option
@json_option
def dropcache(rank: int | None, as_json: bool) -> None:
    """Make a broker give up its cache; print what it gave up. Rank 0 is the store, and keeps what it has."""
    with connect() as h:
        blobs, size = h.content.dropcache(h.rank if rank is None else rank)
    if as_json:
        write_json({"blobs": blobs, "bytes": size})
    else:
        write_line(f"{blobs} blobs, {size} bytes")


@content.command(examples="fluxmpi content stats -r 0 --json")
@rank_option
@json_option
def stats(rank: int | None, as_json: bool) -> None:
    """Print what a broker counts of its cache."""
    with connect() as h:
        numbers = h.rpc("stats.get", target=h.rank if rank is None else rank)["content"]
    if as_json:
        write_json(numbers)
        return
    for name, value in numbers.items():
        write_line(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
