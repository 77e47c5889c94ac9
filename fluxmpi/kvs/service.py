"""The ``kvs`` service: every broker's half of the KVS, which clients talk to.

    kvs.commit   ─▶ leader.commit upward; its answer is held until this broker has that version (read your writes)
    kvs.add      ─▶ combined with others to the same key (see ``adds``)
    kvs.fence    ─▶ combined with others of this turn, to the parent; answered by FenceDone (see ``gather``)
    kvs.get …    ─▶ a walk down the tree of nodes, at the root asked for (see ``reads``)
    kvs.watch    ─▶ a stream, fed by setroot (see ``watching``)
    kvs.setroot  ─▶ keep the nodes, adopt the root, pass it to the children, show it in the page, release who waited, wake
                    the watchers

Monotonic reads: a request carries the highest version that its client has seen in ``at_least``, and is parked until this broker
has it.
"""

from __future__ import annotations

from functools import partial

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest, NoSuchBlob, Overloaded, SnapshotCollected
from fluxmpi.kvs.fence.service import DEPARTURE, FenceService, Overlay
from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.replica.fault_in import Fail, FaultIn, Walk
from fluxmpi.kvs.replica.pending import OnAnswer, PendingRequests
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.lookup import MissingNamespace
from fluxmpi.kvs.store.node import BlobSource, NodeCache, ref_text
from fluxmpi.kvs.watch.service import WatchService
from fluxmpi.kvs.wire import (
    PRIMARY,
    Adds,
    AddTo,
    Cancel,
    DiffRequest,
    Fence,
    FenceDone,
    FenceMember,
    GetRequest,
    GetRoot,
    Got,
    Listed,
    ListRequest,
    OldNamespace,
    PathRequest,
    RootInfo,
    Setroot,
    WatchAck,
    WatchProgress,
    WatchRequest,
)
from fluxmpi.machine import MACHINES_MAX, Machine
from fluxmpi.message import (
    ANY,
    CONTROL,
    LOCAL,
    OK,
    PAGE,
    REQUEST,
    RESPONSE,
    Body,
    Message,
    control,
    encode_body,
    reply,
    reply_error,
)

_decode_root = Body(RootInfo)
_decode_setroot = Body(Setroot)
_decode_fence = Body(Fence)
_decode_add = Body(AddTo)
_decode_adds = Body(Adds)
_decode_done = Body(FenceDone)
_decode_member = Body(FenceMember)
_decode_get = Body(GetRequest)
_decode_list = Body(ListRequest)
_decode_path = Body(PathRequest)
_decode_getroot = Body(GetRoot)
_decode_watch = Body(WatchRequest)
_decode_cancel = Body(Cancel)
_decode_ack = Body(WatchAck)
_decode_progress = Body(WatchProgress)
_decode_old = Body(OldNamespace)
_decode_diff = Body(DiffRequest)
_decode_read = {"kvs.get": _decode_get, "kvs.list": _decode_list}
_decode_of = {"kvs.get": Body(Got), "kvs.list": Body(Listed)}


class KvsService(Machine):
    name = "kvs"

    def __init__(
        self, tree: Overlay, nodes: NodeCache, blobs: BlobSource, digest: Digest, limits: KvsLimits = KVS_LIMITS
    ) -> None:
        super().__init__()
        self._tree = tree
        self._nodes = nodes
        self._blobs = blobs
        self._digest = digest
        self._limits = limits.replica
        self._replicas: dict[str, Replica] = {PRIMARY: Replica(PRIMARY, limits.replica.history_max)}
        self._stalls = FaultIn(lambda ref: self.ask("content.load", [ref], tree.rank), self._ask_path, self._keep)
        self._waiting = PendingRequests(self._replicas, limits.replica)
        self._reads = Reads(nodes, blobs, self._replicas, limits.replica)
        self._watching = WatchService(self._reads, self._stalls, nodes, self._replicas, self.ask, limits.watch)
        self._fencing = FenceService(tree, self._replicas, self._spread)
        self._combiner = AddCombiner(self._ask_adds, limits.replica)
        self._here = b""
        """The last answer that told of a version which is here; the commits of one version have the same answer."""
        self._setroots = self._walks = 0

    # ------------------------------------------------------------------------------------------------------- input

    def step(self, msg: Message, now: float) -> list[Message]:
        out = self._step(msg, now)
        if self._behind:
            self.deadline = now
        return out

    @property
    def _behind(self) -> bool:
        """There is more to do than this turn had room for."""
        return self._watching.behind or self._stalls.paused or self._waiting.behind

    def _step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind == REQUEST:
            try:
                return self._request(msg, now)
            except FluxmpiError as error:
                return [reply_error(msg, error)]
        if msg.kind == RESPONSE:
            asked = self._waiting.asked.pop(msg.tag, None)
            if asked is not None:
                return self._answered(msg, asked, now)
            if self._combiner.owns(msg.tag):
                return self._added(msg)
            if self._stalls.owns(msg.tag):
                return self._stalls.loaded(msg) + self._watching.run()
            return self._watching.answered(msg) if self._watching.owns(msg.tag) else []
        if msg.kind == CONTROL:
            if msg.topic == "kvs.setroot":
                return self._setroot(_decode_setroot(msg), msg, now)
            if msg.topic == "kvs.gather":
                return self._fenced(self._fencing.from_child(msg, now))
            if msg.topic == "kvs.fence-done":
                return self._spread(msg) + self._fence_done(_decode_done(msg), now)
            if msg.topic == "kvs.removed":
                return self._spread(msg) + self._removed(_decode_old(msg), now)
            if msg.topic.startswith(DEPARTURE):
                return self._fenced(self._fencing.departure(msg))
            if msg.topic == "kvs.dropcache":
                self._nodes.clear()
        return []

    def _request(self, msg: Message, now: float) -> list[Message]:
        topic = msg.topic
        if topic == "kvs.commit":
            return self._ask_leader(msg, "leader.commit")
        if topic == "kvs.add":
            return self._combiner.from_client(msg, _decode_add(msg))
        if topic == "kvs.adds":
            return self._combiner.from_child(msg, _decode_adds(msg))
        if topic == "kvs.get":
            return self._read(msg, _decode_get(msg))
        if topic == "kvs.list":
            return self._read(msg, _decode_list(msg))
        if topic == "kvs.path":
            return self._walk(msg, self._reads.path(msg, _decode_path(msg)))
        if topic == "kvs.getroot":
            return self._getroot(msg)
        if topic == "kvs.fence":
            _require_own_client(msg)
            return self._fenced(self._fencing.from_client(msg, now))
        if topic == "kvs.diff":
            return self._diff(msg, _decode_diff(msg))
        if topic == "kvs.watch":
            return self._watch(msg)
        if topic == "kvs.cancel":
            return self._cancel(msg)
        if topic == "kvs.disconnect":
            self._waiting.forget(msg.route)
            self._stalls.drop(msg.route)
            return []
        if topic == "kvs.watch-ack":
            return self._watching.acknowledge(msg, _decode_ack(msg))
        if topic == "kvs.watch-progress":
            return self._watching.progress(msg, _decode_progress(msg).tag)
        raise InvalidRequest(f"service kvs has no method {topic!r}")

    def _replica(self, namespace: str) -> Replica:
        return self._replicas.get(namespace) or self._replicas.setdefault(
            namespace, Replica(namespace, self._limits.history_max)
        )

    def _when(self, msg: Message, namespace: str, at_least: int) -> list[Message] | None:
        """None when the namespace is here at that version; else the request is kept for later, and what to send for it."""
        replica = self._replicas.get(namespace)
        if replica is None:
            return self._ask_leader(msg, "roots.get", GetRoot(namespace), OnAnswer.AGAIN)
        if replica.version < at_least or replica.root is None:
            return self._waiting.park(replica, max(at_least, 0), msg)
        return None

    # -------------------------------------------------------------------------------------------- asking rank 0

    def _ask_leader(
        self, msg: Message, topic: str, body: GetRoot | None = None, then: OnAnswer = OnAnswer.ANSWER, target: int = ANY
    ) -> list[Message]:
        """Ask rank 0, with the request's own body if none is given."""
        if body is None:
            self._tag = tag = self._tag + MACHINES_MAX
            ask = Message(REQUEST, topic, LOCAL, target, tag, OK, [], msg.body)
        else:
            ask = self.ask(topic, body, target)
        self._waiting.asked[ask.tag] = msg, then
        return [ask]

    def _answered(self, msg: Message, asked: tuple[Message, OnAnswer], now: float) -> list[Message]:
        """Rank 0's answer to a commit, to a read, or to a question for a root."""
        request, then = asked
        answer = Message(RESPONSE, request.topic, LOCAL, ANY, request.tag, msg.status, request.route, msg.body)
        if msg.status != OK:
            return [answer]
        if then is OnAnswer.ANSWER and msg.body == self._here:
            return [answer]
        if then is OnAnswer.READ_THERE:
            replica = self._replicas.get(_decode_read[request.topic](request).namespace)
            return (
                [answer]
                if replica is None
                else self._when_here(replica, _decode_of[request.topic](msg).version, answer)
            )
        root = _decode_root(msg)
        if then is OnAnswer.DIFF_AT:
            diff = _decode_diff(request)
            diff.a, diff.b = (root.ref if at == root.version else at for at in (diff.a, diff.b))
            request.body = encode_body(diff)
            return self._diff(request, diff)
        if then is OnAnswer.READ_AT:
            return self._read(request, _decode_read[request.topic](request), root)
        replica = self._replicas.get(root.namespace)
        if then is OnAnswer.ANSWER and replica is not None and root.version <= replica.version:
            self._here = msg.body
            return [answer]
        out: list[Message] = []
        if replica is None:
            if request.topic == "kvs.commit":  # sent again, and its namespace was removed
                return [answer]
            replica = self._replica(
                root.namespace
            )  # new here; one that waits for its first setroot takes its root from that
            replica.adopt(root)
            out = [control("page.root", root, PAGE), *self._watching.new_version(None, root, None)]
        return out + (
            self.step(request, now) if then is OnAnswer.AGAIN else self._when_here(replica, root.version, answer)
        )

    def _ask_adds(self, adds: Adds) -> Message:
        """Combined additions go to the parent, which combines them with others; at rank 0 to the leader."""
        return self.ask("kvs.adds", adds, self._tree.parent) if self._tree.rank else self.ask("leader.adds", adds, ANY)

    def _added(self, msg: Message) -> list[Message]:
        root, answers, out = self._combiner.answered(msg)
        replica = self._replicas.get(root.namespace) if root is not None else None
        for answer in answers:
            out += [answer] if root is None or replica is None else self._when_here(replica, root.version, answer)
        return out

    def _when_here(self, replica: Replica, version: int, answer: Message) -> list[Message]:
        """The answer, now or when this broker has that version: a client never sees more than its broker."""
        if version <= replica.version:
            return [answer]
        replica.park(version, answer)
        return []

    # ------------------------------------------------------------------------------------------------------ setroot

    def _spread(self, msg: Message) -> list[Message]:
        """The same control message to every child."""
        return [Message(CONTROL, msg.topic, child, body=msg.body) for child in self._tree.live_children()]

    def _setroot(self, setroot: Setroot, msg: Message, now: float) -> list[Message]:
        replica = self._replica(setroot.namespace)
        root = RootInfo(setroot.namespace, setroot.version, setroot.ref, setroot.time)
        before = replica.root
        if not replica.adopt(root, setroot.oldest):
            return []
        self._setroots += 1
        if self._tree.rank:
            for blob in setroot.nodes:
                self._keep(blob)
        out = self._spread(msg)
        out.append(control("page.root", root, PAGE))
        for done in setroot.fences:
            out += self._fence_done(done, now)
        if replica.parked:
            out += self._waiting.release(replica.release()) + self._step_released(now)
        out += self._watching.new_version(before, root, setroot.keys)
        return out

    def _step_released(self, now: float) -> list[Message]:
        """Requests whose version is here: thousands may have waited for one."""
        return [sent for msg in self._waiting.ready() for sent in self.step(msg, now)]

    def _removed(self, old: OldNamespace, now: float) -> list[Message]:
        """A namespace is no more. What rank 0 answered stays true. Who waits here waits for a later version than it ever had, and
        so perhaps for one of a new namespace of that name: rank 0 knows.
        """
        replica = self._replicas.pop(old.name, None)
        self._here = b""
        if replica is None:
            return []
        out = [
            control("page.removed", old.name, PAGE),
            *self._watching.removed(RootInfo(old.name, old.version, b"", 0.0)),
        ]
        return out + self._waiting.release(replica.abandon()) + self._step_released(now)

    # ------------------------------------------------------------------------------------------------------ reading

    def _read(self, msg: Message, read: GetRequest | ListRequest, root: RootInfo | None = None) -> list[Message]:
        """Answer a ``kvs.get`` or ``kvs.list``; ``root``: that of the version to read at, where rank 0 was asked for it."""
        later = self._when(msg, read.namespace, read.at_least)
        if later is not None:
            return later
        if root is None:
            root = self._reads.root_at(read.namespace, read.at)
        if root is None:
            assert isinstance(read.at, int)
            return self._ask_leader(msg, "roots.get", GetRoot(read.namespace, at=read.at), OnAnswer.READ_AT)
        walk = self._reads.get(msg, read, root) if isinstance(read, GetRequest) else self._reads.list(msg, read, root)
        return self._walk(msg, walk, partial(self._not_read, msg, read))

    def _diff(self, msg: Message, diff: DiffRequest) -> list[Message]:
        later = self._when(msg, diff.namespace, diff.at_least)
        if later is not None:
            return later
        fail = partial(self._not_read, msg, diff)
        if diff.between is not None:
            return self._walk(msg, self._reads.diff(msg, diff, None, None), fail)
        a, b = self._reads.root_at(diff.namespace, diff.a), self._reads.root_at(diff.namespace, diff.b)
        if a is None or b is None:
            at = diff.a if a is None else diff.b
            assert isinstance(at, int)
            return self._ask_leader(msg, "roots.get", GetRoot(diff.namespace, at=at), OnAnswer.DIFF_AT)
        return self._walk(msg, self._reads.diff(msg, diff, a, b), fail)

    def _not_read(
        self, msg: Message, read: GetRequest | ListRequest | DiffRequest, error: FluxmpiError
    ) -> list[Message]:
        """A read ended with an error, perhaps only because of what this broker does not know."""
        if isinstance(error, MissingNamespace) and error.namespace not in self._replicas:
            return self._ask_leader(msg, "roots.get", GetRoot(error.namespace), OnAnswer.AGAIN)
        if isinstance(read, DiffRequest):
            if isinstance(error, NoSuchBlob):
                error = SnapshotCollected(f"one of the two versions of {read.namespace} is not kept any more")
        elif isinstance(error, NoSuchBlob) and read.at is not None:
            at = f"version {read.at}" if isinstance(read.at, int) else f"what has the root {ref_text(read.at)}"
            error = SnapshotCollected(f"{at} of {read.namespace} is not kept any more")
        elif isinstance(error, NoSuchBlob) and self._tree.rank:
            # 1. Rank 0 has made so many versions since the newest that is here that it has forgotten that one. 2. A node of
            # it was asked for, and was collected. So the read is one of rank 0's newest version; there it cannot miss.
            return self._ask_leader(msg, msg.topic, None, OnAnswer.READ_THERE, 0)
        return [reply_error(msg, error)]

    def _walk(self, msg: Message, walk: Walk, fail: Fail | None = None) -> list[Message]:
        self._walks += 1
        if self._stalls.count >= self._limits.reads_suspended_max:
            return [
                reply_error(
                    msg,
                    Overloaded(
                        f"{self._limits.reads_suspended_max:,} reads wait for blobs at this broker already; try again"
                    ),
                )
            ]
        return self._stalls.start(walk, fail or (lambda error: [reply_error(msg, error)]), msg.route)

    def _ask_path(self, path: PathRequest) -> Message | None:
        """The parent has the nodes, or gets them; rank 0 has all there are."""
        return self.ask("kvs.path", path, self._tree.parent) if self._tree.parent >= 0 else None

    def _keep(self, blob: bytes) -> Ref:
        ref = self._digest(blob)
        self._blobs.put(ref, blob)
        return ref

    def _getroot(self, msg: Message) -> list[Message]:
        getroot = _decode_getroot(msg)
        if getroot.fresh:
            return self._ask_leader(msg, "roots.get", GetRoot(getroot.namespace))
        later = self._when(msg, getroot.namespace, getroot.at_least)
        if later is not None:
            return later
        replica = self._replicas[getroot.namespace]
        root = replica.root if getroot.at is None else replica.at(getroot.at)
        if root is None or getroot.time is not None or getroot.ago_s is not None:
            return self._ask_leader(msg, "roots.get", getroot)
        return [reply(msg, root)]

    def _watch(self, msg: Message) -> list[Message]:
        watch = _decode_watch(msg)
        _require_own_client(msg)
        if not watch.wait:
            later = self._when(msg, watch.namespace, watch.at_least)
            if later is not None:
                return later
        replica = self._replicas.get(watch.namespace)
        if watch.after is not None and replica is not None and 0 <= replica.version < watch.after:
            # Rank 0 knows whether it is of the future. If not, it is here before the answer, on the same links.
            return self._ask_leader(msg, "roots.get", GetRoot(watch.namespace, at=watch.after), OnAnswer.AGAIN)
        return self._watching.begin(msg, watch)

    def _cancel(self, msg: Message) -> list[Message]:
        """End a watch that runs, or one that still waits for its version; or leave a fence."""
        tag = _decode_cancel(msg).tag
        left = self._fencing.gives_up(msg, tag)
        if left is not None:
            return self._fenced(left)
        waiting = self._waiting.cancel(msg.route, tag)
        if waiting is not None:
            return [reply(waiting)]
        return self._watching.cancel(msg, tag)

    # --------------------------------------------------------------------------------------------------- later work

    def tick(self, now: float) -> list[Message]:
        """What was gathered of fences goes up; what is left to tell watchers goes on."""
        gathered = self._fenced(self._fencing.turn(now))
        self._waiting.turn()
        out = self._watching.turn() + self._stalls.turn() + self._step_released(now)
        if self._behind:
            self.deadline = now
        return out + gathered

    def _fence_done(self, done: FenceDone, now: float) -> list[Message]:
        return self._fenced(self._fencing.done(done, now))

    def _fenced(self, out: list[Message]) -> list[Message]:
        """What came of something that the fences took in: it may have changed when the rest is due."""
        self.deadline = self._fencing.deadline
        return out

    # ------------------------------------------------------------------------------------------------ housekeeping

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._waiting.forget([hop])
        self._stalls.drop([hop])
        self._combiner.disconnect(hop)
        out = self._fenced(self._fencing.disconnect(hop)) + self._watching.disconnect(hop)
        if self._behind:
            self.deadline = now
        return out

    def statistics(self) -> dict[str, float]:
        return {
            "version": self._replicas[PRIMARY].version,
            "namespaces": len(self._replicas),
            "setroots": self._setroots,
            "reads": self._walks,
            "stalled": self._stalls.count,
            **self._waiting.statistics(),
            "adding": self._combiner.waiting,
            "adds_from_clients": self._combiner.from_clients,
            "adds_from_children": self._combiner.from_children,
            **self._fencing.statistics(),
            **self._watching.statistics(),
            **self._nodes.statistics(),
        }

    def check(self) -> None:
        self._nodes.check()
        self._fencing.check()
        self._combiner.check()
        self._stalls.check()
        self._watching.check()
        for replica in self._replicas.values():
            replica.check()


def _require_own_client(msg: Message) -> None:
    """Refuse what would be kept here for a client of another broker."""
    if len(msg.route) != 1:
        raise InvalidRequest(f"{msg.topic} is for a client's own broker: leave the target out")
