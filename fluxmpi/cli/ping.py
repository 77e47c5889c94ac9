"""``fluxmpi ping``: round trips to a broker or service, after flux-ping(1)."""

from __future__ import annotations

import time

import click

from fluxmpi.cli.common import Command, connect, json_option, write_json, write_line
from fluxmpi.errors import InvalidRequest
from fluxmpi.message import ANY
from fluxmpi.overlay.wire import Ping, Pong

BROKER = "broker"
"""What flux calls a broker's own ping; the service is named ``ping``."""

PAD_BYTES_MAX = 1 << 20


@click.command(
    cls=Command, examples="fluxmpi ping 3\nfluxmpi ping -c 100 -i 0 '3!broker'\nfluxmpi ping -c 1 -p 65536 0"
)
@click.option("-r", "--rank", type=click.IntRange(min=0), help="The rank to ping, as in 'RANK!broker'.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N; else at Ctrl-C.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two.",
)
@click.option(
    "-p",
    "--pad",
    type=click.IntRange(0, PAD_BYTES_MAX),
    default=0,
    show_default=True,
    metavar="BYTES",
    help="Of ballast in each.",
)
@click.option("-t", "--timeout", type=float, default=10.0, show_default=True, metavar="SECONDS", help="For an answer.")
@json_option
@click.argument("target", required=False)
def ping(
    rank: int | None, count: int | None, interval: float, pad: int, timeout: float, as_json: bool, target: str | None
) -> None:
    """Ask a broker for an echo, again and again, and print how long each took and the way it went.

    TARGET is a rank, a service, or RANK!SERVICE; the nearest broker if there is none.
    """
    to, service = _parse(target or BROKER)
    to = rank if rank is not None else to
    label = service if to is None else f"{to}!{service}"
    topic = "ping.ping" if service == BROKER else f"{service}.ping"
    payload = b"." * pad
    with connect() as h:
        seq = 0
        while True:
            begin = time.perf_counter()
            pong = h.rpc(topic, Ping(seq, payload), target=ANY if to is None else to, timeout=timeout, reply=Pong)
            took_ms = (time.perf_counter() - begin) * 1000
            if pong.seq != seq or pong.payload != payload:
                raise InvalidRequest(f"{label} answered with something else than was sent")
            route = [*pong.route[1:], pong.rank]
            if as_json:
                write_json({"seq": seq, "pad": pad, "time_ms": took_ms, "rank": pong.rank, "route": route}, flush=True)
            else:
                way = "!".join(map(str, route))
                write_line(f"{label}.ping pad={pad} seq={seq} time={took_ms:.3f} ms ({way})", flush=True)
            seq += 1
            if seq == count:
                return
            time.sleep(interval)


def _parse(target: str) -> tuple[int | None, str]:
    head, mark, service = target.partition("!")
    if mark:
        if not head.isdecimal() or not service:
            raise InvalidRequest(f"'{target}' is no target: it reads like 3, kvs or 3!kvs")
        return int(head), service
    return (int(head), BROKER) if head.isdecimal() else (None, head)
