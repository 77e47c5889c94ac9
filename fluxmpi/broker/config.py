"""Configuration of one broker. It does not change while the broker runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from fluxmpi.broker.tracer import TRACE_LIMITS, TraceLimits
from fluxmpi.content.cache import CACHE_BYTES_MAX
from fluxmpi.content.service import CONTENT_LIMITS, ContentLimits
from fluxmpi.content.values import SEGMENTS_BYTES_MAX, VALUE_LIMITS, ValueLimits
from fluxmpi.jobs.exec import EXEC_LIMITS, ExecLimits
from fluxmpi.kvs.limits import KVS_LIMITS, KvsLimits
from fluxmpi.kvs.mvcc.limits import HISTORY_BYTES_MAX
from fluxmpi.kvs.mvcc.namespace import RETENTION_COUNT
from fluxmpi.kvs.mvcc.space import UNBOUNDED
from fluxmpi.kvs.store.node import NODES_MAX
from fluxmpi.overlay.events import EVENT_LIMITS, EventLimits
from fluxmpi.overlay.health import HEARTBEAT_S
from fluxmpi.overlay.topology import DEFAULT


@dataclass(frozen=True, slots=True)
class Config:
    """``hosts``: the host name of every rank. ``attributes``: what ``getattr`` shows beside rank, size and the like."""

    rank: int = 0
    size: int = 1
    hosts: tuple[str, ...] = ("localhost",)
    instance: str = "instance"
    topology: str = DEFAULT
    algorithm: str = "sha256"
    heartbeat_s: float = HEARTBEAT_S
    cache_bytes_max: int = CACHE_BYTES_MAX
    segments_bytes_max: int = SEGMENTS_BYTES_MAX
    """Memory for the long values that clients map."""
    nodes_max: int = NODES_MAX
    """Decoded tree nodes kept beside the blobs."""
    retention: int = RETENTION_COUNT
    """Versions kept of a namespace by default."""
    retention_age_s: float = 0.0
    history_bytes_max: int = HISTORY_BYTES_MAX
    """Default bounds of a namespace's history: of age, 0 is none, and in bytes of what only older versions hold."""
    retention_chosen: tuple[str, ...] = ()
    """Which of these three (``count``, ``age_s``, ``bytes``) replace what a checkpoint says."""
    store_bytes_max: int = UNBOUNDED
    """Bytes of rank 0's store, above which commits are refused."""
    kvs: KvsLimits = KVS_LIMITS
    """Bounds of the KVS: queues, pages and the work of one turn."""
    content: ContentLimits = CONTENT_LIMITS
    values: ValueLimits = VALUE_LIMITS
    events: EventLimits = EVENT_LIMITS
    exec: ExecLimits = EXEC_LIMITS
    trace: TraceLimits = TRACE_LIMITS
    owner: int = 0
    """The uid that started the instance."""
    debug: bool = False
    """Clients may have a broker fail on purpose, with ``lifecycle.fail``."""
    command: tuple[str, ...] = ()
    """The initial program: rank 0 runs it, and the instance ends when it ends."""
    checkpoint: str = ""
    """File that periodic saves, the end and ``checkpoint.save`` write to; empty: none."""
    checkpoint_every_s: float = 0.0
    """Period of the saves; 0: none."""
    checkpoint_fallbacks: tuple[str, ...] = ()
    """Files that the save at the end tries in this order when the checkpoint file cannot be written."""
    attributes: dict[str, str] = field(default_factory=dict)
