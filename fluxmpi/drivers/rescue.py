"""Save the store of a broker that has failed, at rank 0, without the machines that may be what is broken.

It needs the namespaces' roots and the store only. A root is *whole* if everything that it reaches is there and matches
its digest. Of each namespace the newest whole version is saved; an exception in the middle of a commit cannot have
changed it, because nodes are immutable and a version's root is set when all its nodes are stored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import islice

from msgspec.structs import replace

from fluxmpi.blobref import Ref, digest_function
from fluxmpi.broker.config import Config
from fluxmpi.broker.wire import Rescued
from fluxmpi.content.store import Store
from fluxmpi.drivers.checkpoint_format import SavedRoot
from fluxmpi.drivers.clock import Clock
from fluxmpi.drivers.disk import Disk
from fluxmpi.drivers.log import failure_text
from fluxmpi.errors import DigestMismatch, FluxmpiError, StorageError
from fluxmpi.kvs.mvcc.checkpoint import saved_file
from fluxmpi.kvs.mvcc.namespace import Namespace, Namespaces
from fluxmpi.kvs.mvcc.reach import Reach
from fluxmpi.kvs.store.node import NodeCache, ref_text
from fluxmpi.kvs.wire import SavedFile, SavedNamespace, encode_settings
from fluxmpi.message import LOOP, Message, control

VERSIONS_TRIED = 10
"""Versions of a namespace, from the newest on, of which one must be whole."""

NODES_PER_STEP = 1000

JOIN_S = 60.0
"""Time limit for a store that is being saved when the stand-in of the failed broker fails, too."""


class Rescuer:
    """Saves the store in a thread, and posts ``lifecycle.rescued``; the loop sends heartbeats meanwhile."""

    def __init__(
        self,
        namespaces: Namespaces,
        store: Store,
        config: Config,
        disk: Disk,
        clock: Clock,
        post: Callable[[Message], None],
    ) -> None:
        """``config``: has the files to write. ``post`` may be called from any thread."""
        self._namespaces = namespaces
        self._store = store
        self._config = config
        self._disk = disk
        self._clock = clock
        self._post = post
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="rescue")

    def start(self) -> None:
        assert self._thread is not None
        try:
            self._thread.start()
        except RuntimeError:  # no memory for a thread
            self._thread = None
            self._run()

    def join(self) -> None:
        """Wait until the store is saved, up to JOIN_S: the process is about to end."""
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _run(self) -> None:
        config = self._config
        paths = [config.checkpoint, *config.checkpoint_fallbacks]
        try:
            self._disk.close()  # a save in progress has the file locked
            now = self._clock.now()
            file, problem = rescue(self._namespaces, self._store, config.algorithm, config.instance, paths, now)
            rescued = Rescued(file, problem)
        except Exception as error:
            rescued = Rescued(None, error.text if isinstance(error, FluxmpiError) else failure_text(error))
        self._post(control("lifecycle.rescued", rescued, LOOP))


def rescue(
    namespaces: Namespaces, store: Store, algorithm: str, instance: str, paths: Sequence[str], now: float
) -> tuple[SavedFile, str]:
    """Save every namespace to the first of ``paths`` that can be written.

    Returns the file, and what was not as it should be (or nothing). Raises FluxmpiError if the store is not whole or no
    path can be written; older checkpoints are as they were.
    """
    from fluxmpi.drivers import checkpoint

    blobs: dict[Ref, bytes] = {}
    saved, problems = [], []
    for namespace in list(namespaces):
        newest = namespace.saved()
        found = _newest_whole(namespace, newest, store, algorithm, blobs)
        if found.version != newest.version:
            problems.append(
                f"version {newest.version} of {found.namespace} is damaged, and {found.version} was saved instead"
            )
        saved.append(found)
    roots = [SavedRoot(each.namespace, each.version, each.ref, each.time, encode_settings(each)) for each in saved]
    refused: list[str] = []
    for path in paths:
        try:
            written = checkpoint.write(
                path, list(blobs), list(blobs.values()), roots, algorithm=algorithm, instance=instance
            )
        except FluxmpiError as error:
            refused.append(error.text)
            continue
        if refused:
            problems.append(
                f"the checkpoint was not written: {refused[0]} The store was saved to {written.path} instead"
            )
        return saved_file(written.path, now, saved), "; ".join(problems)
    raise StorageError(" ".join(refused))


def _newest_whole(
    namespace: Namespace, newest: SavedNamespace, store: Store, algorithm: str, blobs: dict[Ref, bytes]
) -> SavedNamespace:
    """Return the newest whole version, and add what it reaches to ``blobs``. Raises StorageError if there is none."""
    problem = ""
    for version in islice(range(newest.version, namespace.oldest - 1, -1), VERSIONS_TRIED):
        root = namespace.at(version)
        try:
            reached, keys = _reached(root.ref, store, algorithm)
        except Exception as error:  # whatever damaged data raises
            problem = problem or f"version {version}: {error}"
            continue
        blobs.update(reached)
        return replace(newest, version=root.version, ref=root.ref, time=root.time, keys=keys)
    raise StorageError(f"the store is not whole, so nothing was saved: namespace {newest.namespace}, {problem}")


def _reached(root: Ref, store: Store, algorithm: str) -> tuple[dict[Ref, bytes], int]:
    """Return everything that a root reaches, verified, and the number of keys below it."""
    digest = digest_function(algorithm)
    reach = Reach(NodeCache(store, digest), store, [root])
    blobs: dict[Ref, bytes] = {}
    while not reach.done:
        for ref, blob in reach.take(NODES_PER_STEP):
            if digest(blob) != ref:
                raise DigestMismatch(f"blob {ref_text(ref)} is damaged: its digest is another one")
            blobs[ref] = blob
    return blobs, reach.keys(root)
