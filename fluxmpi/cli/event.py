"""``fluxmpi event pub | sub``: publish events and subscribe to them, as flux-event(1) does."""

from __future__ import annotations

import click
import msgspec

from fluxmpi.cli.common import CONTEXT, Group, connect, json_option, write_json, write_line


@click.group(cls=Group, context_settings=CONTEXT)
def event() -> None:
    """Publish events and subscribe to them. All subscribers receive them in the same order, on every node."""


@event.command(
    examples="""
fluxmpi event pub run.started
fluxmpi event pub run.progress '{"step": 12}'
fluxmpi event pub -r note any text at all
"""
)
@click.option("-r", "--raw", is_flag=True, help="Publish PAYLOAD as it is, without checking that it is JSON.")
@click.option("-s", "--synchronous", is_flag=True, help="Print the event's sequence number.")
@click.option("-l", "--loopback", is_flag=True, help="Wait until this node has received the event.")
@click.argument("topic")
@click.argument("payload", nargs=-1)
def pub(raw: bool, synchronous: bool, loopback: bool, topic: str, payload: tuple[str, ...]) -> None:
    """Publish an event with TOPIC, and with PAYLOAD if given: JSON. Several words are joined by spaces."""
    data = " ".join(payload).encode("utf-8", "surrogateescape")
    if data and not raw:
        try:
            msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise click.UsageError(
                f"PAYLOAD is not JSON: {data[:64].decode('utf-8', 'replace')!r}; --raw publishes any text."
            ) from None
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
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="N", help="Exit after N events.")
@json_option
@click.argument("topics", metavar="[TOPIC...]", nargs=-1)
def sub(count: int | None, as_json: bool, topics: tuple[str, ...]) -> None:
    """Subscribe to events, and print them as they arrive, until interrupted: topic, tab, payload.

    TOPIC is a prefix: 'run.' selects run.started. Without TOPIC, all events are printed.
    """
    # Several prefixes: one subscription to all events, filtered here, keeps the events in order.
    prefix = topics[0] if len(topics) == 1 else ""
    with connect(streaming=True) as h, h.event.subscribe(prefix) as subscription:
        selected = (event for event in subscription if not topics or event.topic.startswith(topics))
        for number, event in enumerate(selected, 1):
            if as_json:
                payload = event.payload.decode("utf-8", "replace")
                line = {"topic": event.topic, "seq": event.seq, "time": event.time, "payload": payload}
                write_json(line, flush=True)
            else:
                head = event.topic.encode()
                write_line(head + b"\t" + event.payload if event.payload else head, flush=True)
            if number == count:
                return
