"""Sessions that continue after a lost connection, on real brokers. A proxy cuts the connection during a commit."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator

import pytest
from instance import Instance

import fluxmpi
from fluxmpi.errors import ConnectionLost, NoInstance


@pytest.fixture(scope="module")
def instance() -> Iterator[Instance]:
    with Instance(2) as instance:
        yield instance


class Proxy:
    """Forwards bytes between one client and a broker.

    Once ``cut`` is set, the broker's next response is dropped and the connection is closed.
    """

    def __init__(self, folder: str, uri: str) -> None:
        self.path = os.path.join(folder, "broker.9.sock")
        self.cut = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._broker = socket.socket(socket.AF_UNIX)
        self._broker.connect(uri.removeprefix("local://"))
        self._thread = threading.Thread(target=self._pass)
        self._thread.start()

    def _pass(self) -> None:
        client, _ = self._listener.accept()
        with client, self._broker:
            while True:
                for sock in select.select([client, self._broker], [], [])[0]:
                    data = sock.recv(1 << 16)
                    if not data or (sock is self._broker and self.cut.is_set()):
                        return
                    (self._broker if sock is client else client).sendall(data)

    def close(self) -> None:
        self._thread.join(10)
        self._listener.close()


@contextlib.contextmanager
def proxy(instance: Instance, rank: int) -> Iterator[Proxy]:
    with tempfile.TemporaryDirectory(prefix="fluxmpi-test-") as folder:
        between = Proxy(folder, instance.rank_uri(rank))
        yield between
        between.close()


def test_a_commit_with_a_lost_response_is_applied_once(instance: Instance) -> None:
    with proxy(instance, 1) as between:
        h = fluxmpi.connect(f"local://{between.path}")
        h.kvs.put("lost.other", 1)
        between.cut.set()
        txn = h.kvs.txn()
        txn.append("lost.log", b"once")
        future = txn.commit_async()
        with pytest.raises(ConnectionLost):
            future.get(10)
    with instance.connect(0) as other:
        assert other.kvs.get("lost.log", fresh=True) == b"once", "the commit was applied"
        h.reconnect(instance.rank_uri(0))
        version = future.get(10).version
        assert h.kvs.get("lost.log") == b"once"
        assert h.session.at_least("primary") >= version
    h.close()


def test_a_handle_that_moves_between_brokers_reads_its_writes(instance: Instance) -> None:
    with instance.connect(0) as h:
        subscription = h.event.subscribe("moved.")
        for n in range(40):
            h.reconnect(instance.rank_uri(n % 2))
            assert h.rank == n % 2
            if n:
                assert h.kvs.get("moved.key") == n - 1
            future = h.kvs.commit_async({"moved.key": n})
            h.reconnect(instance.rank_uri((n + 1) % 2))
            assert future.get(10).version <= h.kvs.version()
            assert h.kvs.get("moved.key") == n
            h.event.publish("moved.on", n)
            assert subscription.get(10).value == n


def test_another_handle_continues_the_session(instance: Instance) -> None:
    old = instance.connect(0)
    for n in range(20):
        future = old.kvs.commit_async({"session.key": n})
        old.close()
        old = fluxmpi.connect(instance.rank_uri(n % 2), session=old.session)
        assert future.get(10).version <= old.kvs.version()
        assert old.kvs.get("session.key") == n
    assert old.session.acked == 20
    old.close()


def test_the_root_page_of_a_killed_broker_is_not_read() -> None:
    with Instance(1) as doomed, doomed.connect(0) as h:
        h.kvs.put("key", 1)
        assert h.kvs.get("key") == 1
        os.kill(h.broker_pid, signal.SIGKILL)
        assert select.select([h], [], [], 10)[0], "the kernel closes the broker's sockets"
        end = time.monotonic() + 10

        def read_on() -> None:
            while time.monotonic() < end:
                assert h.kvs.get("key") == 1

        with pytest.raises(ConnectionLost):
            read_on()
        for read in (lambda: h.kvs.get("key"), lambda: h.kvs.exists("key"), h.kvs.version, lambda: list(h.kvs.ls("."))):
            with pytest.raises(ConnectionLost):
                read()
        with pytest.raises(NoInstance):
            h.reconnect()
        shutil.rmtree(doomed.folder)  # as the next start of an instance does


def test_a_watch_continues_at_another_broker_without_a_gap(instance: Instance) -> None:
    with instance.connect(0) as writer, proxy(instance, 1) as between, fluxmpi.connect(f"local://{between.path}") as h:
        writer.kvs.put("watched.key", 0)
        watch = h.kvs.watch("watched.key")
        first = watch.get(10)
        assert first is not None
        seen = [first.value]
        between.cut.set()
        for n in range(1, 10):
            writer.kvs.put("watched.key", n)
        with pytest.raises(ConnectionLost):
            watch.get(10)
        for rank in (0, 1, 0):
            h.reconnect(instance.rank_uri(rank))
            while seen[-1] < writer.kvs.get("watched.key"):
                change = watch.get(10)
                assert change is not None
                seen.append(change.value)
            writer.kvs.put("watched.key", seen[-1] + 1)
        change = watch.get(10)
        assert change is not None
        seen.append(change.value)
        assert seen == list(range(13))
        watch.close()
