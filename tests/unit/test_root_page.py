"""The root page: its format, its writer and readers, its file, torn slots, and pages of other brokers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxmpi.client.sockets import open_root_page
from fluxmpi.drivers import page as driver
from fluxmpi.kvs.replica.root_page import (
    NAME_BYTES_MAX,
    PAGE_BYTES,
    ROOT,
    SLOT_BYTES,
    SLOTS,
    TRIES,
    RootPage,
    Slot,
    Writer,
    decode_slot,
    encode_slot,
    path_of,
)
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import PAGE, control

REF = bytes(range(32))


def root(namespace: str, version: int, ref: bytes = REF) -> RootInfo:
    return RootInfo(namespace, version, ref, float(version))


def pair() -> tuple[Any, Writer, RootPage]:
    memory: Any = bytearray(PAGE_BYTES)
    writer = Writer(memory, "abc", 3, 77)
    return memory, writer, RootPage(memory)


def write(writer: Writer, *roots: RootInfo) -> None:
    for each in roots:
        writer.put(each)
    writer.flush()
    writer.check()


# -------------------------------------------------------------------------------------------------------------- format

names = (
    st.text(min_size=1, max_size=80)
    .filter(lambda name: len(name.encode("utf-8", "replace")) <= NAME_BYTES_MAX)
    .filter(lambda name: not any("\ud800" <= letter <= "\udfff" for letter in name))
)
roots = st.builds(
    RootInfo,
    names,
    st.integers(0, 2**62),
    st.one_of(st.binary(min_size=20, max_size=20), st.binary(min_size=32, max_size=32)),
    st.floats(allow_nan=False),
)


@given(st.integers(1, 2**64 - 1), roots)
def test_a_slot_is_decoded_as_it_was_encoded(sequence: int, info: RootInfo) -> None:
    image = encode_slot(sequence, ROOT, info, info.namespace.encode())
    assert len(image) == SLOT_BYTES
    assert decode_slot(image) == Slot(sequence, ROOT, info)


@given(roots, roots, st.integers(1, SLOT_BYTES - 1))
def test_a_mixture_of_two_slots_is_torn(one: RootInfo, other: RootInfo, cut: int) -> None:
    """Whatever part of a write is seen first, even with one sequence number for both, as an overflow would make."""
    first = encode_slot(7, ROOT, one, one.namespace.encode())
    for sequence in (7, 8):
        second = encode_slot(sequence, ROOT, other, other.namespace.encode())
        mixed = first[:cut] + second[cut:]
        assert decode_slot(mixed) is None or mixed in (first, second)


@given(st.binary(min_size=SLOT_BYTES, max_size=SLOT_BYTES))
def test_noise_is_not_a_slot(noise: bytes) -> None:
    assert decode_slot(noise) is None


def test_a_slot_that_was_never_written_is_not_a_slot() -> None:
    assert decode_slot(bytes(SLOT_BYTES)) is None
    assert decode_slot(b"") is None


# --------------------------------------------------------------------------------------------------- writer and readers


def test_a_reader_sees_the_newest_root_of_each_namespace() -> None:
    _, writer, page = pair()
    write(writer, root("primary", 1), root("primary", 2), root("work", 5))
    assert [page.root(name) for name in ("primary", "work", "other")] == [root("primary", 2), root("work", 5), None]
    assert writer.written == 2, "only the newest of a turn is written"
    write(writer, root("primary", 3))
    assert page.root("primary") == root("primary", 3)
    assert page.root("primary") is page.root("primary"), "an unchanged slot is not decoded again"


def test_a_removed_namespace_has_no_root_until_its_next_version() -> None:
    _, writer, page = pair()
    write(writer, root("primary", 1), root("work", 5))
    assert page.root("work") == root("work", 5)
    writer.remove("work")
    writer.remove("never")
    writer.flush()
    writer.check()
    assert page.root("work") is None
    write(writer, root("work", 7))
    assert page.root("work") == root("work", 7)


def test_namespaces_beyond_the_slots_are_left_out_until_one_is_removed() -> None:
    _, writer, page = pair()
    write(writer, *(root(f"n{number}", number) for number in range(SLOTS)))
    write(writer, root("late", 1))
    assert page.root("late") is None
    assert page.root(f"n{SLOTS - 1}") == root(f"n{SLOTS - 1}", SLOTS - 1)
    assert writer.left_out == 1
    assert page.root("n7") is not None
    writer.remove("n7")
    write(writer, root("late", 2))
    assert page.root("late") == root("late", 2), "absent namespaces are searched for again"
    assert page.root("n7") is None, "its slot was given to another one"
    assert writer.statistics()["namespaces"] == SLOTS


def test_a_namespace_with_too_long_a_name_is_left_out() -> None:
    _, writer, page = pair()
    write(writer, root("é" * NAME_BYTES_MAX, 1), root("\ud800", 1), root("e" * NAME_BYTES_MAX, 1))
    assert [page.root("é" * NAME_BYTES_MAX), page.root("\ud800")] == [None, None]
    assert page.root("e" * NAME_BYTES_MAX) is not None


def test_a_torn_slot_is_read_again_a_few_times() -> None:
    memory, writer, page = pair()
    write(writer, root("primary", 1))
    assert page.root("primary") == root("primary", 1)
    whole = bytes(memory)
    write(writer, root("primary", 2))
    memory[2 * SLOT_BYTES - 8 : 2 * SLOT_BYTES] = whole[2 * SLOT_BYTES - 8 : 2 * SLOT_BYTES]
    assert page.root("primary") is None
    assert page.torn == TRIES
    memory[:] = whole
    assert page.root("primary") == root("primary", 1)
    memory[SLOT_BYTES + 8] ^= 1  # a version that was not written, between equal sequence numbers
    assert page.root("primary") is None


def test_a_torn_slot_does_not_make_a_namespace_absent() -> None:
    memory, writer, page = pair()
    write(writer, root("primary", 1))
    memory[SLOT_BYTES] ^= 1
    assert page.root("primary") is None
    memory[SLOT_BYTES] ^= 1
    assert page.root("primary") == root("primary", 1)


@pytest.mark.parametrize("other", [("abd", 3, 77), ("abc", 4, 77), ("abc", 3, 78)])
def test_another_brokers_page_is_refused(other: tuple[str, int, int]) -> None:
    _, _, page = pair()
    assert page.is_of("abc", 3, 77)
    assert not page.is_of(*other)


def test_a_page_of_another_layout_is_refused() -> None:
    memory, _, page = pair()
    memory[8] += 1
    assert not page.is_of("abc", 3, 77)
    assert not RootPage(bytearray(10)).is_of("abc", 3, 77)


# ------------------------------------------------------------------------------------------------------------ the file


@pytest.fixture
def file(tmp_path: Path) -> Iterator[driver.RootPageWriter]:
    page = driver.RootPageWriter(str(tmp_path / "roots.3"), "abc", 3)
    yield page
    page.close()


def show(page: driver.RootPageWriter, *roots: RootInfo) -> None:
    for each in roots:
        page.step(control("page.root", each, PAGE))
    page.flush()


def test_a_client_reads_the_drivers_page(file: driver.RootPageWriter) -> None:
    page = open_root_page(file.path, "abc", 3, os.getpid())
    assert page is not None
    assert page.root("primary") is None
    show(file, root("primary", 1), root("primary", 2))
    assert page.root("primary") == root("primary", 2)
    file.step(control("page.removed", "primary", PAGE))
    assert page.root("primary") == root("primary", 2), "not before the turn ends"
    file.flush()
    assert page.root("primary") is None
    assert file.statistics()["written"] == 2


def test_a_page_can_be_read_after_its_broker_has_ended(file: driver.RootPageWriter) -> None:
    show(file, root("primary", 4))
    page = open_root_page(file.path, "abc", 3, os.getpid())
    assert page is not None
    file.close()
    assert not os.path.exists(file.path)
    assert page.root("primary") == root("primary", 4)
    show(file, root("primary", 5))


def test_a_missing_page_is_not_an_error(tmp_path: Path, file: driver.RootPageWriter) -> None:
    assert open_root_page(str(tmp_path / "none"), "abc", 3, 1) is None
    assert open_root_page(file.path, "abc", 3, os.getpid() + 1) is None, "left over from another process"
    short = tmp_path / "short"
    short.write_bytes(b"fluxmpi\0")
    assert open_root_page(str(short), "abc", 3, os.getpid()) is None, "reading past its end would kill the process"
    link = tmp_path / "link"
    link.symlink_to(file.path)
    assert open_root_page(str(link), "abc", 3, os.getpid()) is None
    assert open_root_page(str(tmp_path), "abc", 3, os.getpid()) is None


def test_a_file_that_cannot_be_made_is_not_an_error(tmp_path: Path) -> None:
    page = driver.RootPageWriter(str(tmp_path / "no such folder" / "roots.0"), "abc", 0)
    show(page, root("primary", 1))
    page.close()
    assert page.statistics() == {}


def test_the_path_of_the_page() -> None:
    assert path_of("/tmp/fluxmpi-1-x/broker.12.sock") == "/tmp/fluxmpi-1-x/roots.12"


WRITER = """
import os, sys
from fluxmpi.drivers.page import RootPageWriter
from fluxmpi.kvs.wire import RootInfo
from fluxmpi.message import PAGE, control

page = RootPageWriter(sys.argv[1], "abc", 3)
print(os.getpid(), flush=True)
for version in range(1, 60_001):
    ref = (version.to_bytes(4, "big") * 8)
    page.step(control("page.root", RootInfo("primary", version, ref, float(version)), PAGE))
    page.flush()
print("done", flush=True)
sys.stdin.read()
"""


def test_a_reader_of_a_busy_page_sees_only_whole_roots_in_order(tmp_path: Path) -> None:
    path = str(tmp_path / "roots.3")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        page = open_root_page(path, "abc", 3, int(process.stdout.readline()))
        assert page is not None
        seen, looks = 0, 0
        while seen < 60_000:
            info = page.root("primary")
            looks += 1
            assert looks < 20_000_000
            if info is None:
                assert seen == 0 or page.torn, "only a torn slot may have no root"
                continue
            assert info.version >= seen
            assert info.ref == info.version.to_bytes(4, "big") * 8
            assert info.time == info.version
            seen = info.version
        process.stdin.close()  # type: ignore[union-attr]
        assert process.wait(10) == 0
