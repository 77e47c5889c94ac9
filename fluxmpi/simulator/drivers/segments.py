"""SEGMENTS: memory files as bytes; a passed descriptor is the bytes themselves.

Creating a segment can fail, as where memory is short. ``passed`` has what clients received, by request.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from fluxmpi.content.wire import BlobPlace, Create, Mapped, Pass, Spoilt
from fluxmpi.errors import StorageError, encode_error
from fluxmpi.message import CONTROL, RESPONSE, SEGMENTS, Body, Message, control, encode_body

_decode_create = Body(Create)
_decode_pass = Body(Pass)
_decode_place = Body(BlobPlace)
_decode_segment = Body(int)


class SimulatedSegments:
    """``deliver`` passes a message to the segments' broker, ``answer`` sends one to a client of it."""

    def __init__(
        self,
        rng: Random,
        deliver: Callable[[Message], None],
        answer: Callable[[int, Message], None],
        failures: float = 0.0,
    ) -> None:
        self._rng = rng
        self._deliver = deliver
        self._answer = answer
        self._failures = failures
        self._files: dict[int, bytearray | None] = {}
        """None: it could not be created."""
        self._sealed: dict[int, None] = {}
        self.passed: dict[tuple[int, int], bytes] = {}
        """(hop, tag) of a ``value.map`` to the bytes behind the descriptor of its answer."""

    @property
    def open(self) -> int:
        return len(self._files)

    def step(self, msg: Message) -> None:
        match msg.topic:
            case "segment.create":
                create = _decode_create(msg)
                failed = self._rng.random() < self._failures
                self._files[create.segment] = None if failed else bytearray(create.size)
                if failed:
                    self._deliver(
                        control("value.spoilt", Spoilt(create.segment, *encode_error(_no_memory())), SEGMENTS)
                    )
            case "segment.write":
                assert msg.tag not in self._sealed, "write to a sealed segment"
                file = self._files[msg.tag]
                if file is not None:
                    assert msg.target + len(msg.body) <= len(file), "write past the end of a segment"
                    file[msg.target : msg.target + len(msg.body)] = msg.body
            case "segment.read":
                self._deliver(self._read(msg.tag, _decode_place(msg)))
            case "segment.seal":
                self._sealed[_decode_segment(msg)] = None
            case "segment.pass":
                self._pass(_decode_pass(msg))
            case "segment.close":
                segment = _decode_segment(msg)
                del self._files[segment]
                self._sealed.pop(segment, None)

    def _read(self, tag: int, place: BlobPlace) -> Message:
        file = self._files.get(place.segment)
        if file is None:
            return Message(CONTROL, "content.read", SEGMENTS, tag=tag, status=StorageError.code)
        return Message(
            CONTROL, "content.read", SEGMENTS, tag=tag, body=bytes(file[place.offset : place.offset + place.size])
        )

    def _pass(self, wanted: Pass) -> None:
        answer = Message(RESPONSE, "value.map", wanted.hop, tag=wanted.tag)
        file = self._files[wanted.segment]
        if file is None:
            answer.status, answer.body = encode_error(_no_memory())
        else:
            assert wanted.segment in self._sealed, "a segment is passed that is not sealed"
            self.passed[wanted.hop, wanted.tag] = bytes(file)
            answer.body = encode_body(Mapped(len(file)))
        self._answer(wanted.hop, answer)


def _no_memory() -> StorageError:
    return StorageError("no memory for a value")
