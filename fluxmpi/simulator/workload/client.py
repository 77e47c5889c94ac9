"""A client: the real protocol core over a simulated socket. It does everything unusual that clients may do.

It may have connections to several brokers; ``main`` is the one that it uses. It sends commits and contributions again,
with the same ids, over any of them, answered or not. When its broker dies, it moves to another one, keeps its
``Session``, and sends unanswered commits again.

    call ──main──▶ broker ──▶ answers ──▶ transcript
      └──resend──▶ another broker ──▶ …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from fluxmpi.blobref import Ref
from fluxmpi.broker.wire import Shutdown
from fluxmpi.client import protocol
from fluxmpi.client.cached_reader import CachedReader
from fluxmpi.client.kvs.transaction import in_pieces
from fluxmpi.client.protocol import Connection, EventQueue
from fluxmpi.client.session import Session
from fluxmpi.content.wire import LoadRequest, Map, Stored
from fluxmpi.errors import InstanceEnding, RankLost, decode_error
from fluxmpi.jobs.wire import Exit, Output, RunRequest
from fluxmpi.kvs.objects import refs_of
from fluxmpi.kvs.replica.root_page import RootPage
from fluxmpi.kvs.wire import (
    NOTIFICATION_BYTES,
    PRIMARY,
    AddTo,
    At,
    Cancel,
    Commit,
    Committed,
    Contribution,
    Fence,
    GetRequest,
    GetRoot,
    Got,
    Guard,
    Listed,
    ListRequest,
    Notification,
    Op,
    Restore,
    RootInfo,
    Save,
    WatchAck,
    WatchProgress,
    WatchRequest,
)
from fluxmpi.message import ANY, MORE, OK, Message, encode_body
from fluxmpi.overlay.wire import Ping, Pong, Publish, Subscribe
from fluxmpi.simulator.cluster import Cluster
from fluxmpi.simulator.drivers.page import PageView
from fluxmpi.simulator.inspection.monitor import Monitor
from fluxmpi.simulator.workload import cached_reads as reads
from fluxmpi.simulator.workload.cached_reads import CachedRead
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, SubscribedCall, Transcript, VersionMap

UNSURE = (RankLost.code, InstanceEnding.code)
"""Errors that do not say whether a request was executed: a commit stays open, and is sent again."""

_RESULTS: dict[str, Any] = {
    "kvs.commit": Committed,
    "kvs.add": Committed,
    "kvs.fence": RootInfo,
    "kvs.getroot": RootInfo,
    "kvs.get": Got,
    "kvs.list": Listed,
    "kvs.watch": Notification,
    "content.store": Stored,
    "ping.ping": Pong,
    "event.publish": int,
    "event.subscribe": int,
}
_decoders = {topic: protocol.decoder(record) for topic, record in _RESULTS.items()}
_decode_any = protocol.decoder(Any)
_decode_output, _decode_exit = protocol.decoder(Output), protocol.decoder(Exit)


class Port:
    """One connection of a client."""

    def __init__(self, client: Client, rank: int) -> None:
        self.rank = rank
        self.client = client
        self.connection = Connection()
        self.calls: dict[int, tuple[protocol.Call, ClientCall]] = {}
        self.subscribed: list[tuple[EventQueue, SubscribedCall]] = []
        self.hop = client.cluster.connect(rank, self)
        self.page = RootPage(PageView(client.cluster.nodes[rank].page, Random(f"{client.name} looks at {rank}")))
        self.open = True

    def send(self, call: ClientCall, body: bytes, target: int) -> int:
        """Send a request; return its tag."""
        asked = self.connection.request(call.topic, body, target)
        self.calls[asked.tag] = (asked, call)
        call.sent += 1
        self.flush()
        return asked.tag

    def flush(self) -> None:
        self.client.cluster.write(self.rank, self.hop, self.connection.data_to_send())

    def receive(self, data: bytes) -> None:
        if not self.open:
            return
        self.connection.receive(data)
        for tag, (asked, call) in list(self.calls.items()):
            while asked.responses:
                self.client.answered(self, call, asked.responses.popleft())
            if asked.ended and self.connection.error is None:
                self.calls.pop(tag, None)
        self._events()
        if self.connection.error is not None:
            self.open = False
            self.client.lost(self)

    def _events(self) -> None:
        """Take the events that follow the subscription's answer."""
        for subscription, subscribed in self.subscribed:
            begun = [answer.body for answer in subscribed.call.answers if answer.status == OK]
            if begun:
                subscription.begin(begun[0])
            while begun and subscription.events and (taken := subscription.take()) is not None:
                topic, event = taken
                subscribed.events.append((topic, event.seq, bytes(event.payload)))
                subscribed.snapshots[event.seq] = event.snapshot

    def close(self) -> None:
        """Close as a process that ends: open requests are given up."""
        if self.open:
            self.open = False
            self.client.cluster.disconnect(self.rank, self.hop)


class Client:
    """``on_idle`` is called whenever a call has ended."""

    def __init__(self, name: str, cluster: Cluster, monitor: Monitor, history: Transcript, rank: int) -> None:
        self.name = name
        self.cluster = cluster
        self.transcript = history
        self.session = Session(name)
        self.open: dict[int, ClientCall] = {}
        """Calls without an answer, except streams, by identity in order."""
        self.gone = False
        """No broker is left, or the client ended."""
        self.on_idle: Callable[[], None] = lambda: None
        self._monitor = monitor
        self._encoded: dict[int, bytes] = {}
        self._calls = 0
        self.reader = CachedReader(self.session, cluster.digest, None, cluster.shape.cache_bytes_max)
        self.then: dict[int, CachedRead] = {}
        """Calls, by identity, to the cached reads that wait for their answer."""
        self._slow: dict[int, float] = {}
        self.ports: dict[int, Port] = {}
        self.main = self._use(rank)

    # -------------------------------------------------------------------------------------------------- connections

    def port(self, rank: int) -> Port:
        """Return the connection to that rank, or open it."""
        port = self.ports.get(rank)
        if port is None or not port.open:
            port = self.ports[rank] = Port(self, rank)
        return port

    def _use(self, rank: int) -> Port:
        """Return the connection for later requests, and use the root page of its broker."""
        port = self.port(rank)
        self.reader.page = port.page
        return port

    def move(self, rank: int, leave: bool) -> None:
        """Use another broker from now on; ``leave`` closes the old connection and sends its open calls again."""
        old, self.main = self.main, self._use(rank)
        if leave and old is not self.main and old.open:
            old.close()
            self._cut(old)

    def lost(self, port: Port) -> None:
        """Handle a connection that the broker closed: it ended, or died."""
        if port is self.main and not self.gone:
            up = [node.rank for node in self.cluster.nodes if node.up and not node.paused]
            up = up or [node.rank for node in self.cluster.nodes if node.up]
            if up:
                self.main = self._use(up[len(self.transcript.calls) % len(up)])
            else:
                self.gone = True
        self._cut(port)
        self.on_idle()

    def _cut(self, port: Port) -> None:
        """Nothing more arrives on this connection: send again what has an id, give up the rest."""
        for _, subscribed in port.subscribed:
            subscribed.ended = True
        for _, call in list(port.calls.values()):
            if call.done:
                continue
            if call.id is not None and not self.gone:
                self.resend(call)
            else:
                call.cut = True
                self.end(call)
                read = self.then.pop(id(call), None)
                if read is not None:
                    read.cut()
        port.calls.clear()

    def quit(self) -> None:
        """End as a process that is killed."""
        self.gone = True
        for port in self.ports.values():
            if port.open:
                port.close()
                self._cut(port)

    # -------------------------------------------------------------------------------------------------------- calls

    def call(
        self, topic: str, body: Any, *, target: int = ANY, raw: bytes | None = None, stream: bool = False
    ) -> ClientCall:
        """Send a request over the main connection. ``raw``: its body, if that is not a record."""
        call = self.record(topic, body, stream)
        encoded = encode_body(body) if raw is None else raw
        if call.id is not None:
            self._encoded[call.id.serial] = encoded
        self.main.send(call, encoded, target)
        return call

    def record(self, topic: str, body: Any, stream: bool = False) -> ClientCall:
        """Record a request in the transcript."""
        call = ClientCall(self.name, topic, body, self.cluster.now, dict(self.session.versions))
        call.id = body.id if topic in ("kvs.commit", "kvs.add") else body.parts[0].id if topic == "kvs.fence" else None
        self.transcript.calls.append(call)
        if not stream:
            self.open[id(call)] = call
        return call

    def resend(self, call: ClientCall, rank: int | None = None) -> None:
        """Send the same bytes again, over the main connection or another one."""
        assert call.id is not None
        port = self.main if rank is None else self.port(rank)
        port.send(call, self._encoded[call.id.serial], ANY)

    def answered(self, port: Port, call: ClientCall, msg: Message) -> None:
        status = msg.status
        if status > OK:
            body: Any = decode_error(status, msg.body).text
        else:
            body = self._decode(port, call, msg)
        low, high = self._monitor.window(port.hop, msg)
        call.answers.append(Answer(self.cluster.now, port.rank, status, body, low, high))
        if status <= OK:
            self.saw(call, body)
        if status == MORE and call.topic == "kvs.watch":
            self._taken(port, msg.tag, call, len(msg.body) + NOTIFICATION_BYTES)
        if status == MORE or call.done:
            return
        if call.id is not None:
            if status in UNSURE:
                return
            self.session.answered(call.id.serial)
        self.end(call)
        read = self.then.pop(id(call), None)
        if read is not None:
            read.answered(msg)
        self.on_idle()

    def _decode(self, port: Port, call: ClientCall, msg: Message) -> Any:
        if call.topic == "exec.run":
            return _decode_output(msg) if msg.status == MORE else _decode_exit(msg)
        if call.topic == "content.load":
            return bytes(msg.body)
        if call.topic == "value.map":
            return self.cluster.nodes[port.rank].segments.passed.pop((port.hop, msg.tag))
        if call.topic == "kvs.watch" and msg.status == OK:
            return None
        return _decoders.get(call.topic, _decode_any)(msg)

    def saw(self, call: ClientCall, body: Any) -> None:
        root = isinstance(body, RootInfo) and (call.topic != "kvs.getroot" or call.body.at is None)
        if root or isinstance(body, Notification):
            self.session.saw(body.namespace, body.version)
        elif isinstance(body, Got | Listed) and getattr(call.body, "at", None) is None:
            self.session.saw(call.body.namespace, body.version)

    def end(self, call: ClientCall) -> None:
        call.ended = self.cluster.now
        self.open.pop(id(call), None)

    # ----------------------------------------------------------------------------------------------------- requests

    def _least(self, namespace: str) -> int:
        return self.session.at_least(namespace)

    def commit(
        self,
        ops: list[Op],
        namespace: str = PRIMARY,
        guards: Sequence[Guard] = (),
        otherwise: Sequence[Op] = (),
        events: Sequence[tuple[str, bytes]] = (),
    ) -> ClientCall:
        name, acked = self.session.commit_id(), self.session.acked
        pieces = self.cluster.shape.piece_ops
        commit = Commit(namespace, name, acked, ops, list(guards), list(otherwise), list(events))
        (then, more), (other, other_more) = in_pieces(ops, pieces), in_pieces(commit.otherwise, pieces)
        sent = Commit(namespace, name, acked, then, commit.guards, other, commit.events, False, more, other_more)
        return self.call("kvs.commit", commit, raw=encode_body(sent))

    def add(self, key: str, amount: int, namespace: str = PRIMARY) -> ClientCall:
        return self.call("kvs.add", AddTo(namespace, self.session.commit_id(), self.session.acked, key, amount))

    def fence(self, name: str, size: int, ops: list[Op], namespace: str = PRIMARY) -> ClientCall:
        part = Contribution(self.session.commit_id(), ops, self.session.acked)
        first, more = in_pieces(ops, self.cluster.shape.piece_ops)
        sent = Contribution(part.id, first, part.acked, more, list(refs_of(getattr(op, "object", None) for op in ops)))
        raw = encode_body(Fence(namespace, name, size, [sent]))
        return self.call("kvs.fence", Fence(namespace, name, size, [part]), raw=raw)

    def read(
        self, key: str, namespace: str = PRIMARY, at: At = None, follow: bool = True, load: bool = True
    ) -> ClientCall:
        """Read as ``get`` does, through the cached reader."""
        least = self._least(namespace) if at is None else 0
        return reads.begin(self, GetRequest(key, namespace, at, least, follow or load, load))

    def leave_fence(self, call: ClientCall) -> None:
        """Cancel a contribution on the main connection."""
        for tag, (_, other) in self.main.calls.items():
            if other is call:
                self.main.connection.post("kvs.cancel", encode_body(Cancel(tag)))
                self.main.flush()
                return

    def get(
        self, key: str, namespace: str = PRIMARY, at: At = None, follow: bool = True, load: bool = True
    ) -> ClientCall:
        return self.call(
            "kvs.get", GetRequest(key, namespace, at, self._least(namespace) if at is None else 0, follow, load)
        )

    def listing(
        self, key: str, namespace: str = PRIMARY, at: At = None, prefix: str = "", after: str = "", limit: int = 1000
    ) -> ClientCall:
        least = self._least(namespace) if at is None else 0
        return self.call("kvs.list", ListRequest(key, namespace, at, least, prefix, after, limit))

    def list_read(
        self, key: str, namespace: str = PRIMARY, at: At = None, prefix: str = "", after: str = "", limit: int = 1000
    ) -> ClientCall:
        """List as ``listing`` does, through the cached reader."""
        least = self._least(namespace) if at is None else 0
        return reads.begin(self, ListRequest(key, namespace, at, least, prefix, after, limit))

    def root_shown(self, namespace: str = PRIMARY) -> ClientCall:
        """Return the root as ``getroot`` does, from the page."""
        return reads.shown(self, GetRoot(namespace, self._least(namespace)))

    def getroot(self, namespace: str = PRIMARY, fresh: bool = False, at: int | None = None) -> ClientCall:
        return self.call("kvs.getroot", GetRoot(namespace, self._least(namespace), fresh, at))

    def wait_version(self, version: int, namespace: str = PRIMARY, target: int = ANY) -> ClientCall:
        return self.call("kvs.getroot", GetRoot(namespace, max(version, self._least(namespace))), target=target)

    def get_at_rank(self, key: str, rank: int, version: int) -> ClientCall:
        """Read at another broker, which answers when it has the version."""
        return self.call("kvs.get", GetRequest(key, PRIMARY, at_least=version), target=rank)

    def watch(
        self, key: str, namespace: str = PRIMARY, recursive: bool = False, follow: bool = True, **more: Any
    ) -> ClientCall:
        """Open a watch; ``more``: fields of ``WatchRequest``."""
        watch = WatchRequest(key, namespace, self._least(namespace), recursive, follow, **more)
        return self.call("kvs.watch", watch, stream=True)

    def slow(self, call: ClientCall, seconds: float) -> None:
        """Acknowledge each notification of this watch so much later."""
        self._slow[id(call)] = seconds

    def _taken(self, port: Port, tag: int, call: ClientCall, size: int) -> None:
        """Acknowledge a notification, now or later."""

        def acknowledge() -> None:
            if port.open and not call.done and tag in port.calls:
                port.connection.post("kvs.watch-ack", encode_body(WatchAck(tag, size)))
                port.flush()

        seconds = self._slow.get(id(call), 0.0)
        if seconds:
            self.cluster.schedule.after(seconds, acknowledge)
        else:
            acknowledge()

    def progress(self, call: ClientCall) -> bool:
        """Request the progress of a watch, if it is on the main connection."""
        for tag, (_, other) in self.main.calls.items():
            if other is call:
                call.progress_after = len(call.answers)
                self.main.connection.post("kvs.watch-progress", encode_body(WatchProgress(tag)))
                self.main.flush()
                return True
        return False

    def cancel(self, call: ClientCall) -> bool:
        """End a watch, if it is on the main connection."""
        for tag, (_, other) in self.main.calls.items():
            if other is call:
                call.cancelled = True
                self.main.connection.post("kvs.cancel", encode_body(Cancel(tag)))
                self.main.flush()
                return True
        return False

    def publish(self, topic: str, payload: bytes) -> ClientCall:
        return self.call("event.publish", Publish(topic, payload), target=0)

    def subscribe(self, prefix: str) -> SubscribedCall:
        subscription = EventQueue(prefix)
        self.main.connection.subscribe(subscription)
        subscribed = SubscribedCall(self.call("event.subscribe", Subscribe(prefix)), prefix)
        self.transcript.subscriptions.append(subscribed)
        self.main.subscribed.append((subscription, subscribed))
        return subscribed

    def unsubscribe(self, subscribed: SubscribedCall) -> None:
        for entry in self.main.subscribed:
            if entry[1] is subscribed and not subscribed.ended:
                subscribed.ended = True
                self.main.subscribed.remove(entry)
                if self.main.connection.unsubscribe(entry[0]):
                    self.call("event.unsubscribe", Subscribe(subscribed.prefix))
                return

    def store(self, blob: bytes) -> ClientCall:
        return self.call("content.store", None, raw=blob)

    def load(self, ref: Ref) -> ClientCall:
        return self.call("content.load", LoadRequest(ref))

    def map(self, refs: list[Ref], size: int) -> ClientCall:
        return self.call("value.map", Map(refs, size))

    def dropcache(self) -> ClientCall:
        return self.call("content.dropcache", None)

    def ping(self, rank: int) -> ClientCall:
        return self.call("ping.ping", Ping(len(self.transcript.calls), b"payload"), target=rank)

    def run(self, words: list[str], rank: int) -> ClientCall:
        return self.call("exec.run", RunRequest(words), target=rank)

    def save(self, path: str) -> ClientCall:
        return self.call("checkpoint.save", Save(path), target=0)

    def restore(self, path: str) -> ClientCall:
        return self.call("checkpoint.restore", Restore(path), target=0)

    def shutdown(self) -> ClientCall:
        return self.call("lifecycle.shutdown", Shutdown(0, "the run is over"), target=0)

    def versions(self) -> VersionMap:
        return dict(self.session.versions)
