"""``fluxmpi kvs eventlog append | get | wait-event``: logs of events in the format of RFC 18, printed as flux-kvs(1) does."""

from __future__ import annotations

import json
import sys
import time

import click

from fluxmpi.cli.common import (
    CONTEXT,
    Command,
    LazyGroup,
    about,
    connect,
    duration_option,
    namespace_option,
    options,
    write_line,
)
from fluxmpi.client.eventlog import LogEvent
from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.wire import PRIMARY

COMMANDS = {
    "append": ("fluxmpi.cli.kvs_eventlog:append", "Add an event to the end of a log."),
    "get": ("fluxmpi.cli.kvs_eventlog:get", "Print the events of a log."),
    "wait-event": ("fluxmpi.cli.kvs_eventlog:wait_event", "Wait for an event."),
}

form_options = options(
    click.option("-u", "--unformatted", "form", flag_value="json", help="Print the lines as they are in the log, JSON."),
    click.option("-H", "--human", "form", flag_value="human", help="Print dates, and in between the seconds since then."),
    click.option("-L", "--color", type=click.Choice(["auto", "always", "never"]), default="auto", metavar="[WHEN]",
                 help="Colour: auto (on a terminal), always (if WHEN is left out) or never."),
)  # fmt: skip

COLORS = {"time": "32", "name": "33", "exception": "1;31", "key": "34", "value": "35"}


class ColorCommand(Command):
    """A command with ``--color[=WHEN]``: WHEN is optional, and stands in the same word."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        whole = {"-L": "-Lalways", "--color": "--color=always"}
        return super().parse_args(ctx, [whole.get(word, word) for word in args])


@click.group(cls=LazyGroup, table=COMMANDS, context_settings=CONTEXT)
def eventlog() -> None:
    """Logs that many may append to and wait for: each line an event, {"timestamp":…,"name":…,"context":{…}}."""


class Printer:
    """Prints events in the form that was asked for, one a line, at once."""

    def __init__(self, form: str | None, color: str) -> None:
        self._form = form
        self._colored = color == "always" or (color == "auto" and sys.stdout.isatty())
        self._minute = ""
        self._since = 0.0

    def print(self, event: LogEvent) -> None:
        write_line(event.encode() if self._form == "json" else self._text(event), flush=True)

    def _text(self, event: LogEvent) -> str:
        stamp = self._human(event.timestamp) if self._form == "human" else f"{event.timestamp:.6f}"
        name = "exception" if event.name == "exception" else "name"
        words = [self._paint("time", stamp), self._paint(name, event.name)]
        for key, value in (event.context or {}).items():
            text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
            words.append(f"{self._paint('key', key)}={self._paint('value', text)}")
        return " ".join(words)

    def _paint(self, part: str, text: str) -> str:
        return f"\x1b[{COLORS[part]}m{text}\x1b[0m" if self._colored else text

    def _human(self, timestamp: float) -> str:
        """Month, day and minute of the first event in a minute; of the others the seconds since that one."""
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
    examples="""fluxmpi kvs eventlog append run.log start\nfluxmpi kvs eventlog append run.log finish '{"status": 0}'""",
)
@namespace_option
@click.option("-t", "--timestamp", type=float, metavar="SECONDS", help="Seconds since 1970, instead of now.")
@click.argument("key")
@click.argument("name")
@click.argument("context", nargs=-1)
def append(namespace: str | None, timestamp: float | None, key: str, name: str, context: tuple[str, ...]) -> None:
    """Add an event to the end of the log at KEY, which is made if need be. CONTEXT is a JSON object."""
    fields = None
    if context:
        try:
            fields = json.loads(" ".join(context))
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"the context '{' '.join(context)}' is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidRequest(f"the context '{' '.join(context)}' is not a JSON object: write '{{\"NAME\": VALUE}}'")
    with connect() as h, about(key):
        h.eventlog.append(key, name, fields, timestamp=timestamp or None, namespace=namespace or PRIMARY)


@click.command(
    cls=ColorCommand, examples="fluxmpi kvs eventlog get run.log\nfluxmpi kvs eventlog get -W -w -c 2 run.log"
)
@namespace_option
@form_options
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the log exists.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Go on and print every event as it comes.")
@click.option("-c", "--count", type=click.IntRange(min=1), metavar="COUNT", help="End after COUNT events.")
@click.option("-S", "--stream", is_flag=True, hidden=True, help="For flux-kvs's scripts.")
@click.argument("key")
def get(
    namespace: str | None,
    form: str | None,
    color: str,
    waitcreate: bool,
    watching: bool,
    count: int | None,
    stream: bool,
    key: str,
) -> None:
    """Print the events of the log at KEY, one a line: time, name, and the context as NAME=VALUE."""
    printer = Printer(form, color)
    with connect() as h, about(key):
        if not (watching or waitcreate):
            for event in h.eventlog.get(key, namespace=namespace)[:count]:
                printer.print(event)
            return
        with h.eventlog.watch(key, wait=waitcreate, namespace=namespace or PRIMARY) as watch:
            number = 0
            while (watching or not number or watch.ready) and (next_ := watch.get()) is not None:
                printer.print(next_)
                number += 1
                if number == count:
                    return


def _match(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> dict[str, object]:
    """NAME=VALUE of each ``-m``; a VALUE that is not JSON is a text."""
    wanted: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"'{word}' has no value: write {word}=VALUE.")
        try:
            wanted[name] = json.loads(value)
        except ValueError:
            wanted[name] = value
    return wanted


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
              help="Only an event with this in its context.")  # fmt: skip
@click.option("-W", "--waitcreate", is_flag=True, help="Wait until the log exists.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the event.")
@click.option("-v", "--verbose", is_flag=True, help="Print the events before it, too.")
@click.argument("key")
@click.argument("event")
def wait_event(
    namespace: str | None,
    form: str | None,
    color: str,
    timeout: float | None,
    match: dict[str, object],
    waitcreate: bool,
    quiet: bool,
    verbose: bool,
    key: str,
    event: str,
) -> None:
    """Wait until the log at KEY has the EVENT, and print it. If it is there already, that is at once."""
    printer = Printer(form, color)
    with (
        connect() as h,
        about(key),
        h.eventlog.watch(key, wait=waitcreate, namespace=namespace or PRIMARY) as watch,
    ):
        found = watch.until(event, match, timeout, printer.print if verbose else None)
    if not quiet:
        printer.print(found)
