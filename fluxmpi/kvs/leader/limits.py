"""Limits of rank 0's write path. The broker's Config carries them; tests pass smaller ones."""

from __future__ import annotations

import msgspec

from fluxmpi.blobref import BLOB_BYTES_MAX
from fluxmpi.kvs.store.edit import SLICE_NODES


class LeaderLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of commits and of the work of one turn."""

    group_s: float = 0.0003
    """How long a commit may wait for others to share its version, where the last turn had several."""

    queue_bytes_high: int = 64 << 20
    """Bytes of queued commits, each counted with QUEUED_BYTES beside. Past that, rank 0 reads neither from clients nor
    from brokers until it has applied some."""

    turn_steps: int = 1000
    """Steps of all committers in one turn: operations and nodes, 10 to 30 µs each."""

    batch_steps_max: int = 512
    """Steps of small transactions in one batch: how long the first may wait for the others."""

    large_ops: int = 1024
    """A transaction of more operations is *large*: it has a version of its own, which names no changed keys, and is
    applied in slices."""

    slice_ops: int = 256
    """Operations applied, or blobs checked, between two chances to do other work."""

    slice_nodes: int = SLICE_NODES
    """Nodes sealed between two chances to do other work."""

    ops_max: int = 1_000_000
    """Operations of one commit. A million need some 500 MB while they are applied, so this bounds memory; the slices
    bound the turns."""

    guards_max: int = 1024
    """Guards of one commit."""

    events_max: int = 10_000
    """Events that one commit publishes."""

    setroot_keys_max: int = 1024
    """Changed keys that a setroot names. With more it names none, and every watcher is evaluated."""

    setroot_nodes_bytes_max: int = 16 << 10
    """Bytes of new nodes that a setroot carries. With more it carries none, and brokers fault them in."""

    clients_max: int = 65_536
    """Clients in the deduplication table. Past it, one is dropped: of those with one commit if there are any, the one
    that was silent longest. A commit of it that arrives again is refused, and not applied a second time."""

    dropped_max: int = 262_144
    """Clients remembered as dropped. Past it, the oldest is forgotten: a commit of it that arrives again is new."""

    results_max: int = 65_536
    """Responses that the table keeps of one client: its commits that it has not acknowledged. Past it, the oldest is
    dropped: its commit, if it arrives again, is refused, and not applied a second time."""

    result_bytes_client_max: int = 16 << 20
    """Bytes of these responses. Past it, the oldest are dropped."""

    result_bytes_max: int = 64 << 20
    """Bytes of the responses to all clients. Past it, an eighth is dropped: of clients with one commit first, then of
    those that were silent longest."""

    blob_bytes_max: int = BLOB_BYTES_MAX
    """A longer value is cut into several blobs."""

    append_blob_bytes: int = 16 << 10
    """An append extends the value's last blob up to this size, then begins a new one. So a log of short lines is few
    blobs."""

    value_blobs_max: int = 1 << 20
    """Blobs of one value."""

    parked_bytes_max: int = 64 << 20
    """Bytes of commits to one namespace that wait for a garbage collection, because the store is full."""

    checked_directories_max: int = 65_536
    """Directories remembered as complete, so that one that is put again is not checked again."""


LEADER_LIMITS = LeaderLimits()
"""The defaults."""
