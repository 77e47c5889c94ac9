"""A client's session: what one client has read and written, and how its commits are named. It goes with the client from one
connection to the next, at whatever broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxmpi.kvs.wire import CommitId

if TYPE_CHECKING:
    from fluxmpi.client.protocol import Call


class Session:
    """See the module's text. ``client`` names it in the instance."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.versions: dict[str, int] = {}
        self.instance = ""
        """The one that it is of, once a broker has greeted it."""
        self.unanswered: dict[int, Call] = {}
        """Calls of RESENT, by identity, in the order in which they were made."""
        self.told: tuple[bytes | None, Any, Any] = None, None, None
        """The answer to a commit that came last, and what it says: of all commits that share a version it is the same."""
        self._serial = 0
        self._unanswered: dict[int, None] = {}

    def forked(self, client: str) -> None:
        """This is a copy, in a child process: what it sends must not be taken for what the other one sends."""
        self.client = client
        self.unanswered.clear()
        self._unanswered.clear()
        self._serial = 0

    def saw(self, namespace: str, version: int) -> None:
        if version > self.versions.get(namespace, 0):
            self.versions[namespace] = version

    def at_least(self, namespace: str) -> int:
        return self.versions.get(namespace, 0)

    @property
    def acked(self) -> int:
        """All serials up to this one have been answered."""
        return next(iter(self._unanswered), self._serial + 1) - 1

    def commit_id(self) -> CommitId:
        """The next commit's name; call ``answered`` with its serial once its answer has arrived."""
        self._serial += 1
        self._unanswered[self._serial] = None
        return CommitId(self.client, self._serial)

    def answered(self, serial: int) -> None:
        self._unanswered.pop(serial, None)
