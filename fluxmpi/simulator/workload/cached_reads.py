"""Reads of a simulated client through the real cached reader.

A read starts at the root in the page of the client's broker, walks cached nodes, and requests only what is missing. The
transcript records it as the request that it replaces, so the same checkers judge it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxmpi.client.cached_reader import ReaderRequest, ReadWalk, UnknownRoot
from fluxmpi.errors import FluxmpiError, NoSuchBlob, SnapshotCollected, decode_error
from fluxmpi.kvs.wire import GetRequest, Got, Listed, ListRequest, RootInfo
from fluxmpi.message import ANY, OK, Message, encode_body
from fluxmpi.simulator.inspection.monitor import versions
from fluxmpi.simulator.workload.transcript import Answer, ClientCall, VersionMap

if TYPE_CHECKING:
    from fluxmpi.simulator.workload.client import Client


class CachedRead:
    """A read in progress. ``call`` is its record."""

    def __init__(self, client: Client, call: ClientCall, root: RootInfo, walk: ReadWalk) -> None:
        self._client = client
        self._call = call
        self._root = root
        self._walk = walk
        self._rank = client.main.rank
        """The broker whose page it began with; it may end at another one."""
        self._low = self._has()
        self._continue(None)

    def _has(self) -> VersionMap:
        return versions(self._client.cluster.nodes[self._rank].broker)

    def _continue(self, body: bytes | None) -> None:
        try:
            self._ask(self._walk.send(body))  # type: ignore[arg-type]
        except StopIteration as end:
            if end.value is None:  # a large directory
                self._leave_to_broker()
            else:
                self._end(OK, self._answer(end.value))
        except (UnknownRoot, NoSuchBlob, SnapshotCollected):
            self._leave_to_broker()
        except FluxmpiError as error:
            self._end(error.code, error.text)

    def _ask(self, ask: ReaderRequest) -> None:
        call = self._client.call(ask.topic, ask.body)
        self._client.then[id(call)] = self

    def answered(self, msg: Message) -> None:
        """Continue with the answer to its last request."""
        if msg.status == OK:
            self._continue(bytes(msg.body))
            return
        error = decode_error(msg.status, msg.body)
        if isinstance(error, NoSuchBlob | SnapshotCollected):
            self._leave_to_broker()
        else:
            self._end(msg.status, error.text)

    def cut(self) -> None:
        """End the read: the broker or the client is gone."""
        self._call.cut = True
        self._client.end(self._call)

    def _leave_to_broker(self) -> None:
        self._client.main.send(self._call, encode_body(self._call.body), ANY)

    def _answer(self, found: Any) -> Got | Listed:
        version, ref, ask = self._root.version, self._root.ref, self._call.body
        if isinstance(ask, ListRequest):
            return Listed(version, ref, *found)
        return Got(version, ref, *found) if ask.load else Got(version, ref, found)

    def _end(self, status: int, body: Any) -> None:
        client = self._client
        self._call.answers.append(Answer(client.cluster.now, self._rank, status, body, self._low, self._has()))
        if status == OK:
            client.saw(self._call, body)
        client.end(self._call)
        client.on_idle()


def begin(client: Client, ask: GetRequest | ListRequest) -> ClientCall:
    """Read through the cached reader; by a request if it does not know the root."""
    reader, at = client.reader, ask.at
    topic = "kvs.get" if isinstance(ask, GetRequest) else "kvs.list"
    shown = (
        reader.root(ask.namespace)
        if at is None
        else RootInfo(ask.namespace, 0, at, 0.0)
        if isinstance(at, bytes)
        else None
    )
    if shown is None:
        return client.call(topic, ask)
    if isinstance(ask, ListRequest):
        walk = reader.listing(ask.namespace, shown.ref, ask.key, ask.prefix, ask.after, ask.limit)
    elif ask.load:
        walk = reader.get(ask.namespace, shown.ref, ask.key)
    else:
        walk = reader.find(ask.namespace, shown.ref, ask.key, ask.follow)
    call = client.record(topic, ask)
    CachedRead(client, call, shown, walk)
    return call


def shown(client: Client, ask: Any) -> ClientCall:
    """Return the newest root from the page, or by a request."""
    root = client.reader.root(ask.namespace)
    if root is None:
        return client.call("kvs.getroot", ask)
    call = client.record("kvs.getroot", ask)
    has = versions(client.cluster.nodes[client.main.rank].broker)
    call.answers.append(Answer(client.cluster.now, client.main.rank, OK, root, has, has))
    client.saw(call, root)
    client.end(call)
    return call
