"""Notify-control: a consumer must act before the producer continues.

The right way is to register: the consumer creates a hold for the job, and the producer enters a state only without a
hold. Both use a transaction with a guard, so one of them is first, and the other one's guard does not hold.

    python -m fluxmpi.examples.patterns.notify_control      in an instance
"""

from __future__ import annotations

from fluxmpi import Handle, connect


def wrong(consumer: Handle, producer: Handle, name: str = "control.wrong") -> tuple[str, str]:
    """Return the state in which the consumer wants to attach, and the state of the job when it attaches."""
    with consumer.kvs.watch(f"{name}.state") as states:
        states.update()
        producer.kvs.put(f"{name}.state", "READY")
        told = states.get()  # 1. the consumer is notified that the job is ready
        assert told is not None
    producer.kvs.put(f"{name}.state", "RUN")  # 2. the producer continues: it does not know that it should wait
    return told.value, consumer.kvs.get(f"{name}.state", fresh=True)  # 3. the debugger is too late


def hold(consumer: Handle, name: str) -> bool:
    """Hold the job before it runs; return False if it runs already. Exactly one of ``hold`` and ``enter`` is first."""
    with consumer.kvs.txn() as txn:
        txn.when(f"{name}.state", "==", "READY")
        txn.put(f"{name}.hold", "debugger")
    return txn.succeeded


def release(consumer: Handle, name: str) -> None:
    consumer.kvs.unlink(f"{name}.hold")


def enter(producer: Handle, name: str, state: str) -> bool:
    """Enter a state; return False if the job is held."""
    with producer.kvs.txn() as txn:
        txn.when_absent(f"{name}.hold")
        txn.put(f"{name}.state", state)
    return txn.succeeded


def enter_when_free(producer: Handle, name: str, state: str) -> None:
    """Enter a state as soon as the job is not held."""
    with producer.kvs.watch(f"{name}.hold") as holds:  # the first update is the present state, so nothing is missed
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
    assert not enter(producer, name, "RUN")  # the producer tries to continue, and is refused
    attached = consumer.kvs.get(f"{name}.state", fresh=True)
    release(consumer, name)
    enter_when_free(producer, name, "RUN")
    return [told.value, attached, consumer.kvs.get(f"{name}.state", fresh=True)]


def too_late(consumer: Handle, producer: Handle, name: str = "control.late") -> bool:
    """Return whether a consumer gets a hold of a job that runs already: it does not."""
    producer.kvs.put(f"{name}.state", "READY")
    assert enter(producer, name, "RUN")
    return hold(consumer, name)


def main() -> None:
    with connect() as consumer, connect() as producer:
        print("wrong:", *wrong(consumer, producer))
        print("right:", *right(consumer, producer))
        print("too late, and refused:", not too_late(consumer, producer))


if __name__ == "__main__":
    main()
