"""Bounds of one client: what it buffers, caches, and sends at a time."""

from __future__ import annotations

import msgspec


class HandleLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of one client; pass them to ``connect(limits=…)``.

    The defaults suit nearly every program. A bound that is reached is never silent: the field says what happens.
    """

    greeting_s: float = 10.0
    """Seconds that a broker has to greet a new client. Past it: RequestTimeout."""

    cached_bytes_max: int = 16 << 20
    """Bytes of tree nodes and short values that reads cache. Past it, the least recently used half is evicted."""

    stream_messages_max: int = 1 << 16
    """Unread messages of one stream or subscription. Past it, the stream ends with Overloaded."""

    event_bytes_max: int = 64 << 20
    """Unread payload bytes of one subscription. Past it, the subscription ends with Overloaded."""

    watch_credit_bytes: int = 1 << 20
    """Bytes of notifications that the broker may send to a watch of mode ``every`` before the program reads them. Past
    it, the broker keeps versions, not notifications. A watch of mode ``latest`` has credit for one update."""

    carried_bytes_max: int = 1 << 20
    """Bytes of values over 256 bytes that one transaction carries. Further values are stored as blobs before the commit."""


DEFAULT_LIMITS = HandleLimits()
