"""``fluxmpi event pub | sub``: publish and subscribe, after flux-event(1)."""

from __future__ import annotations

import click
import msgspec

from fluxmpi.cli.common import CONTEXT, Group, connect, json_option, write_json, write_line


@click.group(cls=Group, context_settings=CONTEXT)
def event() -> None:
    """Events reach the subscribers on all nodes, in one order."""


@event.command(
    examples="""
fluxmpi event pub run.started
fluxmpi event pub run.progress '{"step": 12}'
fluxmpi event pub -r note any text at all
"""
)
@click.option("-r", "--raw", is_flag=True, help="PAYLOAD is any text, not JSON.")
@click.option("-s", "--synchronous", is_flag=True, help="Print the event's number, which it has when this returns.")
@click.option("-l", "--loopback", is_flag=True, help="Wait until the event has come back to this node.")
@click.argument("topic")
@click.argument("payload", nargs=-1)
def pub(raw: bool, synchronous: bool, loopback: bool, topic: str, payload: tuple[str, ...]) -> None:
    """Publish an event with TOPIC, and PAYLOAD if it has one: JSON, its words joined by blanks."""
    data = " ".join(payload).encode("utf-8", "surrogateescape")
    if data and not raw:
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise click.UsageError("PAYLOAD is not JSON; --raw publishes any text.") from None
    with connect() as h:
        if not loopback:
            seq = h.event.publish(topic, data)
        else:
            with h.event.subscribe(topic) as own:
                seq = h.event.publish(topic, data)
                while own.get().seq < seq:
                    pass
    if synchronous:
        write_line(str(seq))


@event.command(examples="fluxmpi event sub run.\nfluxmpi event sub -c 1 run.ready")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="End after N events.")
@json_option
@click.argument("topics", metavar="[TOPIC...]", nargs=-1)
def sub(count: int | None, as_json: bool, topics: tuple[str, ...]) -> None:
    """Print events whose topic begins with one of TOPIC, by default all, until interrupted: topic, tab, payload."""
    # Of several prefixes, one subscription sees all events and the prefixes choose, so that their order is kept.
    prefix = topics[0] if len(topics) == 1 else ""
    with connect() as h, h.event.subscribe(prefix) as subscription:
        wanted = (found for found in subscription if not topics or found.topic.startswith(topics))
        for number, found in enumerate(wanted, 1):
            if as_json:
                payload = found.payload.decode("utf-8", "replace")
                line = {"topic": found.topic, "seq": found.seq, "time": found.time, "payload": payload}
                write_json(line, flush=True)
            else:
                head = found.topic.encode()
                write_line(head + b"\t" + found.payload if found.payload else head, flush=True)
            if number == count:
                return
