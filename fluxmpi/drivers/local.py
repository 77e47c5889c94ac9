"""The transport of an instance of one broker: no peers, no MPI."""

from __future__ import annotations

from typing import Any

from fluxmpi.message import Message


class LocalTransport:
    """Same interface as ``MpiTransport``; nothing is ever sent."""

    rank = 0
    size = 1
    expecting = False
    sending = False
    backlog = 0
    description = "no MPI"

    def __init__(self) -> None:
        self.gone: list[tuple[int, str]] = []

    def exchange(self, mine: Any) -> list[Any]:
        return [mine]

    def send(self, rank: int, batch: list[Message]) -> None:
        raise AssertionError(f"an instance of one broker has no rank {rank}")

    def flush(self) -> None: ...

    def listen(self) -> None: ...

    def arrived(self) -> bool:
        return False

    def poll(self) -> list[Message]:
        return []

    def filenos(self) -> list[int]:
        return []

    def hang_up(self, rank: int) -> None: ...

    def drop(self, rank: int) -> None: ...

    def statistics(self) -> dict[str, float]:
        return {}

    def close(self, clean: bool) -> None: ...
