"""``fluxmpi ping``: round-trip times to a broker or service, as flux-ping(1) measures them."""

from __future__ import annotations

import time

import click

from fluxmpi.cli.common import (
    Command,
    Duration,
    connect,
    json_option,
    pause,
    response_timeout_option,
    write_json,
    write_line,
)
from fluxmpi.errors import InvalidRequest
from fluxmpi.message import ANY
from fluxmpi.overlay.wire import Ping, Pong

BROKER = "broker"
"""The name in a target for the broker itself, as in flux. Its service is named ``ping``."""

PAD_BYTES_MAX = 1 << 20


@click.command(
    cls=Command, examples="fluxmpi ping 3\nfluxmpi ping -c 100 -i 0 '3!broker'\nfluxmpi ping -c 1 -p 65536 0"
)
@click.option(
    "-r", "--rank", type=click.IntRange(min=0), metavar="RANK", help="The rank to ping, as RANK!SERVICE does."
)
@click.option(
    "-c", "--count", type=click.IntRange(min=1), metavar="N", help="Send N requests.  [default: until Ctrl-C]"
)
@click.option(
    "-i",
    "--interval",
    type=Duration(),
    default="1s",
    show_default=True,
    metavar="DURATION",
    help="Pause between two requests.",
)
@click.option(
    "-p",
    "--pad",
    type=click.IntRange(0, PAD_BYTES_MAX),
    default=0,
    show_default=True,
    metavar="BYTES",
    help="Payload of each request.",
)
@response_timeout_option(10.0)
@json_option
@click.argument("target", required=False)
def ping(
    rank: int | None, count: int | None, interval: float, pad: int, timeout: float, as_json: bool, target: str | None
) -> None:
    """Send echo requests to TARGET, and print the round-trip time and the route of each.

    TARGET is a rank, a service, or RANK!SERVICE.  [default: this node's broker]
    """
    to, service = _parse(target or BROKER)
    to = rank if rank is not None else to
    label = service if to is None else f"{to}!{service}"
    topic = "ping.ping" if service == BROKER else f"{service}.ping"
    payload = b"." * pad
    with connect(streaming=True) as h:
        seq = 0
        while True:
            begin = time.perf_counter()
            pong = h.rpc(topic, Ping(seq, payload), target=ANY if to is None else to, timeout=timeout, reply=Pong)
            took_ms = (time.perf_counter() - begin) * 1000
            if pong.seq != seq or pong.payload != payload:
                raise InvalidRequest(f"the response of {label} differs from the request")
            route = [*pong.route[1:], pong.rank]
            if as_json:
                write_json({"seq": seq, "pad": pad, "time_ms": took_ms, "rank": pong.rank, "route": route}, flush=True)
            else:
                way = "!".join(map(str, route))
                write_line(f"{label}.ping pad={pad} seq={seq} time={took_ms:.3f} ms ({way})", flush=True)
            seq += 1
            if seq == count:
                return
            pause(interval)


def _parse(target: str) -> tuple[int | None, str]:
    head, mark, service = target.partition("!")
    if mark:
        if not head.isdecimal() or not service:
            raise InvalidRequest(f"invalid target '{target}': use RANK, SERVICE or RANK!SERVICE, as in 3!kvs")
        return int(head), service
    return (int(head), BROKER) if head.isdecimal() else (None, head)
