"""The checkpoint that an instance starts from, and what a user is told of checkpoints at its start and its end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fluxmpi.content.store import Store
from fluxmpi.drivers.directory import parent_directory
from fluxmpi.errors import CheckpointError, LaunchError
from fluxmpi.kvs.wire import PRIMARY, SavedFile, SavedNamespace

NAMED_MAX = 5
"""Namespaces beside the primary one that are named when an instance resumes."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A checkpoint in memory: what rank 0 starts from. ``instance``: the one that saved it."""

    namespaces: list[SavedNamespace]
    store: Store
    file: SavedFile
    instance: str


def resume(path: str, algorithm: str) -> Resumed:
    """Read and verify a checkpoint. Raises LaunchError or CheckpointError, with what to do."""
    from fluxmpi.drivers import checkpoint
    from fluxmpi.drivers.checkpoint_format import Absent

    try:
        saved = checkpoint.read(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, Absent):
            raise LaunchError(f"{error.text} To start with an empty store, leave out --resume.") from None
        raise
    if saved.algorithm != algorithm:
        raise LaunchError(f"{path} was written with hash {saved.algorithm}: start with --hash {saved.algorithm}")
    store = Store()
    for ref, blob in saved.blobs.items():
        store.put(ref, blob)
    namespaces = checkpoint.saved_namespaces(saved.path, saved.roots)
    version = next((each.version for each in namespaces if each.namespace == PRIMARY), 0)
    file = SavedFile(saved.path, saved.created, version, len(namespaces))
    return Resumed(namespaces, store, file, saved.instance)


def resumed_text(resumed: Resumed, now: float) -> str:
    """Return the line that tells what an instance has resumed."""
    others = [each for each in resumed.namespaces if each.namespace != PRIMARY]
    parts = [_content(each) for each in resumed.namespaces if each.namespace == PRIMARY]
    parts += [f"{each.namespace} {_content(each)}" for each in others[:NAMED_MAX]]
    if len(others) > NAMED_MAX:
        parts.append(f"{len(others) - NAMED_MAX} more namespaces")
    file = resumed.file
    saved = f"saved {moment(file.time, now)} ({age(now - file.time)} ago) by instance {resumed.instance}"
    return f"resumed from {file.path}, {saved}: {'; '.join(parts)}"


def _content(saved: SavedNamespace) -> str:
    keys = f", {_plural(saved.keys, 'key')}" if saved.keys >= 0 else ""
    return f"version {saved.version}{keys}"


def newest_text(newest: SavedFile | None, version: int, now: float) -> str:
    """Return what is saved, and how many versions are not. ``version``: the primary namespace's newest one."""
    if newest is None:
        lost = f"{_plural(version, 'version')} {'is' if version == 1 else 'are'} lost"
        return f"there is no checkpoint: {lost}" if version else "there is no checkpoint, and nothing was committed"
    since = version - newest.version
    lost = "no version" if since <= 0 else _plural(since, "version")
    verb = "is" if since <= 1 else "are"
    saved = f"saved {moment(newest.time, now)} ({age(now - newest.time)} ago), version {newest.version}"
    return f"newest checkpoint {newest.path}, {saved}; {lost} since {verb} lost"


def moment(when: float, now: float) -> str:
    """Return a local time, with its date unless that is today's."""
    there, here = time.localtime(when), time.localtime(now)
    return time.strftime("%H:%M:%S" if there[:3] == here[:3] else "%Y-%m-%d %H:%M:%S", there)


def age(seconds: float) -> str:
    """Return a duration in its largest unit: ``12 s``, ``4 min``, ``6 h``, ``8 d``."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def fallback_files(path: str, fallback: str, instance: str) -> tuple[str, ...]:
    """Return the files to try when the checkpoint ``path`` cannot be written at the end, in order.

    ``fallback``: of --checkpoint-fallback, a file or a folder; empty: the file system of the instance's directory, then
    the home folder.
    """
    if not path:
        return ()
    if fallback:
        return (os.path.join(fallback, os.path.basename(path)) if os.path.isdir(fallback) else fallback,)
    folders: Sequence[str] = (parent_directory(), os.path.expanduser("~"))
    files = [os.path.join(os.path.abspath(folder), f"fluxmpi-{instance}.h5") for folder in folders]
    return tuple(dict.fromkeys(file for file in files if file != path))


def check_checkpoint(path: str, option: str) -> None:
    """Raise LaunchError at the start for a path that could not be written at the end. ``option`` has named it."""
    folder = os.path.dirname(path)
    if not path or (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK) and not os.path.isdir(path)):
        return
    if os.path.isdir(path):
        raise LaunchError(f"{option} {path} is a folder: name a file in it")
    what = "may not be written to by you" if os.path.isdir(folder) else "does not exist: make it first"
    raise LaunchError(f"{option} {path}: the folder {folder} {what}")
