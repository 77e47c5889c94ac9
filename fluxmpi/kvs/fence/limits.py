"""Limits of fences. The broker's Config carries them; tests pass smaller ones."""

from __future__ import annotations

import msgspec


class FenceLimits(msgspec.Struct, frozen=True, gc=False):
    """Bounds of fences at one broker; the last five at rank 0."""

    hold_s: float = 0.002
    """How long a broker holds contributions until as many are there as in the last fence of that size."""

    sizes_max: int = 1024
    """Sizes of fences for which that number is remembered."""

    fences_max: int = 100_000
    """Incomplete fences at one broker."""

    size_max: int = 10_000_000
    """Contributions to one fence."""

    message_ops: int = 10_000
    """Operations in one message to the parent, so that its turn takes about 5 ms at most. Encoded ones do not count."""

    broken_s: float = 30.0
    """How long the name of a broken fence is remembered for members that have not arrived yet."""

    broken_max: int = 10_000
    """Names of broken fences that are remembered. Past it the oldest is forgotten."""

    grace_s: float = 2.0
    """Time for a client that lost its connection to connect again, before it counts as gone."""

    missing_max: int = 100_000
    """Members that are waited or searched for at a time. Past it, one that lost its connection counts as gone at once."""


FENCE_LIMITS = FenceLimits()
"""The defaults."""
