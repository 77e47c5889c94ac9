"""``fluxmpi kvs eventlog append | get | wait-event``: logs of events (RFC 18), printed as flux-kvs(1) does."""

from __future__ import annotations

import json
import sys
import time

import click

from fluxmpi.cli.common import (
    CONTEXT,
    Command,
    LazyGroup,
    connect,
    duration_option,
    error_context,
    namespace_option,
    options,
    shown,
    shown_json,
    write_line,
)
from fluxmpi.client.eventlog import LogEvent
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import PRIMARY

COMMANDS = {
    "append": ("fluxmpi.cli.kvs_eventlog:append", "Append an event to a log."),
    "get": ("fluxmpi.cli.kvs_eventlog:get", "Print the events of a log."),
    "wait-event": ("fluxmpi.cli.kvs_eventlog:wait_event", "Wait for an event."),
}

form_options = options(
    click.option("-u", "--unformatted", is_flag=True, help="Print the lines as stored: JSON, without colour."),
    click.option("-H", "--human", is_flag=True,
                 help="Print dates, and within a minute the seconds since its first event."),
    click.option("-L", "--color", type=click.Choice(["auto", "always", "never"]), default="auto", metavar="[WHEN]",
                 help="Colour: auto (on a terminal), always or never.  [default: auto; -L alone: always]"),
)  # fmt: skip

COLORS = {"time": "32", "name": "33", "exception": "1;31", "key": "34", "value": "35"}


class ColorCommand(Command):
    """A command with ``--color[=WHEN]``: WHEN is optional, and part of the same argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        whole = {"-L": "-Lalways", "--color": "--color=always"}
        return super().parse_args(ctx, [whole.get(word, word) for word in args])


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=CONTEXT)
def eventlog() -> None:
    """Append to a log of events, print it, wait for an event. Any number of programs may append to a log.

    An event is one line of JSON: {"timestamp":…,"name":…,"context":{…}}.
    """


class EventPrinter:
    """Prints events as they arrive, one per line."""

    def __init__(self, unformatted: bool, human: bool, color: str) -> None:
        if unformatted and (human or color == "always"):
            other = "--human" if human else "--color=always"
            raise click.UsageError(
                f"--unformatted prints events as they are stored: it cannot be combined with {other}."
            )
        self._unformatted = unformatted
        self._human = human
        self._colored = color == "always" or (color == "auto" and sys.stdout.isatty())
        self._minute = ""
        self._since = 0.0

    def print(self, event: LogEvent) -> None:
        if self._unformatted:
            write_line(shown_json(event.encode()), flush=True)
        else:
            write_line(self._text(event), flush=True, raw=True)

    def _text(self, event: LogEvent) -> str:
        stamp = self._date(event.timestamp) if self._human else f"{event.timestamp:.6f}"
        name = "exception" if event.name == "exception" else "name"
        words = [self._paint("time", stamp), self._paint(name, event.name)]
        for key, value in (event.context or {}).items():
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            words.append(f"{self._paint('key', key)}={self._paint('value', text)}")
        return " ".join(words)

    def _paint(self, part: str, text: str) -> str:
        text = shown(text)
        return f"\x1b[{COLORS[part]}m{text}\x1b[0m" if self._colored else text

    def _date(self, timestamp: float) -> str:
        """Return the date for the first event of a minute, and the seconds since it for the others."""
        try:
            now = time.localtime(timestamp)
        except (OverflowError, ValueError, OSError):
            return f"[{timestamp:+11.6f}]"
        minute = time.strftime("%Y-%m-%d %H:%M", now)
        if minute == self._minute:
            return f"[{timestamp - self._since:+11.6f}]"
        self._minute, self._since = minute, timestamp
        return time.strftime("[%b%d %H:%M]", now)


@click.command(
    cls=Command,
    examples="""
fluxmpi kvs eventlog append run.log start
fluxmpi kvs eventlog append run.log finish '{"status": 0}'
""",
)
@namespace_option
@click.option(
    "-t", "--timestamp", type=float, metavar="SECONDS", help="Time of the event, in seconds since 1970.  [default: now]"
)
@click.argument("key")
@click.argument("name")
@click.argument("context", nargs=-1)
def append(namespace: str | None, timestamp: float | None, key: str, name: str, context: tuple[str, ...]) -> None:
    """Append an event to the log at KEY. The log is created if it does not exist. CONTEXT is a JSON object."""
    fields = None
    if context:
        try:
            fields = json.loads(" ".join(context))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the context '{' '.join(context)}' is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidRequest(f"the context '{' '.join(context)}' is not a JSON object: use '{{\"NAME\": VALUE}}'")
    with connect() as h, error_context(key):
        h.eventlog.namespace(namespace or PRIMARY).append(key, name, fields, timestamp=timestamp or None)


@click.command(
    cls=ColorCommand, examples="fluxmpi kvs eventlog get run.log\nfluxmpi kvs eventlog get -W -w -c 2 run.log"
)
@namespace_option
@form_options
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the log exists.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Print new events as they are appended.")
@click.option("-c", "--count", type=click.IntRange(min=0), metavar="N", help="Exit after N events; 0: no limit.")
@click.option(
    "-S", "--stream", is_flag=True, hidden=True, help="Accepted for flux-kvs compatibility; not with --watch."
)
@click.argument("key")
def get(
    namespace: str | None,
    unformatted: bool,
    human: bool,
    color: str,
    waitcreate: bool,
    watching: bool,
    count: int | None,
    stream: bool,
    key: str,
) -> None:
    """Print the events of the log at KEY, one per line: time, name, and the context as NAME=VALUE."""
    printer = EventPrinter(unformatted, human, color)
    if stream and watching:
        raise click.UsageError("--stream reads the log once: it cannot be combined with --watch.")
    with connect(streaming=watching or waitcreate) as h, error_context(key):
        if not (watching or waitcreate):
            for event in h.eventlog.namespace(namespace or PRIMARY).get(key)[: count or None]:
                printer.print(event)
            return
        with h.eventlog.namespace(namespace or PRIMARY).watch(key, wait=waitcreate) as watch:
            number = 0
            while (watching or not number or watch.ready) and (next_ := watch.get()) is not None:
                printer.print(next_)
                number += 1
                if number == count:
                    return


def _match(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> dict[str, object]:
    """Parse the NAME=VALUE of each ``-m``. A VALUE that is not JSON is a string."""
    pairs: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"'{word}' has no value: use {word}=VALUE.")
        try:
            pairs[name] = json.loads(value)
        except ValueError:
            pairs[name] = value
    return pairs


@click.command(
    "wait-event",
    cls=ColorCommand,
    examples="""
fluxmpi kvs eventlog wait-event -W run.log start
fluxmpi kvs eventlog wait-event -t 30s -m status=0 run.log finish
""",
)
@namespace_option
@form_options
@duration_option
@click.option("-m", "--match-context", "match", metavar="NAME=VALUE", multiple=True, callback=_match,
              help="Wait for an event with this in its context. May be repeated.")  # fmt: skip
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the log exists.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the event.")
@click.option("-v", "--verbose", is_flag=True, help="Print the earlier events, too.")
@click.argument("key")
@click.argument("event")
def wait_event(
    namespace: str | None,
    unformatted: bool,
    human: bool,
    color: str,
    timeout: float | None,
    match: dict[str, object],
    waitcreate: bool,
    quiet: bool,
    verbose: bool,
    key: str,
    event: str,
) -> None:
    """Wait until the log at KEY has an event named EVENT, and print it.

    Exit status: 1 if --timeout ran out, or the log does not exist and --waitcreate is not given.
    """
    printer = EventPrinter(unformatted, human, color)
    with (
        connect(streaming=True) as h,
        error_context(key),
        h.eventlog.namespace(namespace or PRIMARY).watch(key, wait=waitcreate) as watch,
    ):
        found = watch.until(event, match, timeout, printer.print if verbose else None)
    if not quiet:
        printer.print(found)
