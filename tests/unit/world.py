"""A leader that makes versions, and the kvs service of another broker, whose messages a test passes on."""

from __future__ import annotations

import pytest
from machines import CLIENT, NOW, answer_to, ask, body, commit, control_from, error, work
from trees import SHA256, Blobs, make_nodes

from fluxmpi.kvs.leader.service import Leader
from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.mvcc.namespace import Namespaces
from fluxmpi.kvs.objects import Val
from fluxmpi.kvs.replica.limits import ReplicaLimits
from fluxmpi.kvs.replica.reads import Reads
from fluxmpi.kvs.service import KvsService
from fluxmpi.kvs.store.edit import Edit
from fluxmpi.kvs.store.node import Leaf, NodeCache
from fluxmpi.kvs.watch.limits import WatchLimits
from fluxmpi.kvs.wire import Held, PathRequest, Setroot, WatchRequest
from fluxmpi.machine import NEVER
from fluxmpi.message import CONTROL, OK, REQUEST
from fluxmpi.overlay.router import Router


def val(text):
    return Val("raw", str(text).encode())


def replica_limits(**limits):
    """The limits of the KVS, those of replicas smaller."""
    return KvsLimits(replica=ReplicaLimits(**limits))


def watch_limits(**limits):
    """The limits of the KVS, those of watches smaller."""
    return KvsLimits(watch=WatchLimits(**limits))


class World:
    """A leader that makes versions, and the kvs service of rank 1 (with children 3 and 4)."""

    def __init__(self, rank=1, with_nodes=True, limits=KVS_LIMITS):
        self.nodes, self.store = make_nodes()
        self.leader = Leader(Namespaces(), self.nodes, self.store, SHA256, NOW, [])
        self.blobs = Blobs()
        self.router = Router(rank, 7)
        self.kvs = KvsService(self.router, NodeCache(self.blobs, SHA256), self.blobs, SHA256, limits)
        self.limits = limits.watch
        self.with_nodes = with_nodes
        self.serial = 0
        self.setroot(self.leader.start(NOW)[0])
        if with_nodes:
            self.blobs.update(self.store)

    def make(self, *ops):
        """Make the next version, and return its setroot, which the service does not have yet."""
        self.serial += 1
        self.leader.step(ask("leader.commit", commit(self.serial, *ops)), NOW)
        out = work(self.leader)
        assert out[-1].status == OK, error(out[-1])
        return out[0]

    def setroot(self, message, hop=0):
        setroot = body(message, Setroot)
        if not self.with_nodes:
            setroot.nodes = []
        out = self.kvs.step(control_from("kvs.setroot", setroot, hop), NOW)
        self.kvs.check()
        return out + self.settle()

    def settle(self):
        """Send the needs of the watches, which are tested elsewhere; rank 0 keeps all versions."""
        out = []
        needs = self.kvs.watches.needs
        if needs.dirty:
            for asked in needs.report():
                if asked.kind == REQUEST:
                    out += self.kvs.step(answer_to(asked, Held(-1, True)), NOW)
            if self.kvs.deadline == NOW and not self.kvs.watches.behind:
                self.kvs.deadline = NEVER
        return out

    def commit(self, *ops):
        """Make the next version and pass its setroot to the service. Return the messages to clients."""
        return [msg for msg in self.setroot(self.make(*ops)) if msg.kind != CONTROL]

    def step(self, topic, record=None, **arguments):
        out = self.kvs.step(ask(topic, record, **arguments), NOW)
        self.kvs.check()
        return out + self.settle()

    def feed(self, loads):
        """Answer requests for blobs and paths until there are none.

        Return the number of rounds, and the other messages.
        """
        rounds, rest = 0, []
        while loads:
            rounds += 1
            out = []
            for load in loads:
                if load.topic == "kvs.path":
                    assert load.target == self.router.parent
                    raw = self.parents_answer(load)
                else:
                    assert (load.topic, load.target) == ("content.load", self.router.rank)
                    (ref,) = body(load)
                    raw = self.store[ref]
                out += self.kvs.step(answer_to(load, raw=raw), NOW)
            loads = [msg for msg in out if msg.kind == REQUEST]
            rest += [msg for msg in out if msg.kind != REQUEST]
        self.kvs.check()
        return rounds, rest

    def parents_answer(self, msg):
        """The answer of a parent that has all nodes to ``kvs.path``."""
        with pytest.raises(StopIteration) as end:
            next(Reads(self.nodes, self.store, {}).path(msg, body(msg, PathRequest)))
        (answer,) = end.value.value
        return answer.body

    def watch(self, key, recursive=False, tag=1, hop=CLIENT, **arguments):
        return self.step("kvs.watch", WatchRequest(key, recursive=recursive, **arguments), tag=tag, hop=hop)

    def foreign_root(self, ops):
        """The root of a tree that has only these puts, with its nodes here and at rank 0."""
        edit = Edit(self.nodes, self.nodes.insert(Leaf([], [])), "another")
        for op in ops:
            edit.put(op.key.split("."), op.object)
        ref, _ = edit.seal()
        if self.with_nodes:
            self.blobs.update(self.store)
        return ref

    @property
    def root(self):
        return self.leader.roots()[0]
