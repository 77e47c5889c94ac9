"""Limits of a broker's watches."""

from __future__ import annotations

import msgspec

from fluxmpi.kvs.wire import WINDOW_MAX


class WatchLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of memory, and of the work of one turn of the loop.

    A turn's work is counted in evaluations, each about 20 µs; matching is counted in steps, each about a microsecond.
    """

    watches_max: int = 100_000
    """Watches at one broker; past that, more are refused with Overloaded."""

    watches_client_max: int = 25_000
    """Of one client; more are refused with Overloaded."""

    key_bytes_max: int = 64 << 20
    """Bytes of the keys and patterns of all watches at one broker; past that, more are refused with Overloaded."""

    key_bytes_client_max: int = 16 << 20
    """Of those of one client."""

    credit_bytes_max: int = WINDOW_MAX
    """Unacknowledged bytes of all watches of one client together. Each watch has its ``window`` beside."""

    handed_bytes_max: int = 64 << 20
    """Bytes of the values that a watch has notified by reference, and that its client has not moved past. Past that, or
    after one longer value, the next version waits."""

    queue_max: int = 5_000
    """Versions pending for one watcher; past that its stream ends with Overloaded. Half of the versions kept by
    default: the version to resume from must still be kept when the client reads the error.
    """

    page_versions: int = 256
    """Versions that an unsynced watcher takes from the version log at a time."""

    turn_evaluations: int = 300
    """Evaluations of one turn; the rest follows in the next."""

    first_evaluations: int = 150
    """Of these, what matching and chores may take while watchers are ready to be evaluated."""

    evaluation_steps: int = 20
    """Steps of matching that count as one evaluation."""

    part_evaluations: int = 60
    """Evaluations that one part of a long notification counts as."""

    chore_steps: int = 400
    """Steps of a chore made in a row."""

    chore_evaluations: int = 100
    """Evaluations that so many steps of a chore count as."""

    at_once_max: int = 16
    """A version of at most so many changed keys that matches at most so many watchers is handed to them on arrival."""

    match_all_max: int = 16
    """If the changed keys of a version are not known and there are at most so many watchers, it matches all of them."""

    match_steps: int = 2_000
    """Steps of matching made in a row."""

    hand_max: int = 400
    """Watchers that a version is handed to in a row."""

    hand_steps: int = 5
    """Steps that handing a version to one watcher counts as."""

    diff_steps: int = 1_200
    """Steps that a slice of a diff counts as, where changed keys are found by one."""

    versions_max: int = 10_000
    """Versions of a namespace pending in the watch index: as many as a replica's log has. Past that, watchers take them
    from the log.
    """

    keys_max: int = 1_000_000
    """Changed keys of these versions together: some 100 MB."""

    slice_changes: int = 200
    """Changes in one part of a notification: under 2 MiB with the longest keys and values."""

    slice_steps: int = 2_000
    """Steps of a diff in one part: about 5 ms."""


WATCH_LIMITS = WatchLimits()
"""The defaults."""
