"""``fluxmpi kvs``: the table of its commands, and the small ones. Options and output follow flux-kvs(1)."""

from __future__ import annotations

import click

from fluxmpi.cli.common import (
    CONTEXT,
    AtParam,
    Command,
    LazyGroup,
    connect,
    duration_option,
    json_option,
    kvs_of,
    namespace_option,
    rank_option,
    write_json,
    write_line,
    write_statistics,
)
from fluxmpi.errors import RequestTimeout
from fluxmpi.message import INTEGER_MAX

COMMANDS = {
    "get": ("fluxmpi.cli.kvs_get:get", "Print the value stored under a key."),
    "put": ("fluxmpi.cli.kvs_put:put", "Store values, in one commit."),
    "ls": ("fluxmpi.cli.kvs_list:ls", "List the names in a directory."),
    "dir": ("fluxmpi.cli.kvs_list:dir_", "List the keys and values in a directory."),
    "mkdir": ("fluxmpi.cli.kvs_put:mkdir", "Create empty directories."),
    "unlink": ("fluxmpi.cli.kvs_put:unlink", "Remove keys."),
    "link": ("fluxmpi.cli.kvs_put:link", "Create a symbolic link."),
    "readlink": ("fluxmpi.cli.kvs_get:readlink", "Print the targets of links."),
    "copy": ("fluxmpi.cli.kvs_put:copy", "Copy a key or a whole directory."),
    "move": ("fluxmpi.cli.kvs_put:move", "Move a key or a whole directory."),
    "txn": ("fluxmpi.cli.kvs_txn:txn", "Apply a transaction: guards, operations, else."),
    "add": ("fluxmpi.cli.kvs_txn:add", "Add to an integer."),
    "sync": ("fluxmpi.cli.kvs_put:sync", "Save everything that was committed to disk."),
    "eventlog": ("fluxmpi.cli.kvs_eventlog:eventlog", "Append to a log of events, print it, wait for an event."),
    "watch": ("fluxmpi.cli.kvs_watch:watch", "Print every change of a key, a directory or a pattern."),
    "version": ("fluxmpi.cli.kvs:version", "Print the current version."),
    "wait": ("fluxmpi.cli.kvs:wait", "Wait for a version."),
    "getroot": ("fluxmpi.cli.kvs:getroot", "Print the current root."),
    "history": ("fluxmpi.cli.kvs_history:history", "Print the versions that changed a key."),
    "log": ("fluxmpi.cli.kvs_history:log", "Print the retained versions."),
    "diff": ("fluxmpi.cli.kvs_history:diff", "Print the changes between two versions."),
    "retention": (
        "fluxmpi.cli.kvs_history:retention",
        "Print or set how many versions are retained.",
    ),
    "lease": ("fluxmpi.cli.kvs_history:lease", "Retain a version while a command runs."),
    "namespace": ("fluxmpi.cli.kvs_namespace:namespace", "Create, remove and list namespaces."),
    "gc": ("fluxmpi.cli.kvs_history:gc", "Collect garbage now, and print statistics."),
    "dropcache": ("fluxmpi.cli.kvs:dropcache", "Drop cached blobs that can be loaded again."),
    "stats": ("fluxmpi.cli.kvs:stats", "Print the statistics of the KVS and its cache."),
}

SECTIONS = {
    "Reading and writing": (
        "get",
        "put",
        "ls",
        "dir",
        "mkdir",
        "unlink",
        "link",
        "readlink",
        "copy",
        "move",
        "txn",
        "add",
        "sync",
    ),
    "Waiting": ("watch", "wait", "eventlog"),
    "Versions": ("version", "getroot", "history", "log", "diff", "retention", "lease"),
    "Administration": ("namespace", "gc", "dropcache", "stats"),
}


@click.group(cls=LazyGroup, table=COMMANDS, sections=SECTIONS, context_settings=CONTEXT)
def kvs() -> None:
    """Use the key-value store: versioned, and shared by all nodes. A key is a path of names, separated by '.'.

    \b
    Examples:
      fluxmpi kvs put run.steps=100 run.name=demo
      fluxmpi kvs get run.steps
      fluxmpi kvs ls -F run
      fluxmpi kvs watch run.
    """


@click.command(cls=Command, examples="fluxmpi kvs version\nfluxmpi kvs version -N work")
@namespace_option
def version(namespace: str | None) -> None:
    """Print the newest version that this node has. Versions count up from 0."""
    with connect() as h:
        write_line(str(kvs_of(h, namespace).version()))


@click.command(cls=Command, examples="fluxmpi kvs wait 12\nfluxmpi kvs wait -t 5 12")
@namespace_option
@duration_option
@click.argument("version", type=click.IntRange(0, INTEGER_MAX))
def wait(namespace: str | None, timeout: float | None, version: int) -> None:
    """Wait until this node has VERSION or a newer one, so that it can be read here.

    Exit status: 1 if --timeout ran out.
    """
    with connect() as h:
        try:
            kvs_of(h, namespace).wait_version(version, timeout=timeout)
        except RequestTimeout:
            newest = kvs_of(h, namespace).version()
            raise RequestTimeout(
                f"version {version} was not reached in {timeout:g} s; the newest is {newest}"
            ) from None


@click.command(
    cls=Command, examples='fluxmpi kvs getroot -s\nfluxmpi kvs get --at "$(fluxmpi kvs getroot -S)" run.steps'
)
@namespace_option
@click.option("-s", "--sequence", "form", flag_value="sequence", help="Print the version number.")
@click.option("-o", "--owner", "form", flag_value="owner", help="Print the owner's uid.")
@click.option("-b", "--blobref", "form", flag_value="blobref", help="Print the root directory's blobref.")
@click.option("-S", "--snapshot", "form", flag_value="snapshot", help="Print a snapshot: NS@VERSION:DIGITS.")
@click.option("-f", "--fresh", is_flag=True, help="Read the newest version of rank 0 first.")
@click.option(
    "-a", "--at", type=AtParam(), metavar="VERSION", help="The root of this version, as 'kvs get --at' takes it."
)
@click.option(
    "-T",
    "--time",
    metavar="TIME",
    help="The newest root at this time: -5min, 2026-01-31T12:00, or @SECONDS (since 1970).",
)
def getroot(namespace: str | None, form: str | None, fresh: bool, at: str | None, time: str | None) -> None:
    """Print the current root directory as a treeobj, or in another form.

    Every form except -o can be given to --at of other commands.
    """
    from fluxmpi.client.treeobj import to_treeobj
    from fluxmpi.kvs.objects import Dir

    with connect() as h:
        newest = at is None and time is None
        root = kvs_of(h, namespace).snapshot(at, time=time, fresh=fresh and newest)
        if form == "owner":
            owner = next(each.owner for each in h.kvs.namespaces.list() if each.name == root.namespace)
    match form:
        case "sequence":
            text = str(root.version)
        case "owner":
            text = str(owner)
        case "blobref":
            text = root.root
        case "snapshot":
            text = str(root)
        case _:
            text = to_treeobj(Dir(root.ref))
    write_line(text)


@click.command(cls=Command, examples="fluxmpi kvs dropcache\nfluxmpi kvs dropcache --all")
@click.option("-a", "--all", "all_", is_flag=True, help="Drop the caches of all brokers.")
@rank_option
def dropcache(all_: bool, rank: int | None) -> None:
    """Drop the cached blobs and nodes of a broker. No data is lost: rank 0 holds the store."""
    with connect() as h:
        ranks = range(h.size) if all_ else [h.rank if rank is None else rank]
        for each in ranks:
            h.content.dropcache(each)


@click.command(cls=Command, examples="fluxmpi kvs stats\nfluxmpi kvs stats -r 0 --json")
@rank_option
@json_option
def stats(rank: int | None, as_json: bool) -> None:
    """Print a broker's statistics of the KVS and of its cache: SERVICE.NAME NUMBER."""
    with connect() as h:
        numbers = h.rpc("stats.get", target=h.rank if rank is None else rank)
    services = ("kvs", "leader", "departures", "roots", "gc", "content")
    chosen = {name: numbers[name] for name in services if name in numbers}
    if as_json:
        write_json(chosen)
        return
    for service, values in chosen.items():
        write_statistics(values, f"{service}.")
