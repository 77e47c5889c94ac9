"""Watcher: one watch of one client, its state, its cursors, and its flow control.

A watcher's position is one cursor per namespace, ``next_version``: the first version that it was not given. A version
before it was evaluated, is in ``pending``, or changes nothing that is watched. The watch's own namespace has a cursor
from the beginning; a link into another namespace adds one. As in etcd (``mvcc/watcher_group.go``), a watcher is
*synced* while new versions that match are handed to it, and *unsynced* while it reads versions from the log.

    state     event: method                                      next      next_version of the own namespace
    ────────  ─────────────────────────────────────────────────  ────────  ──────────────────────────────────────────
    WAITING   the namespace exists: begin                        SYNCED    newest + 1; the newest version is pending
              … and the watch has ``after``: begin               UNSYNCED  after
    SYNCED    the index matched a version: accept                SYNCED    that version + 1; it is pending
              the index gave up matching: fall_behind            UNSYNCED  the first version not matched
    UNSYNCED  nothing is pending: take_page                      UNSYNCED  the last of the page + 1; all are pending
              … and the log has no later version: catch_up       SYNCED    newest + 1
    both      a link was found, any version may match: rewind    UNSYNCED  the version under evaluation + 1
              mode ``latest`` skips versions: skip_to            SYNCED    newest + 1; the newest version is pending
              the first version was collected: restart           WAITING   0
    any       cancelled, count reached, error, client gone: end  ENDED

A version of a linked namespace is accepted in any state but ENDED; the log of such a namespace is not read.

Flow control is credit-based: a watcher may send while its unacknowledged bytes are less than its ``window``, and those
of all watches of its client less than ``credit_bytes_max``. Past that, memory per watch is bounded: the place in the
diff of the version that is being sent, and ``queue_max`` pending versions, past which the stream ends with Overloaded.

Invariants: versions of one namespace are evaluated in order, none twice; only the methods here change a watcher's
state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from fluxmpi.errors import InvalidRequest, Overloaded, SnapshotCollected
from fluxmpi.kvs.objects import Object, ValRef
from fluxmpi.kvs.store.diff import Diff
from fluxmpi.kvs.store.lookup import Lookup
from fluxmpi.kvs.store.pattern import Pattern
from fluxmpi.kvs.watch.handed import Handed
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.wire import NOTIFICATION_BYTES, KeyChange, Notification, RootInfo, WatchRequest
from fluxmpi.message import MORE, Message, reply

UNREAD_BYTES_MAX = 1 << 20
"""A watch that fails ends when its client has not moved past fewer bytes of values. A client acknowledges at the latest
when it has moved past as many."""

NO_APPENDS: dict[str, list[int]] = {}
"""The appends of a version that made none."""


class WatcherState(Enum):
    WAITING, UNSYNCED, SYNCED, ENDED = range(4)


@dataclass(slots=True)
class Match:
    """A version to evaluate.

    ``before``: the version before it, if known; it changed nothing that is watched, nor did any other since the last
    match. ``written``: this version wrote the watched key, perhaps with the value that it had. ``appends``: the keys that
    it only appended to, as in ``Setroot``; None if they are not known.
    """

    root: RootInfo
    before: RootInfo | None = None
    written: bool = False
    appends: dict[str, list[int]] | None = None


@dataclass(slots=True)
class Cursor:
    """A watcher's position in one namespace. ``root``: of the version evaluated last, in which links are resolved."""

    next_version: int = 0
    root: RootInfo | None = None


class WatchClient:
    """One client's watches by tag, and the credit that they share."""

    __slots__ = ("_blocked", "credit_bytes_max", "limits", "unacknowledged", "unblocking", "watchers")

    def __init__(self, limits: WatchLimits) -> None:
        self.limits = limits
        self.credit_bytes_max = limits.credit_bytes_max
        self.watchers: dict[int, Watcher] = {}
        self.unacknowledged = 0
        self._blocked: dict[Watcher, None] = {}
        """Watchers that have credit of their own, while the client has none."""
        self.unblocking = False
        """A chore wakes these."""

    def add(self, watcher: Watcher) -> None:
        self.watchers[watcher.tag] = watcher

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher, and what it sent."""
        del self.watchers[watcher.tag]
        self._blocked.pop(watcher, None)
        self.unacknowledged -= watcher.unacknowledged

    @property
    def has_credit(self) -> bool:
        return self.unacknowledged < self.credit_bytes_max

    def block(self, watcher: Watcher) -> None:
        """Keep a watcher until the client has credit again."""
        self._blocked[watcher] = None

    def is_blocked(self, watcher: Watcher) -> bool:
        return watcher in self._blocked

    def start_unblocking(self) -> bool:
        """Return True if blocked watchers must be woken, and no chore does so yet."""
        if self.unblocking or not self._blocked or not self.has_credit:
            return False
        self.unblocking = True
        return True

    def unblock(self) -> Watcher | None:
        """Return the next blocked watcher to wake; None ends the chore."""
        if self._blocked and self.has_credit:
            watcher = next(iter(self._blocked))
            del self._blocked[watcher]
            return watcher
        self.unblocking = False
        return None

    def check(self) -> None:
        assert self.watchers, "a client without watches is kept"
        assert self.unacknowledged == sum(watcher.unacknowledged for watcher in self.watchers.values())
        assert self.unblocking or not self._blocked or not self.has_credit, "a client's watches are stuck"


EarlierState = tuple[RootInfo | None, Object | None, tuple[str, str] | None, bool, int, int]
"""What an evaluation changes: the own cursor's root, ``object``, ``resolved``, ``begun``, ``notified_version``, ``counted``."""


@dataclass(slots=True, eq=False)
class Watcher:
    msg: Message
    watch: WatchRequest
    pattern: Pattern
    client: WatchClient
    key: str = field(init=False)
    """The watched key or directory, or the literal beginning of the pattern; without a trailing dot."""
    state: WatcherState = field(default=WatcherState.WAITING, init=False)
    own: Cursor = field(default_factory=Cursor, init=False)
    """Of the watch's namespace."""
    cursors: dict[str, Cursor] = field(init=False)
    """By namespace: the own one, and those that links led into."""
    pending: deque[Match] = field(default_factory=deque, init=False)
    """Versions to evaluate: matched by the index while synced, from the log while unsynced."""
    object: Object | None = field(default=None, init=False)
    """What is stored at ``key`` in the version evaluated last."""
    resolved: tuple[str, str] | None = field(default=None, init=False)
    """Where: namespace and key, links resolved."""
    linked: bool = field(default=False, init=False)
    """``key`` leads through a link: every version may match."""
    notified_version: int = field(default=-1, init=False)
    """The client was notified of all changes up to this version of the own namespace; -1 before the first notification.
    """
    begun: bool = field(default=False, init=False)
    """The first notification was sent."""
    diff: Diff | None = field(default=None, init=False)
    """Of the version that is being sent in parts, ``sending``; ``has_changes``: some of them had changes."""
    sending: RootInfo | None = field(default=None, init=False)
    has_changes: bool = field(default=False, init=False)
    counted: int = field(default=0, init=False)
    """Versions that were sent with changes."""
    progress: RootInfo | None = field(default=None, init=False)
    """The client asked for a notification when the watcher has reached this version."""
    unacknowledged: int = field(default=0, init=False)
    """Bytes of credit in use."""
    busy: bool = field(default=False, init=False)
    """An evaluation is under way, or rank 0 was asked for versions."""
    ready: bool = field(default=False, init=False)
    """Queued for its next evaluation."""
    by_reference: bool = field(default=False, init=False)
    """Notifications refer to values: rank 0 keeps versions for it (``needs``)."""
    confirmed_root: RootInfo | None = field(default=None, init=False)
    """Rank 0 has confirmed that it keeps this version; in mode ``every`` all later ones too."""
    failure: SnapshotCollected | None = field(default=None, init=False)
    """What ends it as soon as its client has read what it was notified of; it stays busy until then."""
    waits_for: RootInfo | None = field(default=None, init=False)
    """The version that it was asked about."""
    refers: bool = field(default=False, init=False)
    """The last notification refers to values."""
    handed: Handed | None = field(default=None, init=False)
    """Notifications that refer to values, and that the client has not moved past."""
    unsent: list[Message] = field(default_factory=list, init=False)
    """The notification that waits for rank 0's confirmation that its version is kept."""
    earlier: EarlierState | None = field(default=None, init=False)
    """The state before the evaluation of that version, to which ``withdraw`` returns."""

    def __post_init__(self) -> None:
        self.key = self.pattern.key_of_prefix
        self.cursors = {self.watch.namespace: self.own}

    @property
    def tag(self) -> int:
        return self.msg.tag

    @property
    def hop(self) -> int:
        return self.msg.route[0]

    @property
    def is_following(self) -> bool:
        """Synced or unsynced."""
        return self.state in (WatcherState.SYNCED, WatcherState.UNSYNCED)

    @property
    def ended(self) -> bool:
        return self.state is WatcherState.ENDED

    # ----------------------------------------------------------------------------------------------- position and state

    def begin(self, newest: RootInfo) -> None:
        """Begin at the namespace's newest version, or at ``after``."""
        assert self.state is WatcherState.WAITING
        after = self.watch.after
        if after is None:
            self.state = WatcherState.SYNCED
            self.accept(newest)
        else:
            self.state = WatcherState.UNSYNCED
            self.own.next_version = after

    def accept(
        self,
        root: RootInfo,
        before: RootInfo | None = None,
        keys: Sequence[str] | None = None,
        appends: dict[str, list[int]] | None = None,
        by_reference: bool = False,
    ) -> bool:
        """Take a version that the index matched, unless the watcher was given it or reads it from the log.

        ``keys``: those that the version changed, if known; ``appends``: those that it only appended to. False:
        ``queue_max`` versions are pending.
        """
        cursor = self.cursors[root.namespace]
        own = cursor is self.own
        state = self.state
        if (
            root.version < cursor.next_version
            or state is WatcherState.ENDED
            or (own and state is not WatcherState.SYNCED)
        ):
            return True
        cursor.next_version = root.version + 1
        self.by_reference |= by_reference
        written = keys is not None and not self.watch.uniq and self._is_key_in(root.namespace, keys)
        return self._add(Match(root, before if own else None, written, None if keys is None else appends or NO_APPENDS))

    def _is_key_in(self, namespace: str, keys: Sequence[str]) -> bool:
        """Whether the watched key is among ``keys``, or what its links led to in the version evaluated last."""
        where, key = self.resolved or (self.watch.namespace, self.key)
        return where == namespace and key in keys

    def _add(self, match: Match) -> bool:
        """Append a pending version. In mode ``latest`` it replaces the one of its namespace."""
        if self.watch.latest:
            for waiting in self.pending:
                if waiting.root.namespace == match.root.namespace:
                    waiting.root = match.root
                    waiting.written |= match.written
                    waiting.appends = None
                    return True
        if len(self.pending) >= self.client.limits.queue_max:
            return False
        self.pending.append(match)
        return True

    def fall_behind(self, version: int, newest: RootInfo) -> bool:
        """Read the versions from ``version`` up to ``newest`` from the log.

        The index did not match them, so any of them may match.

        False: they are of a linked namespace, whose log is not read.
        """
        cursor = self.cursors[newest.namespace]
        own = cursor is self.own
        if newest.version < cursor.next_version or self.ended or (own and self.state is not WatcherState.SYNCED):
            return True
        if self.watch.latest:
            return self.accept(newest)
        if own:
            self.state = WatcherState.UNSYNCED
            cursor.next_version = max(cursor.next_version, version)
        return own

    @property
    def needs_page(self) -> bool:
        """True if it has to read the version log."""
        return self.state is WatcherState.UNSYNCED and not self.pending

    def take_page(self, roots: Sequence[RootInfo]) -> None:
        """Take the next versions of the log, without a gap."""
        assert self.needs_page
        assert roots[0].version == self.own.next_version
        self.pending.extend(map(Match, roots))
        self.own.next_version = roots[-1].version + 1

    def catch_up(self, newest: int) -> None:
        """End reading the log, which has no later version than ``newest``; take matched versions again."""
        assert self.needs_page
        assert self.own.next_version > newest
        self.state = WatcherState.SYNCED

    def rewind(self) -> None:
        """Read all versions after the one under evaluation from the log."""
        assert self.is_following
        self._drop_pending()
        self.state = WatcherState.UNSYNCED
        assert self.own.root is not None
        self.own.next_version = self.own.root.version + 1

    def skip_to(self, newest: RootInfo) -> None:
        """Evaluate no version between the one under evaluation and the newest, in mode ``latest``."""
        assert self.is_following
        self.state = WatcherState.SYNCED
        self.own.next_version = newest.version + 1
        before = self.own.root
        assert before is not None
        if newest.version > before.version:
            self._add(Match(newest, before))

    def restart(self) -> None:
        """Wait for a later version than the first, which was collected before anything was sent."""
        assert self.is_following
        assert not self.begun
        assert self.own.root is not None
        self._drop_pending()
        self.watch.at_least = self.own.root.version + 1
        self.state = WatcherState.WAITING
        self.own.next_version, self.own.root = 0, None
        self.object = self.diff = self.sending = None

    def _drop_pending(self) -> None:
        own = self.watch.namespace
        self.pending = deque(match for match in self.pending if match.root.namespace != own)

    def link(self) -> None:
        """Note that the key leads through a link."""
        self.linked = True

    def add_cursor(self, newest: RootInfo) -> None:
        """Begin at the newest version of another namespace, which a link leads into."""
        if newest.namespace not in self.cursors:
            self.cursors[newest.namespace] = Cursor(newest.version + 1, newest)

    def unlink(self, removed: RootInfo) -> bool:
        """Take the removal of a linked namespace as a version. False if the namespace exists again."""
        cursor = self.cursors[removed.namespace]
        if self.ended or removed.version + 1 < cursor.next_version:
            return False
        cursor.next_version = removed.version + 1
        match = Match(removed)
        if not self._add(match):
            self.pending.append(match)  # one over the limit: no version of that namespace follows until it exists again
        return True

    def end(self) -> None:
        """Send nothing more. An evaluation under way ends at its next step."""
        self.state = WatcherState.ENDED

    def clear(self) -> None:
        """Free the memory of an ended watcher."""
        self.pending.clear()
        self.diff = self.sending = None

    # ------------------------------------------------------------------------------------------------------- evaluation

    @property
    def has_work(self) -> bool:
        """True if there is a version to evaluate, or a part of one, or a page of the log to read."""
        return bool(self.pending or self.diff is not None or self.state is WatcherState.UNSYNCED)

    def queue(self, progress: bool) -> bool:
        """Queue for an evaluation, if there is work. ``progress``: the client must be notified of progress.

        False: no work, queued already, under evaluation, or ended.
        """
        if self.ready or self.busy or self.state is WatcherState.ENDED:
            return False
        self.ready = progress or self.has_work
        return self.ready

    def start(self) -> bool:
        """Leave the queue and start an evaluation. False: the watcher has ended, or has no credit."""
        self.ready = False
        self.busy = self.state is not WatcherState.ENDED and self.may_send()
        return self.busy

    def stop(self) -> bool:
        """End an evaluation. True: it was the last, ``count`` versions were sent."""
        self.busy = False
        return 0 < self.watch.count <= self.counted

    def take(self) -> Match | None:
        """Take the next version to evaluate."""
        return self.pending.popleft() if self.pending else None

    def move_to(self, root: RootInfo) -> None:
        """Begin to evaluate a version, together with the versions of other namespaces that were evaluated last."""
        self.cursors[root.namespace].root = root

    def found(self, obj: Object | None, lookup: Lookup) -> None:
        """Keep what is stored at ``key`` in this version, and where."""
        self.object = obj
        self.resolved = lookup.namespace, lookup.resolved_key

    def send_parts(self, root: RootInfo, diff: Diff) -> None:
        """Send the changes of this version in parts, as ``diff`` finds them."""
        self.sending, self.diff = root, diff

    # ----------------------------------------------------------------------------------------- notifications and credit

    def notify(self, root: RootInfo, changes: list[KeyChange], more: bool = False) -> list[Message]:
        """Send the changes of a version, or a part of them if ``more`` follow.

        Nothing is sent if there are none, except the first time.
        """
        out = []
        if changes or (not more and (self.has_changes or not self.begun)):
            out.append(self._send(root, changes, more))
            self.begun = True
            self.has_changes |= bool(changes)
        if not more:
            self.diff = self.sending = None
            if root.namespace == self.watch.namespace:
                self.notified_version = root.version
            self.counted += self.has_changes
            self.has_changes = False
        return out

    def ask_progress(self, newest: RootInfo) -> None:
        self.progress = newest

    def notify_progress(self) -> Message:
        """Send that the client was notified of everything up to the version that it asked about, or a later one."""
        root, seen = self.progress, self.own.root
        assert root is not None
        assert seen is not None
        if root.version < seen.version:
            root = seen
        self.progress = None
        self.notified_version = root.version
        return self._send(root, [], False)

    def _send(self, root: RootInfo, changes: list[KeyChange], more: bool) -> Message:
        body = Notification(root.version, root.ref, root.time, changes, root.namespace, more)
        msg = reply(self.msg, body, MORE)
        size = len(msg.body) + NOTIFICATION_BYTES
        referenced = 0
        for change in changes:
            if type(change.object) is ValRef:
                referenced += change.object.size
        self.refers = referenced > 0
        if referenced and self.handed is None:
            self.by_reference = True
            self.handed = Handed(self.unacknowledged)
        if self.handed is not None:
            seen = [cursor.root for cursor in self.cursors.values() if cursor.root is not None and cursor.root.ref]
            self.handed.add(size, referenced, seen)
        self.unacknowledged += size
        self.client.unacknowledged += size
        return msg

    def acknowledge(self, size: int) -> bool:
        """Return credit. Raises InvalidRequest for more than is unacknowledged.

        True: the client has moved past a version that is kept for it.
        """
        if not 0 <= size <= self.unacknowledged:
            raise InvalidRequest(
                f"watch {self.tag}: {size:,} bytes are acknowledged, and {self.unacknowledged:,} are unacknowledged"
            )
        self.unacknowledged -= size
        self.client.unacknowledged -= size
        return self.handed is not None and self.handed.acknowledge(size)

    @property
    def has_credit(self) -> bool:
        """There is credit of its own, in bytes of notifications and of values that they refer to."""
        handed = self.handed
        if handed is not None and handed.bytes >= self.client.limits.handed_bytes_max:
            return False
        return self.unacknowledged < self.watch.window

    def may_send(self) -> bool:
        """Whether there is credit. A watcher that lacks only its client's is blocked until the client has some."""
        if not self.has_credit:
            return False
        client = self.client
        if client.unacknowledged >= client.credit_bytes_max:
            client.block(self)
            return False
        return True

    # --------------------------------------------------------------------------------------- versions that rank 0 keeps

    def keep_state(self) -> None:
        """Keep the state before an evaluation, which may have to be withdrawn."""
        self.earlier = (self.own.root, self.object, self.resolved, self.begun, self.notified_version, self.counted)

    def withdraw(self) -> None:
        """Undo the evaluation whose notification was not sent: its version has gone."""
        size = sum(len(msg.body) + NOTIFICATION_BYTES for msg in self.unsent)
        self.unacknowledged -= size
        self.client.unacknowledged -= size
        if self.unsent and self.handed is not None:
            self.handed.withdraw(size)
        self.unsent = []
        self.diff = self.sending = None
        self.has_changes = False
        self._drop_pending()  # they begin after this version
        if self.earlier is not None:
            root, self.object, self.resolved, self.begun, self.notified_version, self.counted = self.earlier
            self.own.root = root or self.own.root

    def confirmed(self) -> list[Message]:
        """Return the notification that waited: its version is kept."""
        self.confirmed_root, self.waits_for = self.waits_for, None
        out, self.unsent = self.unsent, []
        return out

    # ----------------------------------------------------------------------------------------------------------- errors

    def _resume_text(self) -> str:
        """Say how the client continues without a gap."""
        version = self.notified_version
        if version < 0:
            return "nothing was notified yet: watch again, and read faster"
        return f"changes up to version {version} were notified: watch again with after={version}"

    def lag_error(self) -> Overloaded:
        """Return the error of a watcher with too many pending versions, with the version to resume from."""
        return Overloaded(f"the watch lags {self.client.limits.queue_max:,} versions behind; {self._resume_text()}")

    def fail_later(self, error: SnapshotCollected) -> bool:
        """Keep the error until the client has moved past the long values that it was notified of. False: end now."""
        self.failure = error if self.handed is not None and self.handed.bytes >= UNREAD_BYTES_MAX else None
        return self.failure is not None

    def collected_error(self, gone: RootInfo | None = None) -> SnapshotCollected:
        """Return the error of a watcher that needs a version that is not kept, with the version to resume from."""
        root = gone or self.sending or self.own.root
        version = "a version" if root is None else f"version {root.version} of {root.namespace}"
        return SnapshotCollected(
            f"{version}, which the watch has to evaluate, is not kept any more; {self._resume_text()}"
        )

    def check(self) -> None:
        if self.ended:
            return
        own = self.watch.namespace
        if self.state is WatcherState.WAITING:
            assert all(match.root.namespace != own for match in self.pending)
        for namespace, cursor in self.cursors.items():
            versions = [
                (match.root.version, not match.root.ref) for match in self.pending if match.root.namespace == namespace
            ]
            assert versions == sorted(set(versions)), "a watcher's pending versions are out of order"
            assert not versions or versions[-1][0] < cursor.next_version, "a pending version would be taken again"
            assert not self.watch.latest or len(versions) <= 1
        assert (self.diff is None) == (self.sending is None)
