"""Checks during a run, at every step of every broker.

- ``kvs.setroot`` arrives on each link with versions that count up by one, and a broker's version follows them exactly.
- A broker's version never goes back, whatever arrives (plans inject old setroots).
- A commit is answered to the client when its broker has that version, not before.
- When a message leaves to a client, the broker's root page shows the versions that the broker has.
- A blob is loaded over a link once at a time (loads are coalesced).

For each request of a client, the monitor records the versions that the broker had when the request arrived and when it
was answered: a read must return a version between them.
"""

from __future__ import annotations

from fluxmpi.broker.broker import Broker
from fluxmpi.content.wire import LoadRequest
from fluxmpi.kvs.replica.root_page import RootPage
from fluxmpi.kvs.wire import RootInfo, Setroot
from fluxmpi.message import CLIENT_FIRST, CONTROL, EVENT, OK, REQUEST, RESPONSE, Body, Message
from fluxmpi.overlay.wire import EventRecord
from fluxmpi.simulator.cluster import SimulatedRank
from fluxmpi.simulator.workload.transcript import VersionMap

_decode_setroot = Body(Setroot)
_decode_root = Body(RootInfo)
_decode_load = Body(LoadRequest)
_decode_event = Body(EventRecord)


def versions(broker: Broker) -> VersionMap:
    """Return the version of each namespace that a broker has."""
    return {name: replica.version for name, replica in broker.kvs.replicas.items() if replica.root is not None}


class Monitor:
    """``violations`` are texts for people. A run with any has failed."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._versions: dict[int, VersionMap] = {}
        self._arrived: dict[tuple[int, int], VersionMap] = {}
        """(hop, tag) of a client's request to the versions of its broker when it arrived."""
        self._answered: dict[tuple[int, int], VersionMap] = {}
        self._loading: dict[tuple[int, int, bytes], None] = {}
        self._asked: dict[tuple[int, int, int], bytes] = {}
        """(asking rank, asked rank, tag) of a ``content.load`` to the blob."""
        self.loads = self.setroots = self.old_setroots = 0

    def report(self, text: str) -> None:
        self.violations.append(text)

    def window(self, hop: int, msg: Message) -> tuple[VersionMap, VersionMap]:
        """Return what the broker had when the request arrived, and when this answer left."""
        return self._arrived.get((hop, msg.tag), {}), self._answered.get((hop, msg.tag), {})

    # ------------------------------------------------------------------------------------------------ input

    def stepping(self, node: SimulatedRank, source: int, msg: Message) -> None:
        if msg.kind == REQUEST and source <= CLIENT_FIRST:
            self._arrived[source, msg.tag] = versions(node.broker)
        elif msg.kind == CONTROL and msg.topic == "kvs.setroot":
            self._setroot(node, source, _decode_setroot(msg))
        elif msg.kind == RESPONSE and msg.topic == "content.load":
            ref = self._asked.pop((node.rank, source, msg.tag), None)
            if ref is not None:
                self._loading.pop((node.rank, source, ref), None)

    def _setroot(self, node: SimulatedRank, source: int, setroot: Setroot) -> None:
        self.setroots += 1
        has = versions(node.broker).get(setroot.namespace)
        if has is not None and setroot.version <= has:
            self.old_setroots += 1
        elif has is not None and setroot.version != has + 1:
            self.report(
                f"versions: rank {node.rank} has version {has} of {setroot.namespace} and receives {setroot.version} from"
                f" rank {source}: one was skipped"
            )

    # ------------------------------------------------------------------------------------------------ output

    def stepped(self, node: SimulatedRank, source: int, msg: Message | None, out: list[Message]) -> None:
        has = versions(node.broker)
        before = self._versions.get(node.rank, {})
        if has != before:
            self._versions[node.rank] = has
            for name, version in before.items():
                if has.get(name, version) < version:
                    self.report(
                        f"versions: rank {node.rank} went back from version {version} of {name} to {has.get(name)}"
                    )
        for sent in out:
            if sent.hop <= CLIENT_FIRST:
                if sent.kind == RESPONSE:
                    self._left_to_client(node, sent, has)
                elif sent.kind == EVENT:
                    self._event(node, sent, has)
            elif sent.topic == "content.load" and sent.kind == REQUEST and sent.hop >= 0:
                self._load(node, sent)

    def _left_to_client(self, node: SimulatedRank, msg: Message, has: VersionMap) -> None:
        self._answered[msg.hop, msg.tag] = has
        if msg.status == OK and msg.topic in ("kvs.commit", "kvs.fence", "kvs.add"):
            root = _decode_root(msg)
            if root.version > has.get(root.namespace, -1):
                self.report(
                    f"sessions: rank {node.rank} answers a {msg.topic} with version {root.version} of {root.namespace}, but"
                    f" has {has.get(root.namespace)} itself"
                )

    def _event(self, node: SimulatedRank, msg: Message, has: VersionMap) -> None:
        origin = _decode_event(msg).snapshot
        if origin is not None and has.get(origin[0], origin[1]) < origin[1]:
            self.report(
                f"events: rank {node.rank} forwards {msg.topic} of {origin[:2]}, and has version {has.get(origin[0])}"
            )

    def sending(self, node: SimulatedRank) -> None:
        page = RootPage(bytes(node.page.memory))
        for name, version in versions(node.broker).items():
            shown = page.root(name)
            if shown is None or shown.version != version:
                self.report(
                    f"page: rank {node.rank} sends to a client with version {version} of {name}, while its page shows"
                    f" {shown and shown.version}"
                )

    def _load(self, node: SimulatedRank, msg: Message) -> None:
        self.loads += 1
        ref = _decode_load(msg).ref
        link = node.rank, msg.hop, ref
        if link in self._loading:
            self.report(
                f"content: rank {node.rank} asks rank {msg.hop} for blob {ref.hex()[:12]}, which it is loading already"
            )
        self._loading[link] = None
        self._asked[node.rank, msg.hop, msg.tag] = ref

    def exited(self, node: SimulatedRank) -> None:
        """Handle a broker that has ended by itself; ``node.exit`` has its status and reason."""
