"""Eventlogs: values that grow by events, one a line, in the format of RFC 18 of the Flux framework. ``h.eventlog``.

    {"timestamp":1552593348.073045,"name":"submit","context":{"urgency":16}}

Any number of writers append to one log, each event whole, in the order of the commits. A watch of a log delivers each
event once, in that order, from the first one on; so a log is a way to wait for a state that may have been reached
already.

https://flux-framework.readthedocs.io/projects/flux-rfc/en/latest/spec_18.html
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fluxmpi.client.kvs.kvs import Kvs
from fluxmpi.client.kvs.watch import Change
from fluxmpi.client.snapshot import AtLike, Snapshot
from fluxmpi.errors import InvalidRequest, InvalidValue, NoSuchKey, RequestTimeout
from fluxmpi.kvs.objects import Object, Val, ValRef

SHOWN = 60
"""Characters of a bad line that an error message shows."""


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event of a log.

    Attributes:
        timestamp: seconds since 1970, above 0.
        name: its name.
        context: what else it says, as JSON; or None.
    """

    timestamp: float
    name: str
    context: dict[str, Any] | None = None

    def encode(self) -> str:
        """Return the event's line, without the newline."""
        fields: dict[str, Any] = {"timestamp": self.timestamp, "name": self.name}
        if self.context is not None:
            fields["context"] = self.context
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    @classmethod
    def parse(cls, line: str) -> LogEvent:
        """Return the event of a line. Raises InvalidValue, which says what is wrong with it."""
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
        """Return whether the event has this name, and its context at least these members."""
        have = self.context or {}
        return self.name == name and all(key in have and have[key] == want for key, want in (context or {}).items())


def parse_log(data: bytes | bytearray, key: str, line: int = 1) -> list[LogEvent]:
    """Return the events of a log, or of a piece that begins with line number ``line``. Raises InvalidValue."""
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
    """Logs of events, each under a key of one namespace: ``h.eventlog`` is the namespace ``primary``."""

    def __init__(self, kvs: Kvs) -> None:
        self._kvs = kvs

    def namespace(self, name: str) -> Eventlog:
        """Return the logs of the namespace ``name``, with the same methods."""
        return Eventlog(self._kvs.namespace(name))

    def append(
        self, key: str, name: str, context: Mapping[str, Any] | None = None, *, timestamp: float | None = None
    ) -> Snapshot:
        """Append an event to a log.

        Args:
            key: the log's key, which need not exist.
            name: the event's name.
            context: what else it says, as JSON.
            timestamp: seconds since 1970; None is now.

        Returns:
            The version that has the event.

        Raises:
            InvalidRequest: an event that RFC 18 does not allow.

        Example:
            >>> _ = h.eventlog.append("doc.events", "start", {"attempt": 1})
            >>> [(event.name, event.context) for event in h.eventlog.get("doc.events")]
            [('start', {'attempt': 1})]
        """
        when = time.time() if timestamp is None else float(timestamp)
        try:
            line = LogEvent(when, name, None if context is None else dict(context)).encode()
            LogEvent.parse(line)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the event '{name}' cannot be written as JSON: {error}") from None
        except InvalidValue as error:
            raise InvalidRequest(error.text) from None
        with self._kvs.txn() as txn:
            txn.append(key, f"{line}\n")
        return txn.snapshot

    def get(self, key: str, *, at: AtLike = None) -> list[LogEvent]:
        """Return all events of a log.

        Args:
            key: the log's key.
            at: the state to read, see ``Kvs.snapshot``; None is the newest.

        Raises:
            NoSuchKey: there is no such log.
            InvalidValue: the value is not an eventlog.
        """
        return parse_log(_bytes(self._kvs, key, self._kvs.get_object(key, follow=True, at=at)), key)

    def watch(self, key: str, *, wait: bool = False) -> EventlogWatch:
        """Watch a log: its events so far, then the new ones.

        Args:
            key: the log's key.
            wait: wait for a log that does not exist yet; otherwise it is NoSuchKey.

        Returns:
            The open watch: iterate over its events, and close it.
        """
        return EventlogWatch(self._kvs, key, wait)

    def wait_event(
        self,
        key: str,
        name: str,
        context: Mapping[str, Any] | None = None,
        *,
        wait: bool = False,
        timeout: float | None = None,
    ) -> LogEvent:
        """Wait until a log has an event, and return the first one that matches. It may be in the log already.

        Args:
            key: the log's key.
            name: the event's name.
            context: members that its context must have, at least.
            wait: wait for a log that does not exist yet; otherwise it is NoSuchKey.
            timeout: seconds to wait; None waits without a limit.

        Raises:
            RequestTimeout: no such event within ``timeout``.
            NoSuchKey: there is no log, or it was removed.
            InvalidValue: the value is not an eventlog, or was overwritten.

        Example:
            >>> _ = h.eventlog.append("doc.run.log", "finish", {"status": 0})
            >>> there.eventlog.wait_event("doc.run.log", "finish", {"status": 0}, wait=True, timeout=10).name
            'finish'
        """
        with self.watch(key, wait=wait) as watch:
            return watch.until(name, context, timeout)


class EventlogWatch:
    """An open watch of a log, made by ``h.eventlog.watch``: iterate over its events. Close it, or use a ``with`` block."""

    def __init__(self, kvs: Kvs, key: str, wait: bool) -> None:
        self._kvs = kvs
        self._key = key
        self._wait = wait
        self._watch = kvs.watch_key(key, wait=wait)
        self._events: deque[LogEvent] = deque()
        self._lines = 0

    @property
    def ready(self) -> bool:
        """True if ``get`` returns an event that has arrived already."""
        return bool(self._events)

    def get(self, timeout: float | None = None) -> LogEvent | None:
        """Wait for the next event and return it; None at the end of the watch.

        Args:
            timeout: seconds to wait; None waits without a limit.

        Raises:
            RequestTimeout: no event within ``timeout``; the watch continues.
            NoSuchKey: there is no log, or it was removed.
            InvalidValue: the value is not an eventlog, or was overwritten.
        """
        while not self._events:
            update = self._watch.update(timeout)
            if update is None:
                return None
            change = update.changes[0] if update.changes else None
            if change is not None and not change.deleted:
                self._read(change)
            elif self._lines or not self._wait:
                gone = f"was removed in version {update.version}" if self._lines else "does not exist yet"
                raise NoSuchKey(f"the eventlog '{self._key}' {gone}")
        return self._events.popleft()

    def _read(self, change: Change) -> None:
        data: bytes | bytearray | None = change.appended
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
        """Wait for the first event that matches.

        Args:
            name: the event's name.
            context: members that its context must have, at least.
            timeout: seconds to wait for it; None waits without a limit.
            before: called with each event before it.

        Raises:
            RequestTimeout: no such event within ``timeout``.
            NoSuchKey: there is no log, or it was removed, or the watch ended.
            InvalidValue: the value is not an eventlog, or was overwritten.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                event = self.get(None if deadline is None else max(0.0, deadline - time.monotonic()))
            except RequestTimeout:
                if timeout is None:  # the broker says so
                    raise
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
        """End the watch."""
        self._watch.close()

    def __enter__(self) -> EventlogWatch:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _bytes(kvs: Kvs, key: str, found: Object) -> bytes | bytearray:
    if not isinstance(found, Val | ValRef):
        raise InvalidValue(f"'{key}' is not an eventlog: it is not a value")
    return kvs.bytes_of(found)
