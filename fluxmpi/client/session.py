"""A client's session: the versions that it has seen, and the ids of its commits.

It continues from one connection to the next, at any broker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxmpi.kvs.wire import CommitId

if TYPE_CHECKING:
    from fluxmpi.client.protocol import Call


class Session:
    """A client's identity across connections. Pass it to ``fluxmpi.connect(session=…)``; the rest is for fluxmpi itself.

    Attributes:
        client: the client's name in the instance.
        instance: the instance that it is of; empty before the first broker's greeting.
        versions: the highest version of each namespace that the client has read or written.
        unanswered: pending calls that are safe to resend, by identity, in their order.
        last_commit: the last answer to a commit: as bytes, decoded, and as a snapshot. Commits that share a version have equal
            answers.
    """

    def __init__(self, client: str) -> None:
        self.client = client
        self.versions: dict[str, int] = {}
        self.instance = ""
        self.unanswered: dict[int, Call] = {}
        self.last_commit: tuple[bytes | None, Any, Any] = None, None, None
        self._serial = 0
        self._unanswered: dict[int, None] = {}

    def forked(self, client: str) -> None:
        """Take a new name, in a child process: its commits must not be mistaken for those of the parent."""
        self.client = client
        self.unanswered.clear()
        self._unanswered.clear()
        self._serial = 0

    def saw(self, namespace: str, version: int) -> None:
        """Note that the client has seen a version."""
        if version > self.versions.get(namespace, 0):
            self.versions[namespace] = version

    def at_least(self, namespace: str) -> int:
        """Return the lowest version that the client may read: the highest that it has seen."""
        return self.versions.get(namespace, 0)

    @property
    def acked(self) -> int:
        """The highest serial up to which all commits are answered."""
        return next(iter(self._unanswered), self._serial + 1) - 1

    def commit_id(self) -> CommitId:
        """Return the next commit's id; ``answered`` must be called with its serial when its answer arrives."""
        self._serial += 1
        self._unanswered[self._serial] = None
        return CommitId(self.client, self._serial)

    def answered(self, serial: int) -> None:
        """Note that a commit is answered."""
        self._unanswered.pop(serial, None)
