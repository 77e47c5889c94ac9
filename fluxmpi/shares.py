"""Bounded pools that the clients of a broker share: none can take all of a pool, so none can keep others from it.

A client is named by the hop of its connection at its own broker, and by the route of its requests elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from fluxmpi.errors import Overloaded
from fluxmpi.message import Message


class Pool:
    """What clients hold of something bounded: ``taken`` in total, at most ``most``, and ``share`` of one client.

    ``what`` names it in errors: watches, bytes of parked requests. A pool is empty when all is given back.
    """

    __slots__ = ("_held", "most", "share", "taken", "what")

    def __init__(self, what: str, most: int, share: int) -> None:
        self.what = what
        self.most = most
        self.share = share
        self.taken = 0
        self._held: dict[Hashable, int] = {}

    def take(self, client: Hashable, amount: int = 1, *, shared: bool = True) -> None:
        """Let a client hold ``amount`` more. Raises Overloaded, and changes nothing, past its share or the total.

        ``shared`` False: it is a broker's machine, which works for many clients and has no share.
        """
        held = self._held.get(client, 0) + amount
        if shared and held > self.share:
            raise Overloaded(
                f"this client has {held - amount:,} {self.what} at this broker, and {amount:,} more would exceed its share"
                f" of {self.share:,}: wait for some of them to end"
            )
        if self.taken + amount > self.most:
            raise Overloaded(
                f"this broker has {self.taken:,} {self.what}, and {amount:,} more would exceed its limit of"
                f" {self.most:,}: try again later"
            )
        if amount:
            self._held[client] = held
            self.taken += amount

    def give(self, client: Hashable, amount: int = 1) -> None:
        """Give back what a client took. A client that was dropped has nothing to give back."""
        held = self._held.get(client, 0)
        amount = min(amount, held)
        self.taken -= amount
        if held > amount:
            self._held[client] = held - amount
        else:
            self._held.pop(client, None)

    def drop(self, client: Hashable) -> None:
        """Give back all that a client has: it has disconnected."""
        self.taken -= self._held.pop(client, 0)

    def held(self, client: Hashable) -> int:
        """Return what a client has."""
        return self._held.get(client, 0)

    def check(self) -> None:
        """Assert the invariants."""
        assert self.taken == sum(self._held.values()) <= self.most
        assert all(held > 0 for held in self._held.values())


def take_both(client: Hashable, count: Pool, sizes: Pool, size: int) -> None:
    """Let a client hold one more of ``count`` and ``size`` more of ``sizes``. Raises Overloaded, and changes nothing."""
    count.take(client)
    try:
        sizes.take(client, size)
    except Overloaded:
        count.give(client)
        raise


def count_of_client(waiting: Iterable[Message], msg: Message) -> int:
    """Return how many of these requests are of the client that sent ``msg``: for pools that are few requests."""
    return sum(other.route == msg.route for other in waiting)
