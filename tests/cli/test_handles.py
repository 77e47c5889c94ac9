"""Misuse of handles: forks, threads and watches without references raise an error or have no effect."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from conftest import pending
from instance import Instance

from fluxmpi.errors import ConnectionLost, InvalidRequest


def in_a_child(action: Callable[[], object]) -> int:
    """Run an action in a forked child. Return its exit status: 0 if the action returned true."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(0 if action() else 1)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_handle_cannot_be_used_after_a_fork(instance: Instance) -> None:
    """A commit of the child would have the serial of the parent's next one, which would be dropped as a duplicate."""
    with instance.connect(1) as h:
        h.kvs.put("fork.a", 1)

        def refused() -> bool:
            with pytest.raises(ConnectionLost, match="before a fork"):
                h.kvs.put("fork.child", 1)
            with pytest.raises(ConnectionLost, match="before a fork"):
                h.kvs.get("fork.a")
            return True

        def connects_again() -> bool:
            h.reconnect()
            return h.kvs.add("fork.count") == 1 and h.kvs.get("fork.a") == 1

        assert in_a_child(refused) == 0
        assert in_a_child(connects_again) == 0
        before = h.kvs.put("fork.a", 2).version
        assert h.kvs.put("fork.parent", 1).version == before + 1
        assert h.kvs.get("fork.parent") == 1
        assert h.kvs.add("fork.count") == 2


def test_a_handle_used_by_two_threads_raises(instance: Instance) -> None:
    with instance.connect(1) as h, h.kvs.watch("threads.never") as watch:
        watch.update()
        begun = threading.Event()
        ended: list[object] = []

        def waits() -> None:
            begun.set()
            ended.append(watch.update())

        thread = threading.Thread(target=waits)
        thread.start()
        begun.wait()
        while not h.statistics()["receiving"]:
            pass
        with pytest.raises(InvalidRequest, match="connect in each thread"):
            h.kvs.wait_version(1 << 40)  # never answered, so this thread must read, too
        with instance.connect(1) as other:
            other.kvs.put("threads.never", 1)
        thread.join(10)
        assert len(ended) == 1


def test_a_watch_without_references_is_closed(instance: Instance) -> None:
    with instance.connect(1) as h:
        h.kvs.put("forgotten.a", 1)
        for _ in range(20):
            for change in h.kvs.watch("forgotten."):
                assert change.key == "forgotten.a"
                break
        h.kvs.put("forgotten.b", 1)
        assert h.rpc("stats.get", target=1)["kvs"]["watchers"] == 0
        assert pending(instance) == {}


def test_get_file_writes_through_links_and_pipes(instance: Instance, tmp_path: Path) -> None:
    real, link, pipe = tmp_path / "real", tmp_path / "link", tmp_path / "pipe"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    os.mkfifo(pipe)
    (tmp_path / "real.part").write_bytes(b"mine")
    with instance.connect(0) as h:
        h.kvs.put("named", b"hello")
        h.kvs.get_file("named", str(link))
        assert link.is_symlink()
        assert (real.read_bytes(), stat.S_IMODE(real.stat().st_mode)) == (b"hello", 0o600)
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
        got: list[bytes] = []
        reader.start()
        h.kvs.get_file("named", pipe)
        reader.join(10)
        assert (got, stat.S_ISFIFO(pipe.stat().st_mode)) == ([b"hello"], True)

        def fails(done: int) -> None:
            raise RuntimeError(str(done))

        with pytest.raises(RuntimeError):
            h.kvs.get_file("named", real, progress=fails)
    assert real.read_bytes() == b"hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe", "real", "real.part"]
    assert (tmp_path / "real.part").read_bytes() == b"mine"


def test_append_refuses_other_types(instance: Instance) -> None:
    with instance.connect(0) as h:
        for wrong in (5, True, [65], None, 1.5):
            with pytest.raises(InvalidRequest, match="bytes or a str"), h.kvs.txn() as t:
                t.append("appended", wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="too long"):
            h.kvs.put("appended", 10**5000)
        assert h.kvs.get("appended", default=None) is None


def test_overwritten_long_values_are_garbage_at_once() -> None:
    with Instance(1) as alone, alone.connect(0) as h:
        h.kvs.retention(count=1)
        for n in range(5):
            h.kvs.put("long", Random(n).randbytes(3_000_000))
            status = h.kvs.gc()
        assert status.live_bytes > 3_000_000
        assert status.bytes < 2 * 3_000_000 + 100_000
