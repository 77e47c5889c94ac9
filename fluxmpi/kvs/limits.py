"""Bounds of the KVS, by package. A broker's configuration carries them to the services; tests pass smaller ones."""

from __future__ import annotations

import msgspec

from fluxmpi.kvs.fence.limits import FENCE_LIMITS, FenceLimits
from fluxmpi.kvs.leader.limits import LEADER_LIMITS, LeaderLimits
from fluxmpi.kvs.mvcc.limits import MVCC_LIMITS, SPACE_LIMITS, GcLimits, MvccLimits, SpaceLimits
from fluxmpi.kvs.replica.limits import REPLICA_LIMITS, ReplicaLimits
from fluxmpi.kvs.watch.limits import WATCH_LIMITS, WatchLimits


class KvsLimits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    replica: ReplicaLimits = REPLICA_LIMITS
    mvcc: MvccLimits = MVCC_LIMITS
    fence: FenceLimits = FENCE_LIMITS
    leader: LeaderLimits = LEADER_LIMITS
    gc: GcLimits = GcLimits()
    space: SpaceLimits = SPACE_LIMITS
    watch: WatchLimits = WATCH_LIMITS


KVS_LIMITS = KvsLimits()
"""The defaults."""
