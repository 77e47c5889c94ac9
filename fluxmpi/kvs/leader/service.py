"""The leader: rank 0's half of the KVS, where all commits get their order.

It owns the namespaces, each a version number and a root ref; what is remembered of commits so that resending one is harmless;
and the fences that gather.

One turn of the loop::

    leader.commit ─┬▶ queue ──tick──▶ place in the version under construction ─▶ seal ─▶ setroot (LOCAL, then down the tree)
    leader.adds ───┤                  (see ``maker``)                                   ├▶ events of its commits
    leader.fence ──┴ complete? ─▶ queue                                                 └▶ answers

A commit waits for nothing when commits come one at a time. When several came together last time, the first waits up to
GROUP_S for as many again (group commit, as databases do it): a version costs every broker a wake-up, and they share it.

Invariants: versions of a namespace count up by one; a commit id has at most one version; the answer to a commit leaves after
the setroot of its version, on the same links, so that whoever has the answer has the version.

After flux-core's kvs module (kvstxn.c), with two differences: only disjoint transactions merge (see ``version``), and a
commit is applied once however often it is sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchNamespace, TooLarge, decode_error, encode_error
from fluxmpi.kvs.fence.gathering import BrokenFences, Gathering
from fluxmpi.kvs.leader.batch import LARGE_OPS
from fluxmpi.kvs.leader.committer import Committer, Common, Entry, setroot
from fluxmpi.kvs.leader.dedup import answered_already
from fluxmpi.kvs.leader.guards import check_guard
from fluxmpi.kvs.leader.validation import CARRIERS, BlobStore, ObjectValidator
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces, no_such_namespace
from fluxmpi.kvs.objects import Dir, refs_of
from fluxmpi.kvs.store.edit import Steps
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.wire import PIECE_OPS, PRIMARY, Adds, Commit, CommitId, Fence, FenceDone, FenceMember, RootInfo
from fluxmpi.machine import NEVER, Machine
from fluxmpi.message import (
    CONTROL,
    EVENT_PAYLOAD_BYTES_MAX,
    EVENT_TOPIC_MAX,
    REQUEST,
    Body,
    Message,
    control,
    reply_error,
)

GROUP_S = 0.0003
"""How long a commit may wait for others to share its version, where the last version had several."""

OPS_MAX = 1_000_000
"""Of one commit. It needs some 500 MB while it is made, so this bounds memory; no turn is longer for it."""

GUARDS_MAX = 1024
EVENTS_MAX = 10_000
"""Of one commit."""

TURN_STEPS = 1000
"""What the makers do in one turn: operations and nodes of 10 to 30 µs each."""

_decode_commit = Body(Commit)
_decode_adds = Body(Adds)
_decode_fence = Body(Fence)
_decode_member = Body(FenceMember)
_decode_rootinfo = msgspec.msgpack.Decoder(RootInfo).decode


class Leader(Machine):
    name = "leader"

    def __init__(
        self,
        namespaces: Namespaces,
        nodes: NodeCache,
        blobs: BlobStore,
        digest: Digest,
        now: float,
        restored: list[RootInfo],
    ) -> None:
        """``namespaces`` is empty, and gets the namespaces of ``restored``, and the primary one."""
        super().__init__()
        self._namespaces = namespaces
        self._common = Common(nodes, ObjectValidator(blobs, digest))
        self._results = self._common.results
        self._makers: dict[str, Committer] = {}
        self._active: dict[str, Committer] = {}
        """Those in whose namespaces something waits, or is half done."""
        self._fences: dict[tuple[str, str], Gathering] = {}
        self._broken = BrokenFences()
        self._waiting = 0
        """Commits that came since the last turn; ``_usual`` were there when the last version was made."""
        self._usual = 1
        self._looking = 0
        """Directories that are looked through for new namespaces."""
        self.turn_steps = TURN_STEPS
        for root in restored:
            namespaces.advance(root)
        if all(root.namespace != PRIMARY for root in restored):
            namespaces.advance(RootInfo(PRIMARY, 0, nodes.insert(Leaf([], [])), now))

    def start(self, now: float) -> list[Message]:
        """The first roots, for all brokers."""
        return [setroot(self._namespaces.find(root.namespace), None, [], []) for root in self._namespaces.roots()]

    def roots(self) -> list[RootInfo]:
        """The newest root of every namespace."""
        return self._namespaces.roots()

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
            if topic == "leader.adds":
                return self._adds(msg, now)
            raise InvalidRequest(f"service leader has no method {topic!r}")
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _commit(self, msg: Message, now: float) -> list[Message]:
        commit = _decode_commit(msg)
        if (
            commit.guards
            or commit.more
            or commit.otherwise
            or commit.events
            or commit.durable
            or len(commit.ops) > LARGE_OPS
        ):
            _check(commit)
        client = self._results.client(commit.id.client)
        if commit.acked > client.acked:
            client.forget(commit.acked)
        if commit.id.serial <= client.acked:
            raise answered_already(commit.id)
        return self._enqueue(commit.namespace, Entry(msg, commit, client), now)

    def _adds(self, msg: Message, now: float) -> list[Message]:
        adds = _decode_adds(msg)
        for part in adds.parts:
            client = self._results.client(part.id.client)
            if part.acked > client.acked:
                client.forget(part.acked)
        return self._enqueue(adds.namespace, Entry(msg, adds=adds), now)

    def _enqueue(self, name: str, entry: Entry, now: float) -> list[Message]:
        """To its namespace's maker, to go on at this turn's end, or when others may have come to share its version."""
        namespace = self._namespaces.get(name)
        maker = self._makers.get(name)
        if namespace is None or (maker is not None and maker.namespace is not namespace):
            return self._nowhere(name, entry)
        if maker is None:
            maker = self._makers[name] = Committer(self._common, namespace)
        maker.queue.append(entry)
        self._active[name] = maker
        self._waiting += 1
        if self._waiting >= self._usual:
            self.deadline = now
        elif self.deadline == NEVER:
            self.deadline = now + GROUP_S
        return []

    def _nowhere(self, namespace: str, entry: Entry) -> list[Message]:
        """There is no such namespace, or no longer. This is remembered: another time there may be one."""
        maker = self._makers.pop(namespace, None) or Committer(
            self._common, Namespace(RootInfo(namespace, 0, b"", 0.0))
        )
        self._active.pop(namespace, None)
        maker.queue.append(entry)
        maker.refuse_all(no_such_namespace(namespace))
        out, self._common.out = self._common.out, []
        return out

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
            self._namespaces.find(fence.namespace)
            gathering = self._fences.get(key) or Gathering(fence)
            gathering.add(fence, msg.hop)
            self._fences[key] = gathering
        except FluxmpiError as error:
            return [*out, self._fence_failed(fence.namespace, fence.name, ids, error)]
        if gathering.complete:
            del self._fences[key]
            self._common.completed.update(dict.fromkeys(gathering.parts))
            out += self._enqueue(fence.namespace, Entry(gathering=gathering), now)
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
            elif name not in self._common.completed:
                fresh.append(part)
        fence.parts = fresh
        out = []
        for (status, body), ids in results.items():
            root = RootInfo(fence.namespace, 0, b"", 0.0) if status else _decode_rootinfo(body)
            text = decode_error(status, body).text if status else ""
            done = FenceDone(fence.namespace, fence.name, ids, root.version, status, text, root.ref, root.time)
            out.append(control("kvs.fence-done", done))
            self._common.resent += len(ids)
        return out

    def _fence_failed(self, namespace: str, name: str, ids: list[CommitId], error: FluxmpiError) -> Message:
        self._common.failed += 1
        return control("kvs.fence-done", FenceDone(namespace, name, ids, 0, error.code, error.text))

    # ------------------------------------------------------------------------------------------------------ output

    def tick(self, now: float) -> list[Message]:
        """Turn what has arrived into versions, in order of arrival, as far as one turn goes."""
        self.deadline = NEVER
        self._usual, self._waiting = max(self._waiting, 1), 0
        self._common.now = now
        active = self._active
        steps = max(self.turn_steps // max(1, len(active)), 1)
        for namespace, maker in list(active.items()):
            if self._namespaces.get(namespace) is not maker.namespace:
                maker.refuse_all(no_such_namespace(namespace))
                del self._makers[namespace]
            elif not maker.turn(steps):
                self.deadline = now
                continue
            del active[namespace]
        out, self._common.out = self._common.out, []
        return out

    @property
    def making(self) -> bool:
        """A version is half made, or waits in pieces, or a namespace is: what it refers to, no root reaches yet. Collections
        must not begin.
        """
        makers = self._active.values()
        return self._looking > 0 or any(maker.between or any(entry.large for entry in maker.queue) for maker in makers)

    def reset(self, namespace: str, ref: Ref, now: float) -> tuple[RootInfo, list[Message]]:
        """A new version of ``namespace``, made if need be, whose root is ``ref``: how a checkpoint is restored."""
        root = RootInfo(namespace, self._namespaces.next_version(namespace), ref, now)
        self._namespaces.advance(root)
        return root, [setroot(self._namespaces.find(namespace), None, [], [])]

    def checking(self, ref: Ref) -> Steps[None]:
        """A look through a directory: it must be whole. What it has found is held until its last slice, and its end."""
        self._looking += 1
        try:
            yield from self._common.values.checking([Dir(ref)])
        finally:
            self._looking -= 1

    def create(self, name: str, owner: int, ref: Ref | None, now: float) -> tuple[RootInfo, list[Message]]:
        """A new namespace, empty, or with the root ``ref``: ``checking`` has just found it whole."""
        self._namespaces.require_free_name(name)
        if ref is None:
            ref = self._common.nodes.insert(Leaf([], []))
        root = RootInfo(name, self._namespaces.next_version(name), ref, now)
        self._namespaces.advance(root, owner if owner >= 0 else None)
        return root, [setroot(self._namespaces.find(name), None, [], [])]

    def drop(self, name: str) -> list[Message]:
        """The namespace was removed: what waits for it is refused."""
        error = NoSuchNamespace(f"namespace '{name}' was removed")
        maker = self._makers.pop(name, None) or Committer(self._common, Namespace(RootInfo(name, 0, b"", 0.0)))
        self._active.pop(name, None)
        for key in [key for key in self._fences if key[0] == name]:
            maker.queue.append(Entry(gathering=self._fences.pop(key)))
        maker.refuse_all(error)
        out, self._common.out = self._common.out, []
        return out

    def pinned(self) -> Iterator[Ref]:
        """Directories and blobs that transactions refer to which wait, or fences which gather."""
        gatherings = list(self._fences.values())
        for maker in self._active.values():
            for entry in maker.queue:
                if entry.commit is not None:
                    yield from refs_of(
                        op.object for op in entry.commit.ops + entry.commit.otherwise if isinstance(op, CARRIERS)
                    )
                elif entry.gathering is not None:
                    gatherings.append(entry.gathering)
        for gathering in gatherings:
            yield from gathering.refs()

    def statistics(self) -> dict[str, float]:
        common = self._common
        return {
            "commits": common.commits,
            "merged": common.merged,
            "resent": common.resent,
            "failed": common.failed,
            "added": common.added,
            "combined": common.combined,
            "queued": sum(len(maker.queue) for maker in self._makers.values()),
            "fences": len(self._fences),
            "clients": len(common.results),
        }

    def check(self) -> None:
        for namespace, maker in self._makers.items():
            assert bool(maker.queue or maker.between) is (namespace in self._active)
        assert not self._active or self.deadline < NEVER
        assert all(not gathering.complete for gathering in self._fences.values())


def _check(commit: Commit) -> None:
    """Refuse what could not be done whatever is there."""
    branches = (commit.ops, commit.more), (commit.otherwise, commit.otherwise_more)
    count = max(len(ops) + PIECE_OPS * len(more) for ops, more in branches)
    if count > OPS_MAX:
        raise TooLarge(f"a commit of {count} operations: the most is {OPS_MAX}")
    if commit.durable:
        raise InvalidRequest(
            "durable: this instance keeps no journal, so no commit can be on stable storage; leave it out"
        )
    if len(commit.guards) > GUARDS_MAX:
        raise TooLarge(f"a commit of {len(commit.guards)} guards: the most is {GUARDS_MAX}")
    for guard in commit.guards:
        check_guard(guard)
    if len(commit.events) > EVENTS_MAX:
        raise TooLarge(f"a commit that publishes {len(commit.events)} events: the most is {EVENTS_MAX}")
    for topic, payload in commit.events:
        if not topic or len(topic) > EVENT_TOPIC_MAX:
            raise InvalidRequest(f"an event's topic has 1 to {EVENT_TOPIC_MAX} characters")
        if len(payload) > EVENT_PAYLOAD_BYTES_MAX:
            raise TooLarge(f"an event's payload has at most {EVENT_PAYLOAD_BYTES_MAX} bytes: store it and send its key")
