"""The cost of a commit that matches one of many watches: ten watches at a broker, and ten thousand.

Two instances of two brokers, with ten and with ten thousand watches at rank 1, take turns. Each time one watched key
is committed at rank 1, one in flight. Measured: the time until its response (the commit), and until its watch returns
the change. The watches are of distinct keys; then of distinct patterns; then of patterns that differ in the beginning
of one name, which are adjacent in the index.
"""

from __future__ import annotations

from common import Instance, alternate, clock

COUNTS = (10, 10_000)
PATTERNS = {"keys": "w{}.state", "globs": "w{}.*", "beginnings": "job.w{}-*"}
KEYS = {"keys": "w{}.state", "globs": "w{}.state", "beginnings": "job.w{}-1"}


class Watched:
    """An instance with ``count`` watches of one kind, and a client whose commits match one of them."""

    def __init__(self, instance: Instance, kind: str, count: int) -> None:
        self.watcher, self.writer = instance.connect(1), instance.connect(1)
        self._key = KEYS[kind]
        self._count = count
        with self.watcher.batch():
            self._watches = [self.watcher.kvs.watch(PATTERNS[kind].format(number)) for number in range(count)]
        for watch in self._watches:
            watch.update(60)
        self._turn = 0

    def commits(self, times: int) -> tuple[list[float], list[float]]:
        """Return, for each commit, the seconds until its response and until its notification."""
        answers, callbacks = [], []
        for _ in range(times):
            self._turn += 1
            number = self._turn * 7919 % self._count
            begin = clock()
            future = self.writer.kvs.commit_async({self._key.format(number): self._turn})
            self.writer.flush()
            update = self._watches[number].update(60)
            callbacks.append(clock() - begin)
            assert update is not None and update.changes[0].value == self._turn  # noqa: PT018
            future.get(60)
            begin = clock()
            self.writer.kvs.commit({self._key.format(number): -self._turn})
            answers.append(clock() - begin)
            self._watches[number].update(60)
        return answers, callbacks

    def close(self) -> None:
        self.watcher.close()
        self.writer.close()


def measure(bench) -> None:
    rounds, times = bench.count(20, 2), 50
    for kind in PATTERNS:
        with Instance(2) as few, Instance(2) as many:
            watched = {
                count: Watched(instance, kind, count) for count, instance in zip(COUNTS, (few, many), strict=True)
            }
            for each in watched.values():
                each.commits(times)
            samples = {count: ([], []) for count in COUNTS}

            def run(count: int) -> list[float]:
                answers, callbacks = watched[count].commits(times)  # noqa: B023
                samples[count][0].extend(answers)  # noqa: B023
                samples[count][1].extend(callbacks)  # noqa: B023
                return answers

            alternate(rounds, {str(count): lambda count=count: run(count) for count in COUNTS})
            for count in COUNTS:
                bench.record(f"watches.{kind}.commit.{count}", samples[count][0])
                bench.record(f"watches.{kind}.callback.{count}", samples[count][1])
            for each in watched.values():
                each.close()
