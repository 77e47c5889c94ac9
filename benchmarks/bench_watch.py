"""From a commit at rank 0 to the watch of its key at the leaf.

One process has both handles: the time from the call that commits until the leaf's watch returns the change. One in
flight; each commit is answered before the next.
"""

from __future__ import annotations

from common import LEAF, Instance, clock


def measure(bench) -> None:
    with Instance() as instance:
        root, leaf = instance.connect(0), instance.connect(LEAF)
        watch = leaf.kvs.watch("watch.key")
        watch.update()
        samples = []
        count, warm_up = bench.count(2000), 50
        for index in range(count + warm_up):
            begin = clock()
            answer = root.kvs.commit_async({"watch.key": index})
            update = watch.update()
            samples.append(clock() - begin)
            assert update.changes[0].value == index
            answer.get()
        bench.record("watch.leaf", samples[warm_up:])
