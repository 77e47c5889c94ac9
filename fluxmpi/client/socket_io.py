"""The socket of one connection: frames of a ``protocol.Connection`` written and read, whole, or the connection is closed.

A signal's exception (Ctrl-C) may leave any line. While this waits, that is harmless: nothing is taken from the socket,
and the rest of a frame is kept. While it writes or takes in what it has read, the frames that follow would be misread,
or a response lost for which a caller then waits for ever. So such an exception closes the connection, and what was sent
before may have been carried out.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from contextlib import suppress
from typing import NoReturn

from fluxmpi.client.protocol import Connection
from fluxmpi.client.sockets import DescriptorQueue
from fluxmpi.errors import ConnectionLost, RequestTimeout, indefinite

RECEIVE_BYTES = 1 << 18

TimeLimit = tuple[float, float]
"""When a call gives up, by ``time.monotonic``, and its limit in seconds."""


def time_limit(timeout: float) -> TimeLimit:
    """Return the limit of a call that begins now."""
    return time.monotonic() + timeout, timeout


def left_ms(limit: TimeLimit) -> float:
    """Return what is left of a limit, in milliseconds."""
    return max(0.0, (limit[0] - time.monotonic()) * 1000)


class SocketIo:
    """Writes what ``connection`` has queued, and passes it what arrives.

    Attributes:
        connection: the protocol of this connection.
        descriptors: set while a response may carry a descriptor, which a plain ``recv`` would lose.
        output: the descriptor of ``watch_output``; -1 before.
        is_receiving: true while a thread reads from the socket.
        shut_down_reason: what ``shut_down`` was given; None before.
    """

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self.connection = connection
        self.descriptors: DescriptorQueue | None = None
        self.is_receiving = False
        self.shut_down_reason: ConnectionLost | None = None
        self._sock = sock
        self._unsent = memoryview(b"")
        """The rest of a frame that the socket has not taken yet."""
        # One buffer for all reads: a fresh one of this size would be mapped, shrunk and unmapped for each.
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._buffers = (self._buffer,)
        self._input = select.poll()
        self._input.register(sock, select.POLLIN)
        self._hangup = select.poll()
        self._hangup.register(sock, select.POLLRDHUP)
        self.output = -1
        self._both = select.poll()
        self._both.register(sock, select.POLLIN | select.POLLOUT)

    def watch_output(self, fd: int) -> None:
        """Raise BrokenPipeError while this waits, as soon as the reader of ``fd`` has gone."""
        self.output = fd
        self._input.register(fd, 0)  # errors and hang-ups are always reported
        self._both.register(fd, 0)

    # --------------------------------------------------------------------------------------------------------- writing

    @property
    def has_output(self) -> bool:
        """True if something is queued, or a frame is not written to its end."""
        return bool(self.connection.outgoing or self._unsent)

    def flush(self, limit: TimeLimit | None, wait: bool = True) -> None:
        """Write what is queued. If the broker does not read it, wait, and meanwhile read what the broker sends.

        ``wait`` False: keep what the socket does not take now, for the next call. Raises RequestTimeout, and what ended
        the connection.
        """
        if self._unsent and not self._flush_rest(limit, wait):
            return
        try:
            data = self.connection.data_to_send()
            if not data:
                return
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
            if sent == len(data):
                return
            self._unsent = memoryview(data)[sent:]
        except BlockingIOError:
            self._unsent = memoryview(data)
        except OSError as error:
            self._lost(error)
        except BaseException as error:
            self._interrupted(error)
            raise
        self._flush_rest(limit, wait)

    def _flush_rest(self, limit: TimeLimit | None, wait: bool) -> bool:
        """Write the rest of the last frame. Return whether it is written."""
        if wait:
            self._wait_for_output(limit)
        else:
            self._write_rest()
        return not self._unsent

    def _write_rest(self) -> None:
        """Write what the socket takes now."""
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
        except BaseException as error:
            self._interrupted(error)
            raise

    def _wait_for_output(self, limit: TimeLimit | None) -> None:
        """Write the rest of a frame as the broker reads it."""
        while self._unsent:
            ready = self._both.poll(None if limit is None else left_ms(limit))
            if not ready and limit is not None and left_ms(limit) == 0.0:
                raise RequestTimeout(
                    f"the broker has not read the request within {limit[1]:g} s; what is left of it is sent later, so it may"
                    " still be carried out"
                )
            self._check_output(ready)
            for _, events in ready:
                if events & select.POLLOUT:
                    self._write_rest()
                if events & ~select.POLLOUT:
                    self.receive()
            if self.connection.error is not None:
                raise indefinite(self.connection.error)

    # --------------------------------------------------------------------------------------------------------- reading

    def receive(self) -> None:
        """Read once; block until there is something to read. Raises what ended the connection."""
        if self.output >= 0:
            self._check_output(self._input.poll())
        self.is_receiving = True
        sizes: list[int] = []
        try:
            if self.descriptors is None:
                # One C call: a signal's exception is raised before it has taken bytes, or after they are noted.
                sizes.extend(map(self._sock.recv_into, self._buffers))
                data: bytes | memoryview = self._buffer[: sizes[0]]
            else:
                self._input.poll()
                sizes.append(RECEIVE_BYTES)
                data = self.descriptors.receive(self._sock, RECEIVE_BYTES)
            if not data and self.shut_down_reason is not None:
                self.connection.close(self.shut_down_reason)
            self.connection.receive(data)
        except OSError as error:
            self._lost(error)
        except BaseException as error:
            if sizes:
                self._interrupted(error)
            raise
        finally:
            self.is_receiving = False

    def wait_for_input(self, limit: TimeLimit) -> bool:
        """Wait until there is something to read; return False if the limit has passed."""
        while not (ready := self._input.poll(left_ms(limit))):
            if limit[0] <= time.monotonic():
                return False
        self._check_output(ready)
        return True

    def has_input(self) -> bool:
        """Return whether there is something to read."""
        ready = self._input.poll(0)
        self._check_output(ready)
        return bool(ready)

    def _check_output(self, ready: list[tuple[int, int]]) -> None:
        if self.output >= 0 and any(fd == self.output for fd, _ in ready):
            raise BrokenPipeError(errno.EPIPE, "the reader of the output has gone")

    def is_hung_up(self) -> bool:
        """Return whether the broker has closed its end."""
        return bool(self._hangup.poll(0))

    # --------------------------------------------------------------------------------------------------------- the end

    def _interrupted(self, error: BaseException) -> None:
        """Close the connection after an exception in the middle of a frame."""
        self._unsent = memoryview(b"")
        self.connection.close(ConnectionLost(f"{type(error).__name__} interrupted this handle while it wrote or read"))

    def _lost(self, error: OSError) -> NoReturn:
        self.connection.receive(b"")
        assert self.connection.error is not None
        raise indefinite(self.connection.error) from error

    def shut_down(self, reason: ConnectionLost) -> None:
        """End the connection while another thread uses it: that thread reads its end, and gets ``reason``."""
        self.shut_down_reason = reason
        with suppress(OSError):  # the broker has closed it
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._unsent = memoryview(b"")
        self._sock.close()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()
