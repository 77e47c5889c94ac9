"""``fluxmpi getattr | lsattr | uptime``: the attributes of a broker."""

from __future__ import annotations

import getpass
import time

import click

from fluxmpi.broker.wire import GetAttr
from fluxmpi.cli.common import Command, connect, json_option, rank_option, write_json, write_line

HOSTLIST = "hostlist"
"""The attribute with the host of each rank."""


def attribute_text(name: str, value: str) -> str:
    """Return a value as a person reads it: the hosts of all ranks, ``node1,node2,…``, as a Slurm hostlist."""
    if name != HOSTLIST:
        return value
    from hostlist import collect_hostlist

    return str(collect_hostlist(value.split(",")))


@click.command(
    "getattr", cls=Command, examples="fluxmpi getattr size\nfluxmpi getattr -r 3 hostname\nfluxmpi getattr hostlist"
)
@rank_option
@click.argument("name")
def getattr_(rank: int | None, name: str) -> None:
    """Print the attribute NAME of a broker. 'fluxmpi lsattr' lists the names.

    'hostlist' is printed as Slurm writes it, each host once: node[1-4].
    """
    with connect() as h:
        value = str(h.rpc("lifecycle.getattr", GetAttr(name), target=h.rank if rank is None else rank))
    write_line(attribute_text(name, value))


@click.command(cls=Command, examples="fluxmpi lsattr -v\nfluxmpi lsattr --json")
@rank_option
@json_option
@click.option("-v", "--values", is_flag=True, help="Print the values, too.")
def lsattr(rank: int | None, as_json: bool, values: bool) -> None:
    """List the attributes of a broker. --json prints the values as they are: 'hostlist' then has one name per rank."""
    with connect() as h:
        attributes = h.rpc("lifecycle.lsattr", target=h.rank if rank is None else rank)
    if as_json:
        write_json(attributes)
        return
    width = max(map(len, attributes))
    for name, value in sorted(attributes.items()):
        write_line(f"{name.ljust(width)}  {attribute_text(name, value)}" if values else name)


@click.command(cls=Command, examples="fluxmpi uptime")
def uptime() -> None:
    """Print the time, how long the instance has run, its owner and its size in brokers."""
    with connect() as h:
        attributes = h.rpc("lifecycle.lsattr", target=0)
    seconds = max(0.0, time.time() - float(attributes["starttime"]))
    clock, state = time.strftime("%H:%M:%S"), attributes["state"].lower()
    write_line(f" {clock} {state} {format_duration(seconds)},  owner {getpass.getuser()},  size {attributes['size']}")


def format_duration(seconds: float) -> str:
    """Return a duration as flux prints it: ``12.3s``, ``4.5m``, ``6.7h``, ``8.9d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f}{unit}"
    return f"{seconds:.1f}s"
