"""``fluxmpi kvs namespace create | remove | list``. Options and output follow flux-kvs(1)."""

from __future__ import annotations

from contextlib import suppress

import click

from fluxmpi.cli.common import Command, Group, connect, error_context, json_option, write_json, write_line
from fluxmpi.errors import NoSuchNamespace


@click.group(cls=Group)
def namespace() -> None:
    """Create, remove and list namespaces: independent key spaces, each with its own versions."""


@namespace.command(cls=Command, examples="fluxmpi kvs namespace create work\nfluxmpi kvs namespace create -r 12 copy")
@click.option("-o", "--owner", type=click.IntRange(min=0), metavar="UID", help="The owner's uid.  [default: yours]")
@click.option(
    "-r", "--rootref", metavar="SNAPSHOT", help="Start with this root: a snapshot, a version of primary, or a time."
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def create(owner: int | None, rootref: str | None, names: tuple[str, ...]) -> None:
    """Create namespaces, empty or with the contents of a snapshot."""
    with connect() as h:
        for name in names:
            with error_context(name):
                h.kvs.namespaces.create(name, at=rootref, owner=owner)


@namespace.command(cls=Command, examples="fluxmpi kvs namespace remove work")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Remove namespaces and all their keys. Watches and waiting requests on them end with an error.

    A NAME that does not exist is no error.
    """
    with connect() as h:
        for name in names:
            with error_context(name), suppress(NoSuchNamespace):
                h.kvs.namespaces.remove(name)


@namespace.command("list", cls=Command, examples="fluxmpi kvs namespace list\nfluxmpi kvs namespace list --json")
@json_option
def list_(as_json: bool) -> None:
    """Print all namespaces with their owner's uid, in the format of flux-kvs."""
    with connect() as h:
        found = h.kvs.namespaces.list()
    if as_json:
        write_json([{"name": each.name, "owner": each.owner, "version": each.version} for each in found])
        return
    write_line(f"{'NAMESPACE':<36} {'OWNER':>10} {'FLAGS':>10}")
    for each in found:
        write_line(f"{each.name:<36} {each.owner:>10} 0x{0:08X}")
