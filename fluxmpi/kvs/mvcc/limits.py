"""Bounds of rank 0's namespaces, of requests about their versions, of checkpoints, and of garbage collection."""

from __future__ import annotations

import msgspec


class ValueHistoryLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of the last values of single keys that rules keep, in one namespace."""

    rules_max: int = 100
    """Rules. More are refused with Overloaded."""
    values_max: int = 10_000
    """Values of one key. A rule for more is refused with InvalidRequest."""
    entries_max: int = 100_000
    """Values of all keys. Past that, entries are evicted as for bytes."""
    ended_max: int = 1024
    """Keys remembered that were links, and as many that were directories. Past that, nothing is said about keys that are
    missing since before."""
    steps_per_turn: int = 2000
    """Steps of comparing the versions that are compacted in one turn: about 4 ms."""
    slice_changes: int = 100
    """Changes found in a row, which count as so many steps."""
    slice_steps: int = 400
    """Steps of a diff in a row."""
    nodes_max: int = 1000
    """Decoded nodes that the comparison of two versions keeps."""


class WatchHoldLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of what watches keep of one namespace beyond its retention."""

    bytes_max: int = 256 << 20
    """Bytes that the versions which watches need put by reference. Past that, the oldest are given up, or commits wait
    (``full=wait``)."""
    versions_max: int = 1000
    """Versions that watches of mode ``latest`` lease. Past that, further ones are not leased."""
    wait_s: float = 30.0
    """How long commits wait. After that, the oldest versions are given up."""


class MvccLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of namespaces, of their versions, and of the work on them in one turn."""

    namespaces_max: int = 10_000
    """Namespaces that exist at the same time. More are refused with Overloaded."""
    removed_max: int = 10_000
    """Removed namespaces whose last version is remembered. Past that, each new namespace begins above the last version
    of the oldest one that was forgotten."""
    compactions_per_turn: int = 2000
    """Versions compacted in one turn, about 2 ms, where a shorter retention leaves many to compact."""
    leases_max: int = 10_000
    """Leases held at the same time. More are refused with Overloaded."""
    leases_client_max: int = 2_500
    """Of one client."""
    version_keys_max: int = 1024
    """Keys recorded of one version. A version that wrote more counts as one that may have written any key."""
    indexed_keys_max: int = 65_536
    """Keys recorded of all versions of one namespace together: their index takes 60 ms to build, on the first query.
    Past that, the oldest versions count as ones that may have written any key."""
    log_entries_max: int = 1000
    """Versions in one answer to ``roots.log``, or changes in one answer to ``roots.history``."""
    log_keys_max: int = 20_000
    """Keys in one answer to ``roots.log``: it has fewer versions where versions wrote many keys."""
    since_versions_max: int = 1000
    """Versions in one answer to ``roots.since``."""
    searches_max: int = 1000
    """Searches in histories that run at the same time. More are refused with Overloaded."""
    searches_client_max: int = 250
    """Of one client."""
    search_versions_per_turn: int = 100
    """Versions that one turn of a search compares: about 3 ms."""
    creations_max: int = 1000
    """Namespaces whose initial directory is being verified. More are refused with Overloaded."""
    creations_client_max: int = 250
    """Of one client."""
    creation_steps_per_turn: int = 2000
    """Steps of that verification in one turn: about 4 ms."""
    checkpoints_max: int = 100
    """Checkpoints that run or wait. More are refused."""
    checkpoints_client_max: int = 25
    """Of one client."""
    checkpoint_nodes_per_turn: int = 100
    """Nodes that a checkpoint reads in one turn: about 2 ms, so that commits go on while a large store is saved."""
    values: ValueHistoryLimits = ValueHistoryLimits()
    """The past values of single keys."""
    hold: WatchHoldLimits = WatchHoldLimits()
    """What watches need of versions."""


class GcLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of garbage collection."""

    bytes_min: int = 12 << 20
    """A collection begins when this much was stored since the last one, or as much as the nodes that it had to mark,
    whichever is more (``Collector._slack``). So it costs a fraction of what was stored, and what is stored beyond the
    bound of history is bounded by the same amount."""
    grace_s: float = 600.0
    """How long a blob that a client stored may wait for the commit that refers to it: the time of a value of 100 GB
    that is stored with 200 MB/s."""
    nodes_per_turn: int = 200
    """Nodes marked in one turn, about 1 ms, and ``nodes_per_stored_blob`` more for each blob stored since the last
    turn, up to ``nodes_per_turn_max``: marking must be faster than storing, or it never ends."""
    nodes_per_stored_blob: int = 2
    """Further nodes marked in a turn for each blob stored since the last one."""
    nodes_per_turn_max: int = 2000
    """Nodes marked in a turn at most."""
    sweep_blobs_per_node: int = 25
    """Blobs swept in the time in which one node is marked."""
    trim_bytes: int = 64 << 20
    """When a collection has freed so much, and a quarter of what the store still has, free memory is given back to the
    kernel, which takes up to 60 ms each time. A store that stays as large as it is would only allocate it again."""
    runs_max: int = 1000
    """Requests that wait for a collection. More are refused with Overloaded."""
    runs_client_max: int = 250
    """Of one client."""
    pressed_grace_s: float = 60.0
    """``grace_s`` in a collection that begins because the store is full."""
    interval_s: float = 30.0
    """A collection begins, although little was stored, so long after the last one, if a version was made since then and
    the store is not small: a large directory may have been unlinked."""


class SpaceLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Shares of the store's bound in bytes, and times, at which ``StoreSpace`` does what."""

    reserve_share: float = 1 / 16
    """Beyond the bound, for the nodes of commits: a full store can be emptied."""
    pressed_share: float = 0.75
    """A collection under pressure drops history down to this share."""
    warn_share: float = 0.75
    """A warning is given when a collection leaves more."""
    rearm_share: float = 0.625
    """A further warning is possible after a collection that left less."""
    retry_s: float = 1.0
    """After a collection under pressure that made no room, commits are refused for so long without another one, unless
    a version was made or a lease ended. ``retry_durations``: or for so many times its duration, if that is longer."""
    retry_durations: float = 4.0
    """See ``retry_s``."""


MVCC_LIMITS = MvccLimits()
"""The defaults."""
SPACE_LIMITS = SpaceLimits()
HISTORY_BYTES_MAX = 512 << 20
"""Default bound of a namespace's history; less where the memory is smaller (``drivers/start``)."""
