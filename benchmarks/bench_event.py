"""Events from rank 0 to a subscriber at the leaf.

latency   one process has both handles: from the call that publishes until the subscription returns the event; one in
          flight, back to back
rate      another process publishes at rank 0, 256 in flight; events per second at the subscriber, from its first event
          to its last
"""

from __future__ import annotations

import multiprocessing

from common import LEAF, Instance, clock, fluxmpi, pipelined


def measure(bench) -> None:
    with Instance() as instance:
        root, leaf = instance.connect(0), instance.connect(LEAF)
        with leaf.event.subscribe("bench.latency") as subscription:
            samples = []
            count, warm_up = bench.count(2000), 50
            for _ in range(count + warm_up):
                begin = clock()
                number = root.event.publish_async("bench.latency", b"12345678")
                subscription.get()
                samples.append(clock() - begin)
                number.get()
            bench.record("event.latency", samples[warm_up:])
        with leaf.event.subscribe("bench.rate") as subscription:
            rounds = bench.count(8, 3)
            bench.record("event.rate", [_rate(instance, subscription, 20_000) for _ in range(rounds)])


def _rate(instance: Instance, subscription, count: int) -> float:
    publisher = multiprocessing.get_context("spawn").Process(target=_publish, args=(instance.uri(0), count))
    publisher.start()
    subscription.get()
    begin = clock()
    for _ in range(count - 1):
        subscription.get()
    rate = (count - 1) / (clock() - begin)
    publisher.join()
    return rate


def _publish(uri: str, count: int) -> None:
    with fluxmpi.connect(uri) as handle:
        pipelined(handle, lambda _: handle.event.publish_async("bench.rate", b"12345678"), count, 256)
