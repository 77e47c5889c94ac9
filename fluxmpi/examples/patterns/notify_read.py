"""Notify-read: a consumer is told of a state, and reads more about it. By then the state has moved on, or it has not.

python -m fluxmpi.examples.patterns.notify_read      in an instance
"""

from __future__ import annotations

from typing import Any

from fluxmpi import Handle, connect


def step(producer: Handle, name: str, number: int) -> None:
    """Commit a step of the producer: its number, its energy, its file."""
    producer.kvs.commit({f"{name}.step": number, f"{name}.energy": number * 1.5, f"{name}.file": f"dump.{number}"})


def wrong(consumer: Handle, producer: Handle, name: str = "read.wrong") -> dict[str, Any]:
    """Read the newest values after the notification of step 1; return the combination that the consumer has."""
    with consumer.kvs.watch(f"{name}.step") as steps:
        steps.update()
        step(producer, name, 1)
        told = steps.get()  # 1. step 1 is told
        assert told is not None
    step(producer, name, 2)  # 2. the producer goes on
    return {
        "step": told.value,
        "energy": consumer.kvs.get(f"{name}.energy", fresh=True),  # 3. this is step 2's
        "file": consumer.kvs.get(f"{name}.file"),
    }


def right(consumer: Handle, producer: Handle, name: str = "read.right") -> dict[str, Any]:
    """… that reads at the snapshot that came with the notification."""
    with consumer.kvs.watch(f"{name}.step") as steps:
        steps.update()
        step(producer, name, 1)
        told = steps.get()
        assert told is not None
    step(producer, name, 2)
    return {
        "step": told.value,
        "energy": consumer.kvs.get(f"{name}.energy", at=told.snapshot),
        "file": consumer.kvs.get(f"{name}.file", at=told.snapshot),
    }


def main() -> None:
    with connect() as consumer, connect() as producer:
        print("wrong:", wrong(consumer, producer))
        print("right:", right(consumer, producer))


if __name__ == "__main__":
    main()
