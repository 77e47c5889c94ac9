"""Watch-chaining: a watch that is started because another one has reported a change.

python -m fluxmpi.examples.patterns.watch_chaining      in an instance
"""

from __future__ import annotations

from fluxmpi import Handle, Snapshot, connect

STATES = ["NEW", "SCHED", "RUN", "DONE"]


def submit(producer: Handle, name: str) -> None:
    """Create a job, in its first state."""
    producer.kvs.commit({f"{name}.job": 7, f"{name}.jobs.7.state": STATES[0]})


def run(producer: Handle, name: str) -> Snapshot:
    """Move the job through the other states; return the last version."""
    return [producer.kvs.put(f"{name}.jobs.7.state", state) for state in STATES[1:]][-1]


def wrong(consumer: Handle, producer: Handle, name: str = "chain.wrong") -> list[str]:
    """Watch for a job, and then watch its state; return the states that the consumer receives."""
    with consumer.kvs.watch(f"{name}.job") as jobs:
        jobs.update()  # the present state: empty
        submit(producer, name)
        job = jobs.get()
        assert job is not None
    done = run(producer, name)  # 1. the job changes its state …
    consumer.kvs.wait_version(done.version)
    seen = []
    with consumer.kvs.watch(f"{name}.jobs.{job.value}.state") as states:  # 2. … before this watch starts
        for state in states:
            seen.append(state.value)
            if state.value == STATES[-1]:
                break
    return seen


def right_after(consumer: Handle, producer: Handle, name: str = "chain.after") -> list[str]:
    """Start the second watch after the version that the first one reported; return the states."""
    with consumer.kvs.watch(f"{name}.job") as jobs:
        jobs.update()
        submit(producer, name)
        job = jobs.get()
        assert job is not None
    done = run(producer, name)
    consumer.kvs.wait_version(done.version)
    key = f"{name}.jobs.{job.value}.state"
    seen = [consumer.kvs.get(key, at=job.snapshot)]
    with consumer.kvs.watch(key, after=job.version) as states:
        for state in states:
            seen.append(state.value)
            if state.value == STATES[-1]:
                break
    return seen


def right_pattern(consumer: Handle, producer: Handle, name: str = "chain.pattern") -> list[str]:
    """Watch the states of all jobs, also of future ones, with one pattern; return the states."""
    seen = []
    with consumer.kvs.watch(f"{name}.jobs.*.state") as states:
        states.update()
        submit(producer, name)
        run(producer, name)
        for state in states:
            seen.append(state.value)
            if state.value == STATES[-1]:
                break
    return seen


def main() -> None:
    with connect() as consumer, connect() as producer:
        print("wrong:", *wrong(consumer, producer))
        print("right, after:", *right_after(consumer, producer))
        print("right, one pattern:", *right_pattern(consumer, producer))


if __name__ == "__main__":
    main()
