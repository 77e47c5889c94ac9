"""Limits of fences. The broker's Config carries them; tests pass smaller ones."""

from __future__ import annotations

import msgspec


class FenceLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Bounds of fences at one broker; those of broken fences, and the last two, at rank 0."""

    hold_s: float = 0.002
    """How long a broker holds contributions until as many are there as in the last fence of that size."""

    sizes_max: int = 1024
    """Sizes of fences for which that number is remembered."""

    fences_max: int = 100_000
    """Incomplete fences at one broker."""

    waiting_client_max: int = 25_000
    """Contributions of one client that wait at its broker. More are refused with Overloaded."""

    waiting_max: int = 200_000
    """Of all clients of a broker."""

    bytes_client_max: int = 64 << 20
    """Bytes of these contributions. More are refused with Overloaded."""

    bytes_max: int = 256 << 20
    """Bytes of all contributions at one broker, those of its children included; rank 0 has them twice. A client's or a
    child's that would exceed it is refused with Overloaded."""

    size_max: int = 10_000_000
    """Contributions to one fence."""

    message_ops: int = 10_000
    """Operations in one message to the parent, so that its turn takes about 5 ms at most. Encoded ones do not count."""

    broken_s: float = 30.0
    """How long the name of a broken fence is remembered for members that have not arrived yet."""

    broken_max: int = 10_000
    """Names of broken fences that are remembered. Past it the oldest is forgotten."""

    broken_clients_max: int = 1_000_000
    """Members of broken fences that have got the error, all fences together. Past it the oldest fence is forgotten."""

    grace_s: float = 2.0
    """Time for a client that lost its connection to connect again, before it counts as gone."""

    missing_max: int = 100_000
    """Members that are waited or searched for at a time. Past it, one that lost its connection counts as gone at once."""


FENCE_LIMITS = FenceLimits()
"""The defaults."""
