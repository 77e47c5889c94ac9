"""Validation of watch requests."""

from __future__ import annotations

from fluxmpi.errors import InvalidRequest
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.wire import WINDOW_MAX, WatchRequest


def pattern_of(watch: WatchRequest) -> Pattern:
    """Return the pattern of a watch. Raises InvalidRequest, InvalidKey."""
    if not 0 < watch.window <= WINDOW_MAX:
        raise InvalidRequest(f"a watch's window must be 1 to {WINDOW_MAX:,} bytes, not {watch.window:,}")
    if watch.count < 0:
        raise InvalidRequest(f"a watch's count must be 1 or more, or 0 for no end, not {watch.count}")
    if watch.after is not None and watch.after < 0:
        raise InvalidRequest(f"a watch's 'after' must be a version, 0 or more, not {watch.after}")
    if watch.glob and watch.recursive:
        raise InvalidRequest(
            f"'{watch.key}' cannot be both a pattern and a directory: use the pattern 'dir.**' for all below dir"
        )
    if watch.glob or watch.recursive:
        if not watch.uniq:
            raise InvalidRequest("rewrites are reported for one key only, not for a directory or a pattern")
        return Pattern.glob(watch.key) if watch.glob else Pattern.below(watch.key)
    return Pattern.key(watch.key)
