"""The shape of the tree: the parent of every rank. Pure functions of rank and size; rank 0 is always the root.

- ``kary:K``: rank r's parent is (r - 1) // K. ``kary:2`` keeps the fan-out of rank 0 small, ``kary:16`` the depth.
- ``binomial``: rank r's parent is r with its lowest set bit cleared (the tree of MPI_Bcast), so the depth is at most
  log2(size).
- ``flat``: rank 0 is the parent of every other rank.
"""

from __future__ import annotations

from collections.abc import Callable

from fluxmpi.errors import InvalidRequest

DEFAULT = "kary:2"
FANOUT_MAX = 1024


def parent_function(topology: str) -> Callable[[int], int]:
    """Return the function from a rank >= 1 to its parent. Raises InvalidRequest for an unknown topology."""
    name, _, argument = topology.partition(":")
    if name == "kary" and argument.isascii() and argument.isdigit() and 1 <= int(argument) <= FANOUT_MAX:
        fanout = int(argument)
        return lambda rank: (rank - 1) // fanout
    if topology == "binomial":
        return lambda rank: rank & (rank - 1)
    if topology == "flat":
        return lambda rank: 0
    raise InvalidRequest(f"topology '{topology}' is not known: use kary:K (K from 1 to {FANOUT_MAX}), binomial or flat")


def parents(topology: str, size: int) -> list[int]:
    """Return the parent of every rank; that of rank 0 is -1."""
    parent = parent_function(topology)
    return [-1] + [parent(rank) for rank in range(1, size)]


def depth(topology: str, rank: int) -> int:
    """Return the number of hops from ``rank`` to rank 0."""
    parent = parent_function(topology)
    hops = 0
    while rank:
        rank = parent(rank)
        hops += 1
    return hops
