"""Notifications with values by reference that a client was handed and has not moved past.

The client acknowledges the bytes of a notification when it asks for the next one, in order. So a version is done when
as many bytes are acknowledged as were sent up to its last part::

    sent          [ 300: version 7 ][ 250: version 8, part ][ 260: version 8 ]
    acknowledged  ───────300────────▶                       7 is done, 8 is not
"""

from __future__ import annotations

from collections import deque

from fluxmpi.kvs.wire import RootInfo


class Handed:
    """``bytes``: of the values that the notifications refer to."""

    __slots__ = ("_acknowledged", "_entries", "_sent", "bytes")

    def __init__(self, unacknowledged: int) -> None:
        """``unacknowledged``: bytes of the notifications that were sent before."""
        self.bytes = 0
        self._sent = unacknowledged
        self._acknowledged = 0
        self._entries: deque[tuple[int, int, list[RootInfo]]] = deque()
        """Bytes sent up to its end, bytes of its values, and the versions that it was made of; oldest first."""

    def add(self, size: int, referenced: int, roots: list[RootInfo]) -> None:
        """Take a notification, or a part of one, of ``size`` bytes."""
        self._sent += size
        entries = self._entries
        self.bytes += referenced
        if entries and entries[-1][2] == roots:
            referenced += entries.pop()[1]
        if referenced:
            entries.append((self._sent, referenced, roots))

    def acknowledge(self, size: int) -> bool:
        """Take an acknowledgement. Return True if the client has moved past a version."""
        self._acknowledged += size
        moved = False
        while self._entries and self._entries[0][0] <= self._acknowledged:
            self.bytes -= self._entries.popleft()[1]
            moved = True
        return moved

    def withdraw(self, size: int) -> None:
        """Take back the last notification, of ``size`` bytes, which was not sent."""
        self._sent -= size
        self.bytes -= self._entries.pop()[1]

    def versions(self, namespace: str) -> list[int]:
        """Return the versions of a namespace that the client may still read, oldest first."""
        return [root.version for _, _, roots in self._entries for root in roots if root.namespace == namespace]
