"""Routing: one broker's table of next hops, and the ranks that it knows to be lost.

The tree has one path between two ranks. So the next hop to a rank is the child whose subtree contains it, else the
parent.

Invariants: a lost rank is never a next hop (with some MPIs a send to one ends the sender); ``parent`` is -1 at rank 0
only.
"""

from __future__ import annotations

from fluxmpi.errors import NoSuchRank, RankLost
from fluxmpi.overlay import topology as shapes


class Router:
    """The neighbours of one rank, and its next hops."""

    def __init__(self, rank: int, size: int, topology: str = shapes.DEFAULT) -> None:
        if not 0 <= rank < size:
            raise NoSuchRank(f"rank {rank} is not in an instance of {size}")
        self.rank = rank
        self.size = size
        self.topology = topology
        self.parents = shapes.parents(topology, size)
        self.parent = self.parents[rank]
        self.children = [child for child in range(rank + 1, size) if self.parents[child] == rank]
        self.height = self._height()
        """Levels below this broker; 0 at a leaf."""
        self.lost: dict[int, str] = {}
        """Rank to the reason, in order of detection."""
        self.parent_ended = False
        """The parent has sent ``lifecycle.end``, and sends no heartbeats any more."""
        self._next = self._table()

    def _table(self) -> list[int]:
        """Compute the next hop to every rank. A parent has a lower number than its children, so one pass suffices."""
        table = [self.parent] * self.size
        table[self.rank] = self.rank
        for other in range(self.rank + 1, self.size):
            above = self.parents[other]
            if above == self.rank:
                table[other] = other
            elif above > self.rank and table[above] != self.parent:
                table[other] = table[above]
        return table

    def _height(self) -> int:
        heights = [0] * self.size
        for other in range(self.size - 1, self.rank, -1):
            above = self.parents[other]
            heights[above] = max(heights[above], heights[other] + 1)
        return heights[self.rank]

    def next_hop(self, target: int) -> int:
        """Return the neighbour on the path to ``target``, or this rank itself.

        Raises NoSuchRank outside the instance, RankLost if the target or the next hop to it is lost.
        """
        if not 0 <= target < self.size:
            raise NoSuchRank(f"rank {target} does not exist: the instance has ranks 0 to {self.size - 1}")
        hop = self._next[target]
        if self.lost:
            if target in self.lost:
                raise RankLost(f"rank {target} is gone: {self.lost[target]}")
            if hop in self.lost:
                raise RankLost(f"rank {target} cannot be reached: rank {hop} on the path is gone: {self.lost[hop]}")
        return hop

    def live_children(self) -> list[int]:
        """Return the children that are not lost."""
        lost = self.lost
        return [child for child in self.children if child not in lost]

    def neighbours(self) -> list[int]:
        """Return the parent, then the children, without those that are lost."""
        above = [self.parent] if self.rank and self.parent not in self.lost else []
        return above + self.live_children()

    def mark_lost(self, rank: int, reason: str) -> bool:
        """Never send to ``rank`` again. Returns False if it is marked already. Raises NoSuchRank."""
        if not 0 <= rank < self.size:
            raise NoSuchRank(f"rank {rank} does not exist: the instance has ranks 0 to {self.size - 1}")
        if rank in self.lost or rank == self.rank:
            return False
        self.lost[rank] = reason
        return True

    def statistics(self) -> dict[str, int]:
        return {"size": self.size, "children": len(self.children), "lost": len(self.lost)}

    def check(self) -> None:
        assert (self.parent == -1) == (self.rank == 0)
        assert self._next[self.rank] == self.rank
        assert all(self._next[child] == child for child in self.children)
        assert self.rank not in self.lost
