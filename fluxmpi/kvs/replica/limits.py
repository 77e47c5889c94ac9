"""Bounds of one broker's replicas, reads and pending requests."""

from __future__ import annotations

import msgspec


class ReplicaLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of one broker's reads, pending requests and combined additions."""

    history_max: int = 10_000
    """Recent roots kept for each namespace: a read at one needs no request, and a watcher may lag."""
    parked_max: int = 100_000
    """Requests that wait for a version of one namespace. More are refused with Overloaded."""
    waiting_max: int = 200_000
    """Requests that wait at one broker: for a version, or for a root that rank 0 is asked for. More are refused with
    Overloaded."""
    waiting_client_max: int = 50_000
    """Of one client."""
    waiting_bytes_max: int = 64 << 20
    """Bytes of the bodies of these requests. More are refused with Overloaded."""
    waiting_bytes_client_max: int = 16 << 20
    """Of one client."""
    asked_high: int = 50_000
    """Requests that were forwarded to rank 0 and have no answer yet. Past that, clients are not read from."""
    resumed_per_turn: int = 500
    """Parked requests that one turn resumes: about 10 ms."""
    reads_suspended_max: int = 100_000
    """Reads that wait for blobs. More are refused with Overloaded."""
    reads_suspended_client_max: int = 25_000
    """Of one client, or of one child."""
    list_entries_max: int = 10_000
    """Entries in one answer to ``kvs.list``."""
    diff_changes_max: int = 10_000
    """Changes in one answer to ``kvs.diff``."""
    diff_page_bytes: int = 1 << 20
    """A page of changes ends after this size, even below its limit of changes."""
    diff_turn_changes: int = 200
    """Changes that one turn of a comparison finds: with ``diff_turn_steps``, 2 to 10 ms."""
    diff_turn_steps: int = 2000
    """Steps of a comparison in one turn."""
    adds_waiting_max: int = 200_000
    """Additions that wait at one broker. More are refused with Overloaded."""
    adds_client_max: int = 50_000
    """Of one client."""
    adds_bytes_max: int = 64 << 20
    """Bytes of their keys and names. More are refused with Overloaded."""
    adds_per_message_max: int = 20_000
    """Additions in one message, about 1 MB. The others wait for the next message."""


REPLICA_LIMITS = ReplicaLimits()
"""The defaults."""
