"""The leader: rank 0's half of the KVS, where all commits get their order.

It owns the namespaces, each a version number and a root ref; what is remembered of commits so that resending one is harmless;
and the fences that gather.

One turn of the loop::

    leader.commit ─▶ queue ──tick──▶ place in the version under construction ─▶ seal ─▶ setroot (HERE, then down the tree)
    leader.fence ──▶ gathering, complete? ─▶ queue                                   └▶ answers, after the setroot

A commit waits for nothing when commits come one at a time. When several came together last time, the first waits up to
GROUP_S for as many again (group commit, as databases do it): a version costs every broker a wake-up, and they share it.

Invariants: versions of a namespace count up by one; a commit id has at most one version; the answer to a commit leaves after
the setroot of its version, on the same links, so that whoever has the answer has the version.

After flux-core's kvs module (kvstxn.c), with two differences: only disjoint transactions merge (see ``version``), and a
commit is applied once however often it is sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import msgspec

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchNamespace, TooLarge, decode_error, encode_error
from fluxmpi.kvs.fence import Broken, Gathering
from fluxmpi.kvs.nodes import Leaf, NodeCache
from fluxmpi.kvs.objects import Dir, refs_of
from fluxmpi.kvs.results import Results, answered_already
from fluxmpi.kvs.spaces import Space, Spaces
from fluxmpi.kvs.tree import Edit
from fluxmpi.kvs.version import Blobs, Values, Version
from fluxmpi.kvs.wire import (
    PRIMARY,
    Commit,
    CommitId,
    Exchange,
    Fence,
    FenceDone,
    FenceMember,
    Op,
    Put,
    RootInfo,
    Setroot,
    Swap,
)
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import CONTROL, OK, REQUEST, RESPONSE, Body, Message, control, encode_body, reply_error

GROUP_S = 0.0003
"""How long a commit may wait for others to share its version, where the last version had several."""

OPS_MAX = 200_000
"""Of one commit: they are applied in one turn, of 1.4 s; a turn of many seconds would let the neighbours take rank 0 for dead."""

SETROOT_NODES_BYTES_MAX = 16 << 10
SETROOT_KEYS_MAX = 1024

_decode_commit = Body(Commit)
_decode_fence = Body(Fence)
_decode_member = Body(FenceMember)
_decode_rootinfo = msgspec.msgpack.Decoder(RootInfo).decode


@dataclass(slots=True)
class _Entry:
    """A transaction that waits for its turn: a commit, or a fence that is complete."""

    ops: list[Op]
    msg: Message | None = None
    id: CommitId | None = None
    gathering: Gathering | None = None


_Queue = deque[_Entry]


class Leader(Machine):
    name = "leader"

    def __init__(
        self, spaces: Spaces, nodes: NodeCache, blobs: Blobs, digest: Digest, now: float, restored: list[RootInfo]
    ) -> None:
        """``spaces`` is empty, and gets the namespaces of ``restored``, and the primary one."""
        super().__init__()
        self._spaces = spaces
        self._nodes = nodes
        self._values = Values(blobs, digest)
        self._queues: dict[str, _Queue] = {}
        """Namespace to what waits there; without those in which nothing does."""
        self._results = Results()
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._broken = Broken()
        self._completed: dict[CommitId, None] = {}
        """Contributors of the fences that became complete in this turn."""
        self._waiting = 0
        """Commits in the queues; ``_usual`` were there when the last version was made."""
        self._usual = 1
        self._commits = self._merged = self._resent = self._failed = 0
        for root in restored:
            spaces.advance(root)
        if all(root.namespace != PRIMARY for root in restored):
            spaces.advance(RootInfo(PRIMARY, 0, nodes.insert(Leaf([], [])), now))

    def start(self, now: float) -> list[Message]:
        """The first roots, for all brokers."""
        return [self._setroot(root, None, [], []) for root in self._spaces.roots()]

    def roots(self) -> list[RootInfo]:
        """The newest root of every namespace."""
        return self._spaces.roots()

    # ------------------------------------------------------------------------------------------------------- input

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == CONTROL and msg.topic == "leader.fence":
            return self._fence(msg, now)
        if msg.kind == CONTROL and msg.topic == "leader.fence-break":
            return self._break(msg, now)
        if msg.kind != REQUEST:
            return []
        try:
            topic = msg.topic
            if topic == "leader.commit":
                return self._commit(msg, now)
            raise InvalidRequest(f"service leader has no method {topic!r}")
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _commit(self, msg: Message, now: float) -> list[Message]:
        commit = _decode_commit(msg)
        if len(commit.ops) > OPS_MAX:
            raise TooLarge(f"a commit of {len(commit.ops)} operations: the most is {OPS_MAX}")
        client = self._results.client(commit.id.client)
        if commit.acked > client.acked:
            client.forget(commit.acked)
        if commit.id.serial <= client.acked:
            raise answered_already(commit.id)
        out: list[Message] = []
        if not self._spaces.has(commit.namespace) and self._known(msg, commit.id, None, out):
            return out
        self._enqueue(commit.namespace, _Entry(commit.ops, msg, commit.id))
        self._waiting += 1
        if self._waiting >= self._usual:
            self.deadline = now
        elif self.deadline == NEVER:
            self.deadline = now + GROUP_S
        return []

    def _enqueue(self, namespace: str, entry: _Entry) -> None:
        self._spaces.find(namespace)
        self._queues.setdefault(namespace, deque()).append(entry)

    def _fence(self, msg: Message, now: float) -> list[Message]:
        """Contributions; those that cannot be taken, or come again when it is done, are told so by a FenceDone of their own."""
        fence = _decode_fence(msg)
        key = fence.namespace, fence.name
        out = self._contributed_before(fence)
        ids = [part.id for part in fence.parts]
        if not ids:
            return out
        broken = self._broken.error(fence, now)
        if broken is not None:
            return [*out, self._fence_broke(fence.namespace, fence.name, ids, broken)]
        try:
            self._spaces.find(fence.namespace)
            gathering = self._fences.get(key) or Gathering(fence)
            gathering.add(fence, msg.hop)
            self._fences[key] = gathering
        except FluxmpiError as error:
            return [*out, self._fence_failed(fence.namespace, fence.name, ids, error)]
        if gathering.complete:
            del self._fences[key]
            self._completed.update(dict.fromkeys(gathering.parts))
            self._enqueue(fence.namespace, _Entry(gathering.unshared(), gathering=gathering))
            self.deadline = now
        return out

    def _break(self, msg: Message, now: float) -> list[Message]:
        """A member has left; if the fence is complete meanwhile, or that was another of this name, it does not matter."""
        member = _decode_member(msg)
        key = member.namespace, member.name
        gathering = self._fences.get(key)
        if gathering is None or member.id not in gathering.parts:
            return []
        del self._fences[key]
        error = self._broken.add(gathering, member.id, now)
        return [self._fence_broke(*key, list(gathering.parts), error)]

    def _fence_broke(self, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> Message:
        """As ``_fence_failed``, and for good: sent again, these contributions do not count for the next fence of that name."""
        result = encode_error(error)
        for id_ in ids:
            self._results.client(id_.client).remember(id_.serial, *result)
        return self._fence_failed(namespace, name, ids, error)

    def _contributed_before(self, fence: Fence) -> list[Message]:
        """Take out of ``fence`` what is done already, and say how it ended. What is done at the end of this turn is told
        to all then.
        """
        results: dict[tuple[int, bytes], list[CommitId]] = {}
        fresh = []
        for part in fence.parts:
            name = part.id
            client = self._results.client(name.client)
            if part.acked > client.acked:
                client.forget(part.acked)
            result = client.results.get(name.serial)
            if result is not None:
                results.setdefault(result, []).append(name)
            elif name.serial <= client.acked:
                results.setdefault(encode_error(answered_already(name)), []).append(name)
            elif name not in self._completed:
                fresh.append(part)
        fence.parts = fresh
        out = []
        for (status, body), ids in results.items():
            version = 0 if status else _decode_rootinfo(body).version
            text = decode_error(status, body).text if status else ""
            out.append(control("kvs.fence-done", FenceDone(fence.namespace, fence.name, ids, version, status, text)))
            self._resent += len(ids)
        return out

    def _fence_failed(self, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> Message:
        self._failed += 1
        return control("kvs.fence-done", FenceDone(namespace, name, ids, 0, error.code, error.text))

    # ------------------------------------------------------------------------------------------------------ output

    def tick(self, now: float) -> list[Message]:
        """Turn what has arrived into versions, in order of arrival."""
        self.deadline = NEVER
        self._usual, self._waiting = max(self._waiting, 1), 0
        out: list[Message] = []
        queues, self._queues = self._queues, {}
        for namespace, queue in queues.items():
            self._drain(self._spaces.find(namespace), queue, now, out)
        self._completed = {}
        return out

    def _drain(self, space: Space, queue: _Queue, now: float, out: list[Message]) -> None:
        edit = Edit(self._nodes, space.root.ref, space.root.namespace)
        version = Version(space.root.version + 1, edit, self._values)
        while queue:
            entry = queue[0]
            msg, commit_id, gathering = entry.msg, entry.id, entry.gathering
            if msg is not None and commit_id is not None and self._known(msg, commit_id, version, out):
                queue.popleft()
                continue
            try:
                placed = version.place(entry.ops)
            except FluxmpiError as error:
                queue.popleft()
                self._refuse(entry, error, out)
                continue
            if not placed:
                self._seal(space, version, now, out)
                version = Version(space.root.version + 1, edit, self._values)
                continue
            queue.popleft()
            if gathering is not None:
                done = FenceDone(gathering.namespace, gathering.name, list(gathering.parts), version.number)
                version.fences.append(done)
            if msg is not None and commit_id is not None:
                version.ids[commit_id] = None
                version.replies.append(msg)
        if not version.empty:
            self._seal(space, version, now, out)

    def _known(self, msg: Message, commit_id: CommitId, version: Version | None, out: list[Message]) -> bool:
        """A commit that was sent again is answered, not applied: at once, or with the version that it is in."""
        if version is not None and commit_id in version.ids:
            version.replies.append(msg)
        else:
            client = self._results.client(commit_id.client)
            result = client.results.get(commit_id.serial)
            if result is not None:
                status, body = result
                out.append(Message(RESPONSE, msg.topic, tag=msg.tag, status=status, route=msg.route, body=body))
            elif commit_id.serial <= client.acked:
                # 1. It came again, and was put into the queue, since it was still remembered. 2. In the same turn came a
                # later commit that acknowledged its answer, so it was forgotten. It was applied all the same.
                out.append(reply_error(msg, answered_already(commit_id)))
            else:
                return False
        self._resent += 1
        return True

    def _refuse(self, entry: _Entry, error: FluxmpiError, out: list[Message]) -> None:
        msg, commit_id, gathering = entry.msg, entry.id, entry.gathering
        if msg is not None and commit_id is not None:
            self._failed += 1
            self._results.client(commit_id.client).remember(commit_id.serial, *encode_error(error))
            out.append(reply_error(msg, error))
        elif gathering is not None:
            result = encode_error(error)
            for name in gathering.parts:
                self._results.client(name.client).remember(name.serial, *result)
            done = FenceDone(gathering.namespace, gathering.name, list(gathering.parts), 0, error.code, error.text)
            out.append(control("kvs.fence-done", done))

    def _seal(self, space: Space, version: Version, now: float, out: list[Message]) -> None:
        """Make the version: root, history, what the commits' resending will be answered with; setroot, then the answers."""
        ref, fresh = version.seal()
        root = RootInfo(space.root.namespace, version.number, ref, now)
        space.advance(root, version.keys, len(version.ids) + len(version.fences))
        body = encode_body(root)
        for commit_id in chain(version.ids, *(done.ids for done in version.fences)):
            self._results.client(commit_id.client).remember(commit_id.serial, OK, body)
        self._commits += len(version.ids)
        self._merged += max(0, len(version.ids) - 1)
        out.append(self._setroot(root, version.keys, fresh, version.fences))
        for msg in version.replies:
            out.append(Message(RESPONSE, msg.topic, tag=msg.tag, route=msg.route, body=body))

    def _setroot(
        self, root: RootInfo, keys: list[str] | None, fresh: list[tuple[Ref, bytes]], fences: list[FenceDone]
    ) -> Message:
        nodes = [blob for _, blob in fresh]
        if sum(map(len, nodes)) > SETROOT_NODES_BYTES_MAX:
            nodes = []
        if keys is not None and len(keys) > SETROOT_KEYS_MAX:
            keys = None
        oldest = self._spaces.find(root.namespace).oldest
        body = Setroot(root.namespace, root.version, root.ref, root.time, keys, nodes, fences, oldest)
        return control("kvs.setroot", body)

    def reset(self, namespace: str, ref: Ref, now: float) -> tuple[RootInfo, list[Message]]:
        """A new version of ``namespace``, made if need be, whose root is ``ref``: how a checkpoint is restored."""
        root = RootInfo(namespace, self._spaces.next_version(namespace), ref, now)
        self._spaces.advance(root)
        return root, [self._setroot(root, None, [], [])]

    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]:
        """A new namespace, empty, or with the root ``ref``, which must be a whole directory."""
        self._spaces.require_new(name)
        if ref is None:
            ref = self._nodes.insert(Leaf([], []))
        else:
            self._values.settle(Dir(ref))
        root = RootInfo(name, self._spaces.next_version(name), ref, now)
        self._spaces.advance(root, owner)
        return root, [self._setroot(root, None, [], [])]

    def drop(self, name: str) -> list[Message]:
        """The namespace was removed: what waits for it is refused."""
        error = NoSuchNamespace(f"namespace '{name}' was removed")
        out: list[Message] = []
        for entry in self._queues.pop(name, ()):
            if entry.msg is None or entry.id is None or not self._known(entry.msg, entry.id, None, out):
                self._refuse(entry, error, out)
        for key in [key for key in self._fences if key[0] == name]:
            self._refuse(_Entry([], gathering=self._fences.pop(key)), error, out)
        return out

    @property
    def making(self) -> bool:
        """A version is made over several turns."""
        return False

    def pinned(self) -> Iterator[Ref]:
        """Directories and blobs that transactions refer to which wait, or fences which gather."""
        for queue in self._queues.values():
            for entry in queue:
                yield from refs_of([op.object for op in entry.ops if isinstance(op, Put | Exchange | Swap)])
        for gathering in self._fences.values():
            yield from refs_of(gathering.objects)

    def statistics(self) -> dict[str, float]:
        return {
            "commits": self._commits,
            "merged": self._merged,
            "resent": self._resent,
            "failed": self._failed,
            "fences": len(self._fences),
            "clients": len(self._results),
        }

    def check(self) -> None:
        assert all(self._queues.values())
        assert not self._queues or self.deadline < NEVER
        assert all(not gathering.complete for gathering in self._fences.values())

