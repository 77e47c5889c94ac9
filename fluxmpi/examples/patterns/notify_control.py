"""Notify-control: a consumer must act before the producer goes on. The producer does not know of it, or it does.

Right is to register: the consumer leaves a hold for the job, and the producer enters a state only where there is none. Both do it
in a transaction with a guard, so one of them comes first, and the other one knows.

    python -m fluxmpi.examples.patterns.notify_control      in an instance
"""

from __future__ import annotations

from fluxmpi import Handle, connect


def wrong(consumer: Handle, producer: Handle, name: str = "control.wrong") -> tuple[str, str]:
    """Return the state in which the consumer wants to attach, and the state of the job when it attaches."""
    with consumer.kvs.watch(f"{name}.state") as states:
        states.update()
        producer.kvs.put(f"{name}.state", "READY")
        told = states.get()  # 1. the consumer is told that the job is ready
        assert told is not None
    producer.kvs.put(f"{name}.state", "RUN")  # 2. the producer goes on: it cannot know that somebody wants it to wait
    return told.value, consumer.kvs.get(f"{name}.state", fresh=True)  # 3. the debugger comes too late


def hold(consumer: Handle, name: str) -> bool:
    """Ask that the job waits before it runs; False when it runs already. Exactly one of this and ``enter`` is first."""
    with consumer.kvs.txn() as txn:
        txn.when(f"{name}.state", "==", "READY")
        txn.put(f"{name}.hold", "debugger")
    return txn.succeeded


def release(consumer: Handle, name: str) -> None:
    consumer.kvs.unlink(f"{name}.hold")


def enter(producer: Handle, name: str, state: str) -> bool:
    """Enter a state, unless the job is held; False when it is."""
    with producer.kvs.txn() as txn:
        txn.when_absent(f"{name}.hold")
        txn.put(f"{name}.state", state)
    return txn.succeeded


def enter_when_free(producer: Handle, name: str, state: str) -> None:
    """Enter a state as soon as nobody holds the job."""
    with producer.kvs.watch(f"{name}.hold") as holds:  # first comes what is there, so nothing is missed
        for update in holds.updates():
            if all(change.deleted for change in update.changes) and enter(producer, name, state):
                return


def right(consumer: Handle, producer: Handle, name: str = "control.right") -> list[str]:
    """Return the states of the job: at the notification, while the debugger is attached, and at the end."""
    with consumer.kvs.watch(f"{name}.state") as states:
        states.update()
        producer.kvs.put(f"{name}.state", "READY")
        told = states.get()
        assert told is not None
    assert hold(consumer, name)
    assert not enter(producer, name, "RUN")  # the producer tries to go on, and learns that it must not
    attached = consumer.kvs.get(f"{name}.state", fresh=True)
    release(consumer, name)
    enter_when_free(producer, name, "RUN")
    return [told.value, attached, consumer.kvs.get(f"{name}.state", fresh=True)]


def too_late(consumer: Handle, producer: Handle, name: str = "control.late") -> bool:
    """Whether a consumer gets its hold that asks when the job runs already: it is told that it does not."""
    producer.kvs.put(f"{name}.state", "READY")
    assert enter(producer, name, "RUN")
    return hold(consumer, name)


def main() -> None:
    with connect() as consumer, connect() as producer:
        print("wrong:", *wrong(consumer, producer))
        print("right:", *right(consumer, producer))
        print("too late, and told so:", not too_late(consumer, producer))


if __name__ == "__main__":
    main()
