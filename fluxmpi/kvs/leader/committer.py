"""The maker: one namespace's queue of transactions, made into versions, in slices.

    queue ──▶ placing in the version under construction ──conflict, full or the queue is empty──▶ sealing ──▶ setroot,
                                                                                                 its events, its answers

``turn`` does so much of it and keeps its place, so a transaction of any size, or a flood of small ones, stops nothing else: the
broker hears its neighbours, serves reads and makes other namespaces' versions between two turns.

Nothing that a version under construction did is seen before its setroot. So when the namespace got another root meanwhile (a
restored checkpoint), or is gone, it is thrown away, and what was in it starts over, or fails.

Invariant: an entry is in the queue, or in the version under construction, or was answered; one in the middle of placing is the
first in the queue.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import chain

import msgspec

from fluxmpi.blobref import Ref
from fluxmpi.errors import FluxmpiError, encode_error
from fluxmpi.kvs.fence.gathering import Gathering
from fluxmpi.kvs.leader.batch import LARGE_OPS, PLAIN, SLICED, Batch, Placed
from fluxmpi.kvs.leader.dedup import ClientResults, DeduplicationTable, answered_already
from fluxmpi.kvs.leader.validation import SLICE_OPS, ObjectValidator
from fluxmpi.kvs.mvcc.namespace import Namespace
from fluxmpi.kvs.store.edit import Edit, Steps
from fluxmpi.kvs.store.node import NodeCache
from fluxmpi.kvs.wire import Added, Adds, Commit, CommitId, Committed, FenceDone, OpResult, RootInfo, Setroot
from fluxmpi.message import ANY, LOCAL, OK, RESPONSE, Message, control, encode_body, reply, reply_error

VERSION_STEPS_MAX = 512
"""Operations of small transactions in one version: how long the first may wait for the others."""

SETROOT_NODES_BYTES_MAX = 16 << 10
SETROOT_KEYS_MAX = 1024


class Entry(msgspec.Struct, gc=False):
    """A transaction that waits for its turn: a commit or combined additions, with the request, or a fence that is complete.

    ``client``: what is remembered of the commit's.
    """

    msg: Message | None = None
    commit: Commit | None = None
    client: ClientResults | None = None
    adds: Adds | None = None
    gathering: Gathering | None = None

    @property
    def large(self) -> bool:
        """Some of its operations are still encoded."""
        return self.commit is not None and bool(self.commit.more or self.commit.otherwise_more)

    @property
    def ids(self) -> list[CommitId]:
        if self.commit is not None:
            return [self.commit.id]
        return [part.id for part in self.adds.parts] if self.adds is not None else list(self.gathering.parts)  # type: ignore[union-attr]


RESENT = Placed(True, False, [])
"""In a version's entries: a commit that came again before the version was sealed."""

Numbers = dict[CommitId, int]
"""What each of the combined additions made of the integer; those that failed or came again are not in it."""


@dataclass(slots=True)
class Common:
    """What the makers of all namespaces share. ``out`` is what they have to send; ``now`` the time of this turn."""

    nodes: NodeCache
    values: ObjectValidator
    results: DeduplicationTable = field(default_factory=DeduplicationTable)
    completed: dict[CommitId, None] = field(default_factory=dict)
    """Contributors of the fences that are complete, and not done yet."""
    out: list[Message] = field(default_factory=list)
    now: float = 0.0
    commits: int = 0
    merged: int = 0
    resent: int = 0
    failed: int = 0
    added: int = 0
    """Additions that came combined, in ``combined`` messages."""
    combined: int = 0


class Committer:
    def __init__(self, common: Common, namespace: Namespace) -> None:
        self.namespace = namespace
        self.queue: deque[Entry] = deque()
        self._common = common
        self._version: Batch | None = None
        self._base = namespace.root
        """What the version under construction follows."""
        self._work: Steps[None] | None = None

    @property
    def between(self) -> bool:
        """It stopped in the middle of something."""
        return self._work is not None

    def turn(self, steps: int) -> bool:
        """Go on for about so many steps; True when all is done."""
        if self._work is not None and self._base is not self.namespace.root:
            self.start_over()
        if self._work is None:
            self._work = self._make()
        for done in self._work:
            steps -= done
            if steps <= 0:
                return False
        self._work = self._version = None
        return not self.queue  # the last version was sealed over several turns, and something came meanwhile

    def start_over(self) -> None:
        """Forget the version under construction; what is in it is at the head of the queue again."""
        if self._work is not None:
            self._work.close()
        if self._version is not None:
            self.queue.extendleft(entry for entry, _ in reversed(self._version.entries))
        self._work = self._version = None

    def refuse_all(self, error: FluxmpiError) -> None:
        """The namespace is gone: nothing that waits can be done any more."""
        self.start_over()
        while self.queue:
            entry = self.queue[0]
            if entry.commit is None or not self._known(entry, None):
                self._refuse(entry, error)
            self.queue.popleft()

    # --------------------------------------------------------------------------------------------------------- making

    def _make(self) -> Steps[None]:
        """Turn the queue into versions, in order of arrival."""
        queue = self.queue
        edit = Edit(self._common.nodes, self.namespace.root.ref, self.namespace.root.namespace)
        version = self._begin(edit)
        idle = 0
        while queue:
            entry = queue[0]
            commit = entry.commit
            full = False
            if commit is not None and self._known(entry, version):
                queue.popleft()
            else:
                try:
                    if entry.adds is not None:
                        full = not self._place_adds(entry, entry.adds, version)
                    else:
                        simple = commit is not None and not commit.guards and not commit.more
                        placed = version.place_plain(commit.ops) if simple else SLICED  # type: ignore[union-attr]
                        if placed is SLICED:
                            placed = yield from self._placing(entry, version)
                        full = placed is None
                        if placed is PLAIN and simple:
                            version.entries.append((entry, PLAIN))
                            version.ids[commit.id] = None  # type: ignore[union-attr]
                            if commit.events:  # type: ignore[union-attr]
                                version.events += commit.events  # type: ignore[union-attr]
                        elif placed is not None:
                            self._placed(entry, placed, version)
                    if not full:
                        queue.popleft()
                except FluxmpiError as error:
                    queue.popleft()
                    self._refuse(entry, error)
            if full or version.full or version.steps >= VERSION_STEPS_MAX:
                yield from self._seal(version)
                version = self._begin(edit)
            idle += 1
            if not idle % SLICE_OPS:
                yield SLICE_OPS
        if not version.empty:
            yield from self._seal(version)

    def _begin(self, edit: Edit) -> Batch:
        self._base = root = self.namespace.root
        self._version = version = Batch(root.version + 1, edit, self._common.values, self._last_change)
        return version

    def _last_change(self, key: str) -> tuple[int, bool]:
        return self.namespace.last_change(key, self._common.nodes)

    def _placing(self, entry: Entry, version: Batch) -> Steps[Placed | None]:
        commit = entry.commit
        if commit is not None:
            return version.placing(commit.ops, commit.more, commit.guards, commit.otherwise, commit.otherwise_more)
        assert entry.gathering is not None
        pieces = entry.gathering.pieces(LARGE_OPS)
        first, second = next(pieces, []), next(pieces, None)
        assert type(first) is list, "encoded pieces come behind the others of their contribution"
        return version.placing(first, () if second is None else chain([second], pieces))

    def _placed(self, entry: Entry, placed: Placed, version: Batch) -> None:
        """It is in the version; or it did nothing, and is answered with the version as it was."""
        commit, gathering = entry.commit, entry.gathering
        if not placed.made:
            root = self.namespace.root
            body = encode_body(Committed(root.namespace, root.version, root.ref, root.time, False))
            self._answer(entry, body)
            return
        version.entries.append((entry, placed))
        if commit is not None:
            version.ids[commit.id] = None
            if placed.succeeded and commit.events:
                version.events += commit.events
        elif gathering is not None:
            version.fences.append(FenceDone(gathering.namespace, gathering.name, list(gathering.parts), version.number))

    def _place_adds(self, entry: Entry, adds: Adds, version: Batch) -> bool:
        """Combined additions: those that were not made before. False when they are to be in another version."""
        if any(part.id in version.ids for part in adds.parts):
            return False
        client = self._common.results.client
        fresh: dict[CommitId, int] = {}
        for part in adds.parts:
            known = client(part.id.client)
            if part.id.serial > known.acked and part.id.serial not in known.results:
                fresh.setdefault(part.id, part.amount)
        made = version.place_adds(adds.key, list(fresh.values()))
        if made is None:
            return False
        numbers: Numbers = {}
        for name, number in zip(fresh, made, strict=True):
            if isinstance(number, FluxmpiError):
                self._common.failed += 1
                client(name.client).remember(name.serial, *encode_error(number))
            else:
                numbers[name] = number
        if numbers:
            version.entries.append((entry, numbers))
            version.ids.update(dict.fromkeys(numbers))
        else:
            self._answer_adds(entry, adds, numbers, self.namespace.root)
        return True

    def _known(self, entry: Entry, version: Batch | None) -> bool:
        """A commit that was sent again is answered, not applied: at once, or with the version that it is in."""
        msg, client, commit_id = entry.msg, entry.client, entry.commit.id  # type: ignore[union-attr]
        assert msg is not None
        assert client is not None
        if version is not None and commit_id in version.ids:
            version.entries.append((entry, RESENT))
            self._common.resent += 1
            return True
        result = client.results.get(commit_id.serial)
        if result is not None:
            status, body = result
            self._send(Message(RESPONSE, msg.topic, tag=msg.tag, status=status, route=msg.route, body=body))
        elif commit_id.serial <= client.acked:
            # 1. It came again, and was put into the queue, since it was still remembered. 2. In the same turn came a
            # later commit that acknowledged its answer, so it was forgotten. It was applied all the same.
            self._send(reply_error(msg, answered_already(commit_id)))
        else:
            return False
        self._common.resent += 1
        return True

    # ---------------------------------------------------------------------------------------------------------- answers

    def _send(self, msg: Message) -> None:
        self._common.out.append(msg)

    def _refuse(self, entry: Entry, error: FluxmpiError) -> None:
        status, body = encode_error(error)
        remember = self._common.results.client
        for name in entry.ids:
            client = remember(name.client)
            if entry.adds is None or (name.serial > client.acked and name.serial not in client.results):
                client.remember(name.serial, status, body)
        if entry.adds is not None:
            self._common.failed += len(entry.adds.parts)
            self._answer_adds(entry, entry.adds, {}, self.namespace.root)
        elif entry.msg is not None:
            self._common.failed += 1
            self._send(reply_error(entry.msg, error))
        elif entry.gathering is not None:
            done = FenceDone(entry.gathering.namespace, entry.gathering.name, entry.ids, 0, error.code, error.text)
            self._send(control("kvs.fence-done", done))
            self._fence_over(done)

    def _fence_over(self, done: FenceDone) -> None:
        for name in done.ids:
            self._common.completed.pop(name, None)

    def _answer(self, entry: Entry, body: bytes) -> None:
        """Remember it for whoever sends it again, and answer."""
        msg, commit = entry.msg, entry.commit
        assert msg is not None
        assert commit is not None
        assert entry.client is not None
        entry.client.remember(commit.id.serial, OK, body)
        self._send(Message(RESPONSE, msg.topic, LOCAL, ANY, msg.tag, OK, msg.route, body))

    def _answer_adds(self, entry: Entry, adds: Adds, numbers: Numbers, root: RootInfo) -> None:
        """The answer to combined additions; the parts that are not in ``numbers`` have their own, remembered or refused."""
        client = self._common.results.client
        others = []
        for index, part in enumerate(adds.parts):
            if part.id not in numbers:
                status, body = client(part.id.client).results.get(part.id.serial) or encode_error(
                    answered_already(part.id)
                )
                others.append((index, status, body))
        self._common.combined += 1
        self._common.added += len(numbers)
        made = [numbers.get(part.id, 0) for part in adds.parts]
        assert entry.msg is not None
        self._send(reply(entry.msg, Added(root.namespace, root.version, root.ref, root.time, made, others)))

    # ---------------------------------------------------------------------------------------------------------- sealing

    def _seal(self, version: Batch) -> Steps[None]:
        """Make the version: root, history, what the commits' resending will be answered with; setroot, then the answers."""
        common, namespace = self._common, self.namespace
        ref, fresh = yield from version.sealing()
        root = RootInfo(namespace.root.namespace, version.number, ref, common.now)
        namespace.advance(root, version.keys, len(version.ids) + len(version.fences))
        self._base, self._version = root, None
        self._send(setroot(namespace, version.keys, fresh, version.fences))
        if version.events:
            snapshot = root.namespace, root.version, root.ref, root.time
            self._send(control("event.committed", (version.events, snapshot)))
        plain = encode_body(Committed(root.namespace, root.version, ref, root.time))
        client = common.results.client
        for entry, placed in version.entries:
            if placed is RESENT:
                self._known(entry, None)
            elif entry.commit is not None:
                common.commits += 1
                if placed is PLAIN:
                    self._answer(entry, plain)
                else:
                    succeeded, _, results = placed
                    self._answer(
                        entry, encode_body(Committed(root.namespace, root.version, ref, root.time, succeeded, results))
                    )
            elif entry.adds is not None:
                for name, number in placed.items():
                    results = [OpResult(True, number)]
                    body = encode_body(Committed(root.namespace, root.version, ref, root.time, True, results))
                    client(name.client).remember(name.serial, OK, body)
                self._answer_adds(entry, entry.adds, placed, root)
        for done in version.fences:
            for name in done.ids:
                client(name.client).remember(name.serial, OK, plain)
            self._fence_over(done)
        common.merged += max(0, len(version.ids) - 1)
        yield version.steps + len(version.entries)


def setroot(
    namespace: Namespace, keys: list[str] | None, fresh: list[tuple[Ref, bytes]], fences: list[FenceDone]
) -> Message:
    """The message that tells all brokers of the newest version; ``fresh`` are its new nodes."""
    root = namespace.root
    nodes = [blob for _, blob in fresh]
    if sum(map(len, nodes)) > SETROOT_NODES_BYTES_MAX:
        nodes = []
    if keys is not None and len(keys) > SETROOT_KEYS_MAX:
        keys = None
    body = Setroot(root.namespace, root.version, root.ref, root.time, keys, nodes, fences, namespace.oldest)
    return control("kvs.setroot", body)
