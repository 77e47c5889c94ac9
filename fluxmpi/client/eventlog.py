"""Eventlogs: values that only grow by events, one a line, as RFC 18 of the Flux framework has them. ``h.eventlog``.

    {"timestamp":1552593348.073045,"name":"submit","context":{"urgency":16}}

Any number of writers append to one log, each event whole, in the order of the commits. Whoever watches a log gets each
event once, in that order, from the first one on; so a log is a way to wait for a state that may be reached already.

https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_18.html
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fluxmpi.errors import InvalidRequest, InvalidValue, NoSuchKey, RequestTimeout
from fluxmpi.kvs.objects import Object, Val, ValRef
from fluxmpi.kvs.wire import PRIMARY

if TYPE_CHECKING:
    from fluxmpi.client.base import AtLike
    from fluxmpi.client.handle import Handle
    from fluxmpi.client.kvs import Kvs
    from fluxmpi.client.snapshot import Snapshot
    from fluxmpi.client.watch import Change

SHOWN = 60
"""Characters of a bad line in an error."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """``timestamp``: seconds since 1970, above 0. ``context``: JSON, or None."""

    timestamp: float
    name: str
    context: dict[str, Any] | None = None

    def encode(self) -> str:
        """The event's line, without the newline."""
        fields: dict[str, Any] = {"timestamp": self.timestamp, "name": self.name}
        if self.context is not None:
            fields["context"] = self.context
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def parse(cls, line: str) -> LogEvent:
        """The event of a line. Raises InvalidValue, saying what is wrong with it."""
        shown = line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"'{shown}' is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidValue(f"'{shown}' is not a JSON object")
        timestamp, name, context = fields.get("timestamp"), fields.get("name"), fields.get("context")
        if isinstance(timestamp, bool) or not isinstance(timestamp, int | float) or not timestamp > 0:
            raise InvalidValue(f"'{shown}' has no timestamp: it must be a number above 0")
        if not isinstance(name, str) or not name:
            raise InvalidValue(f"'{shown}' has no name: it must be a text")
        if "context" in fields and not isinstance(context, dict):
            raise InvalidValue(f"'{shown}' has a context that is not a JSON object")
        return cls(float(timestamp), name, context)

    def matches(self, name: str, context: Mapping[str, Any] | None = None) -> bool:
        """It has this name, and in its context at least these members."""
        have = self.context or {}
        return self.name == name and all(key in have and have[key] == want for key, want in (context or {}).items())


def parse_log(data: bytes | bytearray, key: str, line: int = 1) -> list[LogEvent]:
    """The events of a log, or of a piece that begins with line number ``line``. Raises InvalidValue."""
    if data and not data.endswith(b"\n"):
        raise InvalidValue(
            f"'{key}' is not an eventlog: it does not end with a newline, so its last event is not whole"
        )
    try:
        lines = data.decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise InvalidValue(f"'{key}' is not an eventlog: {error}") from None
    events = []
    for number, text in enumerate(lines, line):
        try:
            events.append(LogEvent.parse(text))
        except InvalidValue as error:
            raise InvalidValue(f"'{key}' is not an eventlog: line {number}: {error.text}") from None
    return events


class Eventlog:
    """See the module's text."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._kvs: Kvs = handle.kvs

    def append(
        self,
        key: str,
        name: str,
        context: Mapping[str, Any] | None = None,
        *,
        timestamp: float | None = None,
        namespace: str = PRIMARY,
    ) -> Snapshot:
        """Add an event to the end of the log at ``key``, which need not exist; ``timestamp`` is now, unless given.

        Returns the version that it is in. Raises InvalidRequest for an event that RFC 18 does not allow.
        """
        when = time.time() if timestamp is None else float(timestamp)
        try:
            line = LogEvent(when, name, None if context is None else dict(context)).encode()
            LogEvent.parse(line)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the event '{name}' cannot be written as JSON: {error}") from None
        except InvalidValue as error:
            raise InvalidRequest(error.text) from None
        with self._kvs.txn(namespace=namespace) as txn:
            txn.append(key, f"{line}\n")
        return txn.snapshot

    def get(self, key: str, *, at: AtLike = None, namespace: str | None = None) -> list[LogEvent]:
        """All events of a log. Raises NoSuchKey; InvalidValue when it is no eventlog."""
        found = self._kvs.get_object(key, follow=True, at=at, namespace=namespace)
        return parse_log(_bytes(self._kvs, key, found), key)

    def watch(self, key: str, *, wait: bool = False, namespace: str = PRIMARY) -> EventlogWatch:
        """Iterate over the events of a log, those that are there and those to come.

        ``wait``: for a log that does not exist yet; else that is NoSuchKey. Close it when done.
        """
        return EventlogWatch(self._handle, key, wait, namespace)

    def wait_event(
        self,
        key: str,
        name: str,
        context: Mapping[str, Any] | None = None,
        *,
        wait: bool = False,
        timeout: float | None = None,
        namespace: str = PRIMARY,
    ) -> LogEvent:
        """The first event of this name, with at least this context, once it is in the log. Raises RequestTimeout."""
        with self.watch(key, wait=wait, namespace=namespace) as watch:
            return watch.until(name, context, timeout)


class EventlogWatch:
    """See ``Eventlog.watch``."""

    def __init__(self, handle: Handle, key: str, wait: bool, namespace: str) -> None:
        self._kvs: Kvs = handle.kvs
        self._key = key
        self._wait = wait
        self._watch = handle.kvs.watch(key, recursive=False, glob=False, append=True, wait=wait, namespace=namespace)
        self._events: deque[LogEvent] = deque()
        self._lines = 0

    @property
    def ready(self) -> bool:
        """True when events that have come are left to ``get``."""
        return bool(self._events)

    def get(self, timeout: float | None = None) -> LogEvent | None:
        """The next event; None when the watch is over.

        Raises RequestTimeout; NoSuchKey when there is no log, or it is removed; InvalidValue when it is no eventlog, or
        what was in it is changed.
        """
        while not self._events:
            update = self._watch.update(timeout)
            if update is None:
                return None
            change = update.changes[0] if update.changes else None
            if change is not None and not change.deleted:
                self._take(change)
            elif self._lines or not self._wait:
                gone = f"was removed in version {update.version}" if self._lines else "does not exist yet"
                raise NoSuchKey(f"the eventlog '{self._key}' {gone}")
        return self._events.popleft()

    def _take(self, change: Change) -> None:
        data: bytes | bytearray | None = change.added
        if data is None:
            assert change.object is not None
            if self._lines:
                raise InvalidValue(f"the eventlog '{self._key}' was overwritten: events may only be appended to it")
            data = _bytes(self._kvs, self._key, change.object)
        fresh = parse_log(data, self._key, self._lines + 1)
        self._lines += len(fresh)
        self._events.extend(fresh)

    def until(
        self,
        name: str,
        context: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        before: Callable[[LogEvent], object] | None = None,
    ) -> LogEvent:
        """The first event that matches; those before it are given to ``before``.

        Raises RequestTimeout when it does not come in ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                event = self.get(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except RequestTimeout:
                raise RequestTimeout(
                    f"no event '{name}' in the eventlog '{self._key}' within {timeout:g} s; it has {self._lines} events"
                ) from None
            if event is None:
                raise NoSuchKey(f"the eventlog '{self._key}' ended without an event '{name}'")
            if event.matches(name, context):
                return event
            if before is not None:
                before(event)

    def __iter__(self) -> Iterator[LogEvent]:
        while (event := self.get()) is not None:
            yield event

    def close(self) -> None:
        self._watch.close()

    def __enter__(self) -> EventlogWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bytes(kvs: Kvs, key: str, found: Object) -> bytes | bytearray:
    if not isinstance(found, Val | ValRef):
        raise InvalidValue(f"'{key}' is not an eventlog: it is not a value")
    return kvs.bytes_of(found)
