"""fluxmpi: a coordination runtime inside a batch allocation.

>>> import fluxmpi
>>> with fluxmpi.connect() as h:
...     snapshot = h.kvs.commit({"run.config": {"steps": 100}})
...     h.kvs.get("run.config", at=snapshot)

The names are imported when they are first used, so that ``import fluxmpi`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "connect": "fluxmpi.client.handle",
    "Handle": "fluxmpi.client.handle",
    "Future": "fluxmpi.client.handle",
    "Snapshot": "fluxmpi.client.snapshot",
    "ABSENT": "fluxmpi.client.txn",
    "ANY": "fluxmpi.message",
    **dict.fromkeys(
        (
            "CheckpointError",
            "CommandNotFound",
            "ConnectionLost",
            "DigestMismatch",
            "FenceBroken",
            "FenceMismatch",
            "FluxmpiError",
            "InstanceEnding",
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
            "Overloaded",
            "PermissionDenied",
            "ProtocolError",
            "RankLost",
            "RemoteError",
            "RequestTimeout",
            "SnapshotCollected",
            "StorageError",
            "TooLarge",
            "UsageError",
            "VersionUnknown",
        ),
        "fluxmpi.errors",
    ),
}

__all__ = ["__version__", *_WHERE]

if TYPE_CHECKING:
    from fluxmpi.client.handle import Future as Future
    from fluxmpi.client.handle import Handle as Handle
    from fluxmpi.client.handle import connect as connect
    from fluxmpi.client.snapshot import Snapshot as Snapshot
    from fluxmpi.client.txn import ABSENT as ABSENT
    from fluxmpi.errors import *  # noqa: F403
    from fluxmpi.message import ANY as ANY


def __getattr__(name: str) -> Any:
    try:
        module = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module 'fluxmpi' has no attribute '{name}'") from None
    from importlib import import_module

    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
