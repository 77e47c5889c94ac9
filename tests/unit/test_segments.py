"""Long values in segments: filled in order, passed when complete, closed when no client waits, and bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import CLIENT, NOW, OTHER, answer_to, ask, body, control_from, error, failed_with

from fluxmpi import errors
from fluxmpi.blobref import BLOB_BYTES_MAX, digest_function
from fluxmpi.content.cache import Cache
from fluxmpi.content.service import ContentService
from fluxmpi.content.values import VALUE_LIMITS, ValueLimits, ValueService
from fluxmpi.content.wire import BlobPlace, Create, LoadRequest, Map, Pass, Spoilt
from fluxmpi.message import CONTROL, SEGMENTS, Message

SHA256 = digest_function("sha256")
LOADING_MAX, WINDOW_PIECES = VALUE_LIMITS.loading_max, VALUE_LIMITS.window_pieces


def blob(number: int, size: int = 10) -> bytes:
    return f"{number}".encode().ljust(size, b".")


def value(count: int, size: int = 10, first: int = 0) -> tuple[list[bytes], list[bytes]]:
    blobs = [blob(first + number, size) for number in range(count)]
    return blobs, [SHA256(each) for each in blobs]


class World:
    """The machine, and a model of its driver."""

    def __init__(self, bytes_max: int = 1000, **limits: int) -> None:
        self.placed: dict[bytes, BlobPlace] = {}
        self.machine = ValueService(self.placed, bytes_max, ValueLimits(**limits))
        self.files: dict[int, bytearray] = {}
        self.sealed: list[int] = []
        self.passed: list[tuple[int, int, bytes]] = []
        self.asked: list[Message] = []
        self.answers: list[Message] = []

    def map(self, refs: list[bytes], size: int, hop: int = CLIENT, tag: int = 1) -> None:
        self.take(self.machine.step(ask("value.map", Map(refs, size), hop=hop, tag=tag), NOW))

    def tick(self) -> list[Message]:
        """Return the blobs that it requests now."""
        before = len(self.asked)
        if self.machine.deadline <= NOW:
            self.take(self.machine.tick(NOW))
        return self.asked[before:]

    def answer(self, asked: Message, blobs: list[bytes]) -> None:
        ref = body(asked, LoadRequest).ref
        (found,) = {each for each in blobs if SHA256(each) == ref}
        self.take(self.machine.step(answer_to(asked, raw=found), NOW))

    def run(self, blobs: list[bytes]) -> None:
        """Answer its requests until it has none."""
        while asks := self.tick():
            for asked in asks:
                self.answer(asked, blobs)

    def take(self, out: list[Message]) -> None:
        self.machine.check()
        for msg in out:
            match msg.topic:
                case "segment.create":
                    create = body(msg, Create)
                    self.files[create.segment] = bytearray(create.size)
                case "segment.write":
                    assert msg.tag not in self.sealed
                    self.files[msg.tag][msg.target : msg.target + len(msg.body)] = msg.body
                case "segment.seal":
                    self.sealed.append(body(msg, int))
                case "segment.pass":
                    wanted = body(msg, Pass)
                    assert wanted.segment in self.sealed
                    self.passed.append((wanted.hop, wanted.tag, bytes(self.files[wanted.segment])))
                case "segment.close":
                    del self.files[body(msg, int)]
                case "content.load":
                    self.asked.append(msg)
                case _:
                    self.answers.append(msg)
            assert msg.kind != CONTROL or msg.hop == SEGMENTS

    @property
    def pending(self) -> tuple[float, float]:
        statistics = self.machine.statistics()
        return statistics["pending"], statistics["loading"]


def test_a_value_is_loaded_once_and_passed_to_all_clients():
    world = World()
    blobs, refs = value(3)
    world.map(refs, 30, CLIENT, 7)
    world.map(refs, 30, OTHER, 8)
    world.run(blobs)
    whole = b"".join(blobs)
    assert world.passed == [(CLIENT, 7, whole), (OTHER, 8, whole)]
    assert [body(asked, LoadRequest).ref for asked in world.asked] == refs
    world.map(refs, 30, OTHER, 9)
    assert world.passed[2] == (OTHER, 9, whole), "at once, now that it is complete"
    assert len(world.asked) == 3
    assert world.pending == (0, 0)


def test_further_blobs_are_requested_by_ticks_only():
    """Else cached blobs would be requested and answered in one ever deeper call, and nothing else would be served."""
    world = World(1 << 20)
    blobs, refs = value(100)
    world.map(refs, 1000)
    asks = world.tick()
    assert len(asks) == WINDOW_PIECES
    for asked in asks:
        world.answer(asked, blobs)
    assert len(world.asked) == WINDOW_PIECES
    assert len(world.tick()) == WINDOW_PIECES


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_bytes_are_in_order_whatever_the_order_of_the_responses(data):
    world = World(1 << 20)
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=40))
    blobs = [blob(number, size + 3) for number, size in enumerate(sizes)]
    blobs += data.draw(st.lists(st.sampled_from(blobs), max_size=5))
    world.map([SHA256(each) for each in blobs], sum(map(len, blobs)))
    open_: list[Message] = []
    while asks := world.tick() or open_:
        if asks is not open_:
            open_ += asks
        assert len(open_) <= WINDOW_PIECES
        world.answer(open_.pop(data.draw(st.integers(0, len(open_) - 1))), blobs)
    assert [got for _, _, got in world.passed] == [b"".join(blobs)]
    assert world.pending == (0, 0)


@pytest.mark.parametrize("kind", [errors.NoSuchBlob, errors.DigestMismatch, errors.RankLost])
def test_all_waiting_clients_get_the_error_of_a_missing_blob(kind):
    world = World()
    blobs, refs = value(3)
    world.map(refs, 30, CLIENT, 7)
    world.map(refs, 30, OTHER, 8)
    first, second, third = world.tick()
    world.answer(first, blobs)
    world.take(world.machine.step(failed_with(second, kind("why")), NOW))
    assert [(answer.tag, type(error(answer))) for answer in world.answers] == [(7, kind), (8, kind)]
    assert (world.files, world.placed) == ({}, {})
    world.answer(third, blobs)
    assert world.pending == (0, 0)
    world.map(refs, 30, CLIENT, 9)
    world.run(blobs)
    assert len(world.passed) == 1, "requested again, it is loaded again"


@pytest.mark.parametrize("size", [29, 31, 25, 1])
def test_blobs_that_do_not_have_the_size_together(size):
    world = World()
    blobs, refs = value(3)
    world.map(refs, size)
    world.run(blobs)
    (answer,) = world.answers
    assert isinstance(error(answer), errors.DigestMismatch)
    assert (world.passed, world.files, world.pending) == ([], {}, (0, 0))


@pytest.mark.parametrize(
    ("refs", "size", "kind"),
    [
        ([], 0, errors.InvalidRequest),
        ([], 5, errors.InvalidRequest),
        ([b"x" * 32], 0, errors.InvalidRequest),
        ([b"x" * 32], -1, errors.InvalidRequest),
        ([b"x" * 32], BLOB_BYTES_MAX + 1, errors.InvalidRequest),
        ([b"x" * 31], 5, errors.InvalidRequest),
        ([b""], 5, errors.InvalidRequest),
        ([b"x" * 32], 1001, errors.TooLarge),
        ([b"x" * 32] * (VALUE_LIMITS.refs_max + 1), 900, errors.TooLarge),
        ([b"x" * 32] * 1_000_000, 900, errors.TooLarge),
        ([b"x" * 32], 1 << 62, errors.InvalidRequest),
    ],
    ids=lambda case: str(case)[:20],
)
def test_values_that_fit_into_no_segment(refs, size, kind):
    world = World()
    world.map(refs, size)
    (answer,) = world.answers
    assert type(error(answer)) is kind
    assert (world.files, world.tick(), world.pending) == ({}, [], (0, 0))


@pytest.mark.parametrize("raw", [b"", b"\x90", b"\x92\x91\xc4\x00\xc0", b"\xc1", b"\x92\xc0\x05"])
def test_bodies_that_do_not_decode(raw):
    machine = ValueService({})
    (answer,) = machine.step(ask("value.map", raw=raw), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)
    (answer,) = machine.step(ask("value.unknown"), NOW)
    assert isinstance(error(answer), errors.InvalidRequest)


def test_a_segment_for_which_no_client_waits_is_closed():
    world = World()
    blobs, refs = value(20)
    world.map(refs, 200, CLIENT, 1)
    world.map(refs, 200, OTHER, 2)
    asks = world.tick()
    world.take(world.machine.disconnect(CLIENT, NOW))
    assert len(world.files) == 1, "the other still waits"
    world.take(world.machine.disconnect(OTHER, NOW))
    assert (world.files, world.placed) == ({}, {})
    for asked in asks:
        world.answer(asked, blobs)
    assert world.tick() == []
    assert (world.passed, world.answers, world.pending) == ([], [], (0, 0))


def test_the_least_recently_used_segment_is_closed():
    world = World(bytes_max=100)
    values = [value(4, first=10 * number) for number in range(4)]
    for blobs, refs in values[:2]:
        world.map(refs, 40)
        world.run(blobs)
    world.map(values[0][1], 40)
    world.map(values[2][1], 40)
    world.run(values[2][0])
    assert [file[:2] for file in world.files.values()] == [b"0.", b"20"]
    assert set(world.placed) == {*values[0][1], *values[2][1]}
    statistics = world.machine.statistics()
    assert (statistics["evictions"], statistics["bytes"], statistics["hits"]) == (1, 80, 1)


def test_a_segment_that_fills_is_not_closed_for_another():
    world = World(bytes_max=100)
    (_, first), (_, second) = value(7), value(7, first=50)
    world.map(first, 70)
    world.map(second, 70)
    assert isinstance(error(world.answers[0]), errors.Overloaded)
    assert len(world.files) == 1


def test_waiting_clients_are_bounded():
    world = World(waiting_max=2)
    blobs, refs = value(3)
    for tag in (1, 2, 3):
        world.map(refs, 30, tag=tag)
    (answer,) = world.answers
    assert (answer.tag, type(error(answer))) == (3, errors.Overloaded)
    world.run(blobs)
    assert len(world.passed) == 2
    world.map(refs, 30, tag=4)
    assert len(world.passed) == 3


def test_requested_pieces_of_all_values_are_bounded():
    world = World(1 << 20)
    values = [value(WINDOW_PIECES, first=100 * number) for number in range(LOADING_MAX // WINDOW_PIECES + 3)]
    for number, (_, refs) in enumerate(values):
        world.map(refs, 10 * WINDOW_PIECES, tag=number)
    everything = [each for blobs, _ in values for each in blobs]
    assert len(world.tick()) == LOADING_MAX
    for asked in list(world.asked):
        world.answer(asked, everything)
    world.run(everything)
    assert sorted(tag for _, tag, _ in world.passed) == list(range(len(values)))


def test_dropping_the_cache_closes_complete_segments():
    world = World()
    (done, done_refs), (blobs, refs) = value(3), value(3, first=50)
    world.map(done_refs, 30)
    world.run(done)
    world.map(refs, 30)
    world.take(world.machine.step(control_from("value.dropcache"), NOW))
    assert set(world.placed) == set()
    assert len(world.files) == 1
    world.run(blobs)
    assert len(world.passed) == 2


@pytest.mark.parametrize("complete", [False, True])
def test_the_drivers_failure_is_sent_to_waiting_clients(complete):
    world = World()
    blobs, refs = value(3)
    world.map(refs, 30)
    if complete:
        world.run(blobs)
    status, why = errors.encode_error(errors.StorageError("no memory"))
    (segment,) = world.files
    spoilt = control_from("value.spoilt", Spoilt(segment, status, why), SEGMENTS)
    world.take(world.machine.step(spoilt, NOW))
    assert [type(error(answer)) for answer in world.answers] == ([] if complete else [errors.StorageError])
    assert (world.files, world.placed, world.machine.statistics()["segments"]) == ({}, {}, 0)
    assert world.machine.step(spoilt, NOW) == [], "reported twice"


# ---------------------------------------------------------------------------------------------- content, with segments


def content(placed: dict[bytes, BlobPlace]) -> ContentService:
    return ContentService(Cache(1000), SHA256, 4, placed)


def load(machine: ContentService, ref: bytes, *, keep: bool = True, tag: int = 1) -> list[Message]:
    return machine.step(ask("content.load", LoadRequest(ref, keep), tag=tag), NOW)


def test_a_blob_in_a_segment_is_read_from_there_and_not_requested():
    wanted = blob(1)
    ref = SHA256(wanted)
    machine = content({ref: BlobPlace(3, 70, 10)})
    (read,) = load(machine, ref, tag=1)
    assert (read.topic, read.hop, body(read, BlobPlace)) == ("segment.read", SEGMENTS, BlobPlace(3, 70, 10))
    assert load(machine, ref, tag=2) == []
    out = machine.step(Message(CONTROL, "content.read", SEGMENTS, tag=read.tag, body=wanted), NOW)
    assert [(msg.tag, msg.body) for msg in out] == [(1, wanted), (2, wanted)]
    assert machine.statistics()["pending"] == machine.statistics()["blobs"] == 0
    machine.check()


def test_a_blob_is_requested_if_its_segment_was_closed_meanwhile():
    wanted = blob(1)
    ref = SHA256(wanted)
    placed = {ref: BlobPlace(3, 70, 10)}
    machine = content(placed)
    (read,) = load(machine, ref)
    placed.clear()
    (asked,) = machine.step(Message(CONTROL, "content.read", SEGMENTS, tag=read.tag, status=45), NOW)
    assert (asked.topic, asked.target, body(asked, LoadRequest).ref) == ("content.load", 4, ref)
    (answer,) = machine.step(answer_to(asked, raw=wanted), NOW)
    assert answer.body == wanted
    machine.check()


def test_a_blob_in_a_segment_is_not_cached():
    machine = content({})
    wanted = blob(1)
    (asked,) = load(machine, SHA256(wanted), keep=False)
    assert body(asked, LoadRequest).keep, "the parent has no segment of it, or uses it"
    assert load(machine, SHA256(wanted), tag=2) == []
    assert [answer.body for answer in machine.step(answer_to(asked, raw=wanted), NOW)] == [wanted, wanted]
    assert machine.statistics()["blobs"] == 0
    (asked,) = load(machine, SHA256(wanted))
    machine.step(answer_to(asked, raw=wanted), NOW)
    assert machine.statistics()["blobs"] == 1
    machine.check()


def test_pieces_of_long_values_do_not_evict_other_blobs():
    cache = Cache(100, piece_bytes=10)
    for number in range(10):
        cache.put(b"small%d" % number, bytes(5))
    for number in range(50):
        cache.put(b"piece%d" % number, bytes(10))
        cache.check()
    assert all(b"small%d" % number in cache for number in range(10)), "half of the cache is theirs"
    assert [number for number in range(50) if b"piece%d" % number in cache] == [45, 46, 47, 48, 49]
    for number in range(10, 30):
        cache.put(b"small%d" % number, bytes(5))
    assert sum(b"piece%d" % number in cache for number in range(50)) == 5, "and half has the pieces"
