"""Notify-read: a consumer is notified of a state, and reads more about it, while the producer continues.

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
        told = steps.get()  # 1. the consumer is notified of step 1
        assert told is not None
    step(producer, name, 2)  # 2. the producer continues
    return {
        "step": told.value,
        "energy": consumer.kvs.get(f"{name}.energy", fresh=True),  # 3. this is the energy of step 2
        "file": consumer.kvs.get(f"{name}.file"),
    }


def right(consumer: Handle, producer: Handle, name: str = "read.right") -> dict[str, Any]:
    """Read at the snapshot of the notification; return the combination that the consumer has."""
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
