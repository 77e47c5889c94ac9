"""The SEGMENTS' twin: files that are bytes, and a descriptor that is what it stands for.

Creating one fails when a run wants that, as it does where memory is short. What is passed can be looked up by who was to get it.
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
    """``deliver`` hands a message to the broker of these segments, ``answer`` sends one to a client of it."""

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
        """None is one that could not be made."""
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
                assert msg.tag not in self._sealed, "a sealed segment is written to"
                file = self._files[msg.tag]
                if file is not None:
                    assert msg.target + len(msg.body) <= len(file), "a segment is written past its end"
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
            assert wanted.segment in self._sealed, "a segment is passed that can still be written to"
            self.passed[wanted.hop, wanted.tag] = bytes(file)
            answer.body = encode_body(Mapped(len(file)))
        self._answer(wanted.hop, answer)


def _no_memory() -> StorageError:
    return StorageError("no memory for a value")
