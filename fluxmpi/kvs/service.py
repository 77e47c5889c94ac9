"""The ``kvs`` service: the part of the KVS that every broker has, and the machine that clients talk to.

``KvsService._table`` is its map: each topic, who sends it, and the method that handles it. The work is done below it:

    commits    forwarded to the leader at rank 0; answered when this broker has the version (read your writes)
    additions  ``replica/add_combiner``: combined with others to the same key on the way to rank 0
    fences     ``fence/service``: combined with others of the turn, sent to the parent, answered by FenceDone
    reads      ``replica/read_service``: walks down the tree of nodes, at the root asked for
    watches    ``watch/service``: streams of notifications, fed by setroot
    setroot    a new version: cache its nodes, adopt its root, pass it to the children, show it in the root page,
               resume the requests that wait for it, match its changed keys against the watches

A request carries ``at_least``, the highest version that its client has seen, and waits until this broker has it: reads
are monotonic.
"""

from __future__ import annotations

from fluxmpi.blobref import Digest, Ref
from fluxmpi.errors import FluxmpiError, InvalidRequest
from fluxmpi.kvs.fence.service import FenceService, Overlay
from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.objects import KEY_BYTES_MAX, split_key
from fluxmpi.kvs.replica.add_combiner import AddCombiner
from fluxmpi.kvs.replica.fault_in import FaultIn
from fluxmpi.kvs.replica.pending import OnAnswer, PendingRequests
from fluxmpi.kvs.replica.read_service import ReadService
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.replica.replica import Replica
from fluxmpi.kvs.store.node import BlobSource, NodeCache
from fluxmpi.kvs.watch.service import WatchService
from fluxmpi.kvs.wire import (
    PRIMARY,
    Adds,
    AddTo,
    Cancel,
    Commit,
    DiffRequest,
    Fence,
    FenceDone,
    FenceMember,
    GetRequest,
    GetRoot,
    ListRequest,
    OldNamespace,
    PathRequest,
    RootInfo,
    Setroot,
    Swept,
    WatchAck,
    WatchNeed,
    WatchProgress,
    WatchRequest,
)
from fluxmpi.machine import MACHINES_MAX, Answers, Machine, Sender, Topic, client_of, no_such_method
from fluxmpi.message import (
    ANY,
    CONTROL,
    INTEGER_MAX,
    LOCAL,
    OK,
    PAGE,
    REQUEST,
    RESPONSE,
    Body,
    Message,
    control,
    reply,
    reply_error,
)

_decode_root = Body(RootInfo)
_decode_setroot = Body(Setroot)
_decode_swept = Body(Swept)
_decode_add = Body(AddTo)
_decode_adds = Body(Adds)
_decode_done = Body(FenceDone)
_decode_watch = Body(WatchRequest)
_decode_cancel = Body(Cancel)
_decode_ack = Body(WatchAck)
_decode_progress = Body(WatchProgress)
_decode_need = Body(WatchNeed)
_decode_old = Body(OldNamespace)


class KvsService(Machine):
    """``watches``, ``adds``: parts that tests check alone.

    ``replicas``: this broker's state of each namespace that it knows, by name; others only read it.
    """

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
        self.replicas: dict[str, Replica] = {PRIMARY: Replica(PRIMARY, limits.replica.history_max)}
        self._pending = PendingRequests(self.replicas, limits.replica, self.ask, self._forward)
        self._fault_in = FaultIn(self._ask_blob, self._ask_path, self._keep_blob, self.failed)
        reads = Reads(nodes, blobs, self.replicas, limits.replica)
        self._reads = ReadService(reads, self._fault_in, self._pending, tree.rank, limits.replica)
        self.watches = WatchService(reads, self._fault_in, nodes, self.replicas, self.ask, limits.watch, tree)
        self._fences = FenceService(tree, self.replicas, self._spread, limits.fence)
        self.adds = AddCombiner(self._ask_adds, limits.replica)
        self._last_reply = b""
        """Rank 0's last answer that was passed on. Commits of one version share it, so it is decoded once."""
        self._setroots = 0
        self.topics = self._table()
        self._handlers = {name: topic.handle for name, topic in self.topics.items()}

    def _table(self) -> dict[str, Topic]:
        client, own_client, machine = Sender.CLIENT, Sender.OWN_CLIENT, Sender.MACHINE
        child, parent = Sender.CHILD, Sender.PARENT
        from_above = parent | machine  # at rank 0, from the machine that made it
        stream, none = Answers.STREAM, Answers.NONE
        reads = self._reads
        return {
            # writing
            "kvs.commit": Topic(REQUEST, client, self._commit, Commit),
            "kvs.add": Topic(REQUEST, client, self._add, AddTo),
            "kvs.adds": Topic(REQUEST, child, self._add_combined, Adds),
            "kvs.fence": Topic(REQUEST, own_client, self._fence, Fence),
            "kvs.gather": Topic(CONTROL, child, self._gather, Fence),
            "kvs.fence-done": Topic(CONTROL, from_above, self._pass_fence_done, FenceDone),
            "kvs.fence-left": Topic(CONTROL, child, self._fence_member, FenceMember),
            "kvs.fence-missing": Topic(CONTROL, from_above, self._fence_member, FenceMember),
            "kvs.fence-here": Topic(CONTROL, child, self._fence_member, FenceMember),
            "kvs.fence-absent": Topic(CONTROL, child, self._fence_member, FenceMember),
            # versions
            "kvs.setroot": Topic(CONTROL, from_above, self._setroot, Setroot),
            "kvs.removed": Topic(CONTROL, from_above, self._removed, OldNamespace),
            "kvs.swept": Topic(CONTROL, from_above, self._swept, Swept),
            # reading; a machine forwards a read to rank 0
            "kvs.get": Topic(REQUEST, client | machine, reads.get, GetRequest, isolated=True),
            "kvs.list": Topic(REQUEST, client | machine, reads.list_entries, ListRequest, isolated=True),
            "kvs.diff": Topic(REQUEST, client, reads.diff, DiffRequest, isolated=True),
            "kvs.getroot": Topic(REQUEST, client, reads.getroot, GetRoot, isolated=True),
            "kvs.path": Topic(REQUEST, client | child, reads.path, PathRequest, isolated=True),
            "kvs.dropcache": Topic(CONTROL, machine, self._drop_cache),
            # watching
            "kvs.watch": Topic(REQUEST, own_client, self._watch, WatchRequest, stream),
            "kvs.watch-need": Topic(CONTROL, child, self._watch_need, WatchNeed),
            "kvs.watch-ack": Topic(REQUEST, own_client, self._watch_ack, WatchAck, none),
            "kvs.watch-progress": Topic(REQUEST, own_client, self._watch_progress, WatchProgress, none),
            # clients
            "kvs.cancel": Topic(REQUEST, client, self._cancel, Cancel, none),
            "kvs.disconnect": Topic(REQUEST, machine, self._client_left, int, none),
        }

    # --------------------------------------------------------------------------------------------------------- dispatch

    def step(self, msg: Message, now: float) -> list[Message]:
        kind = msg.kind
        if kind == RESPONSE:
            out = self.answered(msg, now)
        elif kind == REQUEST:
            try:
                handle = self._handlers.get(msg.topic)
                if handle is None:
                    raise no_such_method(msg.topic, self.topics)
                out = handle(msg, now)
            except FluxmpiError as error:
                out = [reply_error(msg, error)]
        else:
            out = self._handlers[msg.topic](msg, now)
        if self._has_more:
            self.deadline = now
        return out

    def answered(self, msg: Message, now: float) -> list[Message]:
        """Handle the response to a request of this machine, by its tag."""
        asked = self._pending.answered(msg.tag)
        if asked is not None:
            return self._answered(msg, asked, now)
        if self.adds.owns(msg.tag):
            return self._added(msg)
        if self._fault_in.owns(msg.tag):
            return self._fault_in.loaded(msg) + self.watches.run()
        return self.watches.answered(msg) if self.watches.owns(msg.tag) else []

    @property
    def _has_more(self) -> bool:
        """There is more to do than this turn had room for."""
        return self.watches.behind or self._fault_in.has_paused or self._pending.has_ready

    def tick(self, now: float) -> list[Message]:
        """Send what the fences have gathered; continue watches, paused reads and parked requests."""
        gathered = self._with_fence_deadline(self._fences.turn(now))
        self._pending.begin_turn()
        out = self.watches.turn() + self._fault_in.resume_paused() + self._step_ready(now)
        if self._has_more:
            self.deadline = now
        return out + gathered

    # ----------------------------------------------------------------------------------------------------------- rank 0

    def _forward(self, topic: str, body: bytes, target: int) -> Message:
        """Return a request whose body is encoded already."""
        self._tag = tag = self._tag + MACHINES_MAX
        return Message(REQUEST, topic, LOCAL, target, tag, OK, [], body)

    def _commit(self, msg: Message, now: float) -> list[Message]:
        return self._pending.forward(msg, "leader.commit")

    @property
    def congested(self) -> bool:
        """So many requests have no answer of rank 0 that clients should not be read from."""
        return self._pending.congested

    def _answered(self, msg: Message, asked: tuple[Message, OnAnswer], now: float) -> list[Message]:
        """Continue a request with rank 0's answer, as ``OnAnswer`` says."""
        request, then = asked
        answer = Message(RESPONSE, request.topic, LOCAL, ANY, request.tag, msg.status, request.route, msg.body)
        if msg.status != OK:
            return [answer]
        if then is OnAnswer.REPLY and msg.body == self._last_reply:
            return [answer]
        if then is OnAnswer.FORWARDED:
            namespace, version = self._reads.version_read(request, msg)
            replica = self.replicas.get(namespace)
            return [answer] if replica is None else self._pending.answer_at(replica, version, answer)
        root = _decode_root(msg)
        if then is OnAnswer.DIFF_AT:
            return self._reads.resume_diff(request, root)
        if then is OnAnswer.READ_AT:
            return self._reads.resume_at(request, root)
        replica = self.replicas.get(root.namespace)
        if then is OnAnswer.REPLY and replica is not None and root.version <= replica.version:
            self._last_reply = msg.body
            return [answer]
        out: list[Message] = []
        if replica is None:
            if request.topic == "kvs.commit":  # sent again, and its namespace was removed
                return [answer]
            replica = self._replica(root.namespace)
            replica.adopt(root)  # a replica that exists takes its first root from a setroot
            out = [control("page.root", root, PAGE), *self.watches.new_version(None, root, None)]
        if then is OnAnswer.RETRY:
            return out + self._step_again(request, now)
        return out + self._pending.answer_at(replica, root.version, answer)

    # -------------------------------------------------------------------------------------------------------- additions

    def _add(self, msg: Message, now: float) -> list[Message]:
        add = _decode_add(msg)
        if len(add.key) > KEY_BYTES_MAX:
            split_key(add.key)  # raises InvalidKey
        return self.adds.from_client(msg, add)

    def _add_combined(self, msg: Message, now: float) -> list[Message]:
        return self.adds.from_child(msg, _decode_adds(msg))

    def _ask_adds(self, adds: Adds) -> Message:
        """Return the request for combined additions: to the parent, which combines more; at rank 0 to the leader."""
        return self.ask("kvs.adds", adds, self._tree.parent) if self._tree.rank else self.ask("leader.adds", adds, ANY)

    def _added(self, msg: Message) -> list[Message]:
        root, answers, out = self.adds.answered(msg)
        replica = self.replicas.get(root.namespace) if root is not None else None
        for answer in answers:
            if root is None or replica is None:
                out.append(answer)
            else:
                out += self._pending.answer_at(replica, root.version, answer)
        return out

    # --------------------------------------------------------------------------------------------------------- versions

    def _replica(self, namespace: str) -> Replica:
        """Return the replica of a namespace, made if this broker has none."""
        replica = self.replicas.get(namespace)
        if replica is None:
            replica = self.replicas[namespace] = Replica(namespace, self._limits.history_max)
        return replica

    def _spread(self, msg: Message) -> list[Message]:
        """Return the same control message to every child."""
        return [Message(CONTROL, msg.topic, child, body=msg.body) for child in self._tree.live_children()]

    def _setroot(self, msg: Message, now: float) -> list[Message]:
        setroot: Setroot = _decode_setroot(msg)
        if not 0 <= setroot.oldest <= setroot.version <= INTEGER_MAX:
            raise InvalidRequest(f"version {setroot.version}, and {setroot.oldest} is the oldest")
        replica = self._replica(setroot.namespace)
        root = RootInfo(setroot.namespace, setroot.version, setroot.ref, setroot.time)
        before = replica.root
        if not replica.adopt(root, setroot.oldest):
            return []
        self._setroots += 1
        if self._tree.rank:
            for blob in setroot.nodes:
                self._keep_blob(blob)
        out = self._spread(msg)
        out.append(control("page.root", root, PAGE))
        for done in setroot.fences:
            out += self._fence_done(done, now)
        if replica.parked:
            out += self._pending.release(replica.release()) + self._step_ready(now)
        out += self.watches.new_version(before, root, setroot.keys, setroot.appends, setroot.by_reference)
        return out

    def _step_ready(self, now: float) -> list[Message]:
        """Step requests whose version has arrived, a bounded number in a turn: thousands may have waited."""
        return [sent for msg in self._pending.ready() for sent in self._step_again(msg, now)]

    def _step_again(self, msg: Message, now: float) -> list[Message]:
        """Step a request that waited here; an exception is its own, not that of the message that it waited for."""
        try:
            return self.step(msg, now)
        except Exception as error:
            if not self.topics[msg.topic].isolated:
                raise
            return [reply_error(msg, self.failed(msg.topic, error))]

    def _removed(self, msg: Message, now: float) -> list[Message]:
        """Handle the removal of a namespace.

        Answers of rank 0 that are held here are still right, and are sent. Requests that wait here wait for a version
        above its last one, perhaps one of a new namespace with that name, so they are stepped again and ask rank 0.
        """
        out = self._spread(msg)
        old = _decode_old(msg)
        replica = self.replicas.pop(old.name, None)
        self._last_reply = b""
        if replica is None:
            return out
        out.append(control("page.removed", old.name, PAGE))
        out += self.watches.removed(RootInfo(old.name, old.version, b"", 0.0))
        return out + self._pending.release(replica.release_all()) + self._step_ready(now)

    # ------------------------------------------------------------------------------------------------------------ blobs

    def _ask_blob(self, ref: Ref) -> Message:
        return self.ask("content.load", [ref], self._tree.rank)

    def _ask_path(self, path: PathRequest) -> Message | None:
        """Return the request for a path: the parent has the nodes, or loads them. Rank 0 has all blobs."""
        return self.ask("kvs.path", path, self._tree.parent) if self._tree.parent >= 0 else None

    def _keep_blob(self, blob: bytes) -> Ref:
        ref = self._digest(blob)
        self._blobs.put(ref, blob)
        return ref

    def _swept(self, msg: Message, now: float) -> list[Message]:
        """Pass on which large blobs rank 0 has collected: every broker drops the segments that have them."""
        return [*self._spread(msg), control("value.swept", _decode_swept(msg).refs)]

    def _drop_cache(self, msg: Message, now: float) -> list[Message]:
        self._nodes.clear()
        return []

    # ----------------------------------------------------------------------------------------------------------- fences

    def _fence(self, msg: Message, now: float) -> list[Message]:
        return self._with_fence_deadline(self._fences.from_client(msg, now))

    def _gather(self, msg: Message, now: float) -> list[Message]:
        return self._with_fence_deadline(self._fences.from_child(msg, now))

    def _fence_member(self, msg: Message, now: float) -> list[Message]:
        return self._with_fence_deadline(self._fences.about_member(msg))

    def _pass_fence_done(self, msg: Message, now: float) -> list[Message]:
        return self._spread(msg) + self._fence_done(_decode_done(msg), now)

    def _fence_done(self, done: FenceDone, now: float) -> list[Message]:
        return self._with_fence_deadline(self._fences.done(done, now))

    def _with_fence_deadline(self, out: list[Message]) -> list[Message]:
        """Take over the fences' deadline, which what they just did may have changed."""
        self.deadline = self._fences.deadline
        return out

    # ---------------------------------------------------------------------------------------------------------- watches

    def _watch(self, msg: Message, now: float) -> list[Message]:
        watch = _decode_watch(msg)
        if len(watch.key) > KEY_BYTES_MAX:
            split_key(watch.key)  # raises InvalidKey: nothing is parked
        if not watch.wait:
            waits = self._pending.wait_for_version(msg, watch.namespace, watch.at_least)
            if waits is not None:
                return waits
        replica = self.replicas.get(watch.namespace)
        if watch.after is not None and replica is not None and 0 <= replica.version < watch.after:
            # Rank 0 knows whether that version exists. If it does, it is here before the answer, on the same links.
            return self._pending.ask_root(msg, GetRoot(watch.namespace, at=watch.after), OnAnswer.RETRY)
        return self.watches.begin(msg, watch)

    def _watch_ack(self, msg: Message, now: float) -> list[Message]:
        return self.watches.acknowledge(msg, _decode_ack(msg))

    def _watch_need(self, msg: Message, now: float) -> list[Message]:
        return self.watches.needs.from_child(_decode_need(msg), msg.hop)

    def _watch_progress(self, msg: Message, now: float) -> list[Message]:
        return self.watches.progress(msg, _decode_progress(msg).tag)

    # ---------------------------------------------------------------------------------------------------------- clients

    def _cancel(self, msg: Message, now: float) -> list[Message]:
        """Cancel a client's contribution to a fence, a request that waits for its version, or a watch."""
        tag = _decode_cancel(msg).tag
        left = self._fences.cancel(msg, tag)
        if left is not None:
            return self._with_fence_deadline(left)
        waiting = self._pending.cancel(msg.route, tag)
        if waiting is not None:
            return [reply(waiting)]
        return self.watches.cancel(msg, tag)

    def _client_left(self, msg: Message, now: float) -> list[Message]:
        """Handle the disconnection of a client of another broker that has sent requests here."""
        route = client_of(msg)
        self._pending.drop(route)
        self._fault_in.drop(route)
        return []

    def disconnect(self, hop: int, now: float) -> list[Message]:
        self._pending.drop([hop])
        self._fault_in.drop([hop])
        self.adds.disconnect(hop)
        out = self._with_fence_deadline(self._fences.disconnect(hop)) + self.watches.disconnect(hop)
        if self._has_more:
            self.deadline = now
        return out

    # ----------------------------------------------------------------------------------------------------- housekeeping

    def primary_version(self) -> int:
        """Return the newest version of the primary namespace that this broker has."""
        return self.replicas[PRIMARY].version

    def statistics(self) -> dict[str, float]:
        return {
            "version": self.primary_version(),
            "namespaces": len(self.replicas),
            "setroots": self._setroots,
            **self._reads.statistics(),
            **self._pending.statistics(),
            **self.adds.statistics(),
            **self._fences.statistics(),
            **self.watches.statistics(),
            **self._nodes.statistics(),
        }

    def check(self) -> None:
        self._nodes.check()
        self._fences.check()
        self.adds.check()
        self._fault_in.check()
        self.watches.check()
        self._pending.check()
        for replica in self.replicas.values():
            replica.check()
