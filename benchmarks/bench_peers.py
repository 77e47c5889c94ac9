"""Other key-value servers in the same run: Redis and etcd, if they are installed, and fluxmpi with one broker.

Redis: ``SET`` of a small value over a Unix socket without persistence, by a client in this file. etcd: one node,
``put`` over its HTTP gateway on one connection, with its log on disk: unlike the others it answers when the value is
on stable storage. fluxmpi: commits of one key at the client's own broker. A server that is not installed is noted and
skipped.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import time

from common import Instance, alternate, clock, latencies, pipelined, scratch

READY_S = 10.0


def measure(bench) -> None:
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch())
        handle = stack.enter_context(Instance(1)).connect(0)
        keys = [f"peers.k{index:02}" for index in range(64)]
        count = bench.count(10_000, 2_000)
        variants = {
            "fluxmpi-put": lambda: latencies(lambda i: handle.kvs.put(keys[i % 64], i), 200),
            "fluxmpi-pipeline": lambda: [
                pipelined(handle, lambda i: handle.kvs.commit_async({keys[i % 64]: i}), count, 64)
            ],
        }
        if shutil.which("redis-server"):
            redis = stack.enter_context(Redis(str(folder / "redis.sock")))
            variants["redis-set"] = lambda: latencies(lambda i: redis.set(i), 200)
            variants["redis-pipeline"] = lambda: [redis.pipelined(count, 64)]
        else:
            bench.note("peers: `redis-server` is not installed (Debian package redis-server)")
        if shutil.which("etcd"):
            etcd = stack.enter_context(Etcd(str(folder / "etcd")))
            variants["etcd-put"] = lambda: latencies(etcd.put, 50)
        else:
            bench.note("peers: `etcd` is not installed (Debian package etcd-server)")
        for name, samples in alternate(bench.count(10, 3), variants).items():
            bench.record(f"peers.{name}", samples)


class Server:
    """A server process, in a ``with`` block: ``command`` starts it, ``open`` raises OSError until it answers."""

    def __enter__(self):
        self._process = subprocess.Popen(self.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + READY_S
        while True:
            try:
                self.open()
                return self
            except OSError:
                if time.monotonic() > end:
                    self._process.kill()
                    raise
                time.sleep(0.05)

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._process.terminate()
        self._process.wait(READY_S)


class Redis(Server):
    def __init__(self, path: str) -> None:
        self._path = path

    def command(self) -> list[str]:
        return ["redis-server", "--port", "0", "--unixsocket", self._path, "--save", "", "--appendonly", "no"]

    def open(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(self._path)

    def close(self) -> None:
        self._socket.close()

    @staticmethod
    def _request(index: int) -> bytes:
        key, value = b"peers.k%02d" % (index % 64), b"%d" % index
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(key), key, len(value), value)

    def set(self, index: int) -> None:
        self._socket.sendall(self._request(index))
        assert self._socket.recv(64) == b"+OK\r\n"

    def pipelined(self, count: int, window: int) -> float:
        """Return the requests per second with ``window`` in flight."""
        sent = answered = 0
        begin = clock()
        while answered < count:
            more = min(window - (sent - answered), count - sent)
            if more:
                self._socket.sendall(b"".join(self._request(index) for index in range(sent, sent + more)))
                sent += more
            answered += self._socket.recv(1 << 16).count(b"\n")
        return count / (clock() - begin)


class Etcd(Server):
    def __init__(self, folder: str) -> None:
        self._folder = folder
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            self._port, self._peer_port = (one.getsockname()[1] for one in sockets)

    def command(self) -> list[str]:
        client, peer = f"http://127.0.0.1:{self._port}", f"http://127.0.0.1:{self._peer_port}"
        return [
            "etcd", "--name", "one", "--data-dir", self._folder, "--log-level", "error",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}",
        ]  # fmt: skip

    def open(self) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            self.put(0)
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from None

    def close(self) -> None:
        self._connection.close()

    def put(self, index: int) -> None:
        words = (b"peers.k%02d" % (index % 64), b"%d" % index)
        key, value = (base64.b64encode(word).decode() for word in words)
        self._connection.request("POST", "/v3/kv/put", json.dumps({"key": key, "value": value}))
        answer = self._connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ConnectionError(f"etcd answered {answer.status}")
