"""fluxmpi: a coordination runtime inside a batch allocation.

>>> import fluxmpi
>>> with fluxmpi.connect() as h:
...     snapshot = h.kvs.commit({"run.config": {"steps": 100}})
...     h.kvs.get("run.config", at=snapshot)
{'steps': 100}

Names are imported when they are first used, so ``import fluxmpi`` is fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_CLIENT = {
    "channel": ("Ready",),
    "content": ("Content",),
    "event": ("Event", "Events", "Subscription"),
    "eventlog": ("Eventlog", "EventlogWatch", "LogEvent"),
    "exec": ("CommandOutput", "CommandResult", "Exec", "RunningCommand"),
    "future": ("Future", "Stream"),
    "handle": ("Handle", "connect"),
    "kvs.directory": ("Directory",),
    "kvs.history": ("Difference", "HeldLease", "PastValue", "VersionInfo"),
    "kvs.kvs": ("Kvs",),
    "kvs.namespaces": ("NamespaceManager",),
    "kvs.reading": ("Entry",),
    "kvs.subtree": ("Subtree",),
    "kvs.result": ("ABSENT", "Result"),
    "kvs.transaction": ("Transaction",),
    "kvs.value_file": ("ValueFile",),
    "kvs.watch": ("Change", "Update", "Watch", "WatchMode"),
    "limits": ("HandleLimits",),
    "session": ("Session",),
    "snapshot": ("AtLike", "Snapshot"),
}

_ERRORS = (
    "CheckpointError",
    "CommandNotFound",
    "ConnectionLost",
    "DigestMismatch",
    "FenceBroken",
    "FenceMismatch",
    "FluxmpiError",
    "InstanceEnding",
    "InternalError",
    "InvalidKey",
    "InvalidRequest",
    "InvalidValue",
    "IsADirectory",
    "LaunchError",
    "LeaseExpired",
    "LinkLoop",
    "NamespaceExists",
    "NoInstance",
    "NoSuchBlob",
    "NoSuchKey",
    "NoSuchNamespace",
    "NoSuchRank",
    "NoSuchService",
    "NotADirectory",
    "OutOfMemory",
    "Overloaded",
    "PermissionDenied",
    "ProtocolError",
    "RankLost",
    "RemoteError",
    "RequestTimeout",
    "SnapshotCollected",
    "StorageError",
    "StoreFull",
    "TooLarge",
    "UsageError",
    "VersionUnknown",
)

_MODULES: dict[str, str] = {
    **{name: f"fluxmpi.client.{module}" for module, names in _CLIENT.items() for name in names},
    "ANY": "fluxmpi.message",
    **dict.fromkeys(("Dir", "Link", "Val", "ValRef"), "fluxmpi.kvs.objects"),
    **dict.fromkeys(("GcStatus", "NamespaceInfo", "Retention"), "fluxmpi.kvs.wire"),
    **dict.fromkeys(_ERRORS, "fluxmpi.errors"),
}

__all__ = ["__version__", *_MODULES]

if TYPE_CHECKING:
    from fluxmpi.client.channel import Ready as Ready
    from fluxmpi.client.content import Content as Content
    from fluxmpi.client.event import Event as Event
    from fluxmpi.client.event import Events as Events
    from fluxmpi.client.event import Subscription as Subscription
    from fluxmpi.client.eventlog import Eventlog as Eventlog
    from fluxmpi.client.eventlog import EventlogWatch as EventlogWatch
    from fluxmpi.client.eventlog import LogEvent as LogEvent
    from fluxmpi.client.exec import CommandOutput as CommandOutput
    from fluxmpi.client.exec import CommandResult as CommandResult
    from fluxmpi.client.exec import Exec as Exec
    from fluxmpi.client.exec import RunningCommand as RunningCommand
    from fluxmpi.client.future import Future as Future
    from fluxmpi.client.future import Stream as Stream
    from fluxmpi.client.handle import Handle as Handle
    from fluxmpi.client.handle import connect as connect
    from fluxmpi.client.kvs.directory import Directory as Directory
    from fluxmpi.client.kvs.history import Difference as Difference
    from fluxmpi.client.kvs.history import HeldLease as HeldLease
    from fluxmpi.client.kvs.history import PastValue as PastValue
    from fluxmpi.client.kvs.history import VersionInfo as VersionInfo
    from fluxmpi.client.kvs.kvs import Kvs as Kvs
    from fluxmpi.client.kvs.namespaces import NamespaceManager as NamespaceManager
    from fluxmpi.client.kvs.reading import Entry as Entry
    from fluxmpi.client.kvs.result import ABSENT as ABSENT
    from fluxmpi.client.kvs.result import Result as Result
    from fluxmpi.client.kvs.subtree import Subtree as Subtree
    from fluxmpi.client.kvs.transaction import Transaction as Transaction
    from fluxmpi.client.kvs.value_file import ValueFile as ValueFile
    from fluxmpi.client.kvs.watch import Change as Change
    from fluxmpi.client.kvs.watch import Update as Update
    from fluxmpi.client.kvs.watch import Watch as Watch
    from fluxmpi.client.kvs.watch import WatchMode as WatchMode
    from fluxmpi.client.limits import HandleLimits as HandleLimits
    from fluxmpi.client.session import Session as Session
    from fluxmpi.client.snapshot import AtLike as AtLike
    from fluxmpi.client.snapshot import Snapshot as Snapshot
    from fluxmpi.errors import *  # noqa: F403
    from fluxmpi.kvs.objects import Dir as Dir
    from fluxmpi.kvs.objects import Link as Link
    from fluxmpi.kvs.objects import Val as Val
    from fluxmpi.kvs.objects import ValRef as ValRef
    from fluxmpi.kvs.wire import GcStatus as GcStatus
    from fluxmpi.kvs.wire import NamespaceInfo as NamespaceInfo
    from fluxmpi.kvs.wire import Retention as Retention
    from fluxmpi.message import ANY as ANY


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    try:
        module = _MODULES[name]
    except KeyError:
        raise AttributeError(f"module 'fluxmpi' has no attribute '{name}'") from None
    from importlib import import_module

    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
