"""The ``roots`` service: what rank 0 knows of versions, for all brokers and their clients."""

from __future__ import annotations

from fluxmpi.errors import FluxmpiError, InvalidRequest
from fluxmpi.kvs.spaces import Spaces
from fluxmpi.kvs.wire import GetRoot, RootInfo
from fluxmpi.machine import Machine
from fluxmpi.message import REQUEST, Body, Message, reply, reply_error

_decode_getroot = Body(GetRoot)


class Roots(Machine):
    name = "roots"

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self._spaces = spaces

    def step(self, msg: Message, now: float) -> list[Message]:
        if msg.kind != REQUEST:
            return []
        try:
            if msg.topic == "roots.get":
                return [reply(msg, self._get(_decode_getroot(msg)))]
            raise InvalidRequest(f"service roots has no method {msg.topic!r}")
        except FluxmpiError as error:
            return [reply_error(msg, error)]

    def _get(self, getroot: GetRoot) -> RootInfo:
        space = self._spaces.find(getroot.namespace)
        return space.root if getroot.at is None else space.at(getroot.at)

    def statistics(self) -> dict[str, float]:
        return {"namespaces": len(self._spaces)}

    def check(self) -> None:
        self._spaces.check()
