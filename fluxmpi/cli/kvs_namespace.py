"""``fluxmpi kvs namespace``: create, remove and list namespaces. Options and output follow flux-kvs(1)."""

from __future__ import annotations

import click

from fluxmpi.cli.common import Command, Group, about, connect, json_option, write_json, write_line


@click.group(cls=Group)
def namespace() -> None:
    """Namespaces: key-value stores of their own, each with its own order of versions."""


@namespace.command(cls=Command, examples="fluxmpi kvs namespace create work\nfluxmpi kvs namespace create -r 12 copy")
@click.option("-o", "--owner", type=click.IntRange(min=0), metavar="UID", help="The owner's uid; ours, if not given.")
@click.option("-r", "--rootref", metavar="SNAPSHOT", help="Begin with this: a snapshot, a version of primary, a time.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def create(owner: int | None, rootref: str | None, names: tuple[str, ...]) -> None:
    """Make namespaces."""
    with connect() as h:
        for name in names:
            with about(name):
                h.kvs.namespaces.create(name, at=rootref, owner=owner)


@namespace.command(cls=Command, examples="fluxmpi kvs namespace remove work")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def remove(names: tuple[str, ...]) -> None:
    """Remove namespaces, with all that is in them."""
    with connect() as h:
        for name in names:
            with about(name):
                h.kvs.namespaces.remove(name)


@namespace.command("list", cls=Command, examples="fluxmpi kvs namespace list\nfluxmpi kvs namespace list --json")
@json_option
def list_(as_json: bool) -> None:
    """Print all namespaces, each with its owner's uid, as flux does."""
    with connect() as h:
        found = h.kvs.namespaces.list()
    if as_json:
        write_json([{"name": each.name, "owner": each.owner, "version": each.version} for each in found])
        return
    write_line(f"{'NAMESPACE':<36} {'OWNER':>10} {'FLAGS':>10}")
    for each in found:
        write_line(f"{each.name:<36} {each.owner:>10} 0x{0:08X}")
