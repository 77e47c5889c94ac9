"""``fluxmpi getattr | lsattr | uptime``: what a broker says of itself."""

from __future__ import annotations

import getpass
import time

import click

from fluxmpi.broker.wire import GetAttr
from fluxmpi.cli.common import Command, connect, json_option, rank_option, write_json, write_line


@click.command("getattr", cls=Command, examples="fluxmpi getattr size\nfluxmpi getattr -r 3 hostname")
@rank_option
@click.argument("name")
def getattr_(rank: int | None, name: str) -> None:
    """Print the attribute NAME of this node's broker, or of another. 'fluxmpi lsattr' lists them."""
    with connect() as h:
        write_line(str(h.rpc("lifecycle.getattr", GetAttr(name), target=h.rank if rank is None else rank)))


@click.command(cls=Command, examples="fluxmpi lsattr -v")
@rank_option
@json_option
@click.option("-v", "--values", is_flag=True, help="With their values.")
def lsattr(rank: int | None, as_json: bool, values: bool) -> None:
    """List the attributes of this node's broker, or of another."""
    with connect() as h:
        attributes = h.rpc("lifecycle.lsattr", target=h.rank if rank is None else rank)
    if as_json:
        write_json(attributes)
        return
    width = max(map(len, attributes))
    for name, value in sorted(attributes.items()):
        write_line(f"{name.ljust(width)}  {value}" if values else name)


@click.command(cls=Command, examples="fluxmpi uptime")
def uptime() -> None:
    """Print the time, how long the instance has run, whose it is, and its size."""
    with connect() as h:
        attributes = h.rpc("lifecycle.lsattr", target=0)
    seconds = max(0.0, time.time() - float(attributes["starttime"]))
    clock, state = time.strftime("%H:%M:%S"), attributes["state"].lower()
    write_line(f" {clock} {state} {duration(seconds)},  owner {getpass.getuser()},  size {attributes['size']}")


def duration(seconds: float) -> str:
    """As flux prints one: ``12.3s``, ``4.5m``, ``6.7h``, ``8.9d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f}{unit}"
    return f"{seconds:.1f}s"
