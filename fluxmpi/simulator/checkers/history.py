"""The history: one form for what clients asked and were answered, from the simulator and from real processes.

An operation is a list of ``KeyStep`` that happened together, on keys of one namespace, and its answer. Without an
``end`` it was not answered: it may have happened at any time after ``start``, or never. With an ``error``, it changed
nothing.

Values are plain: an ``int`` is a JSON integer, a ``str`` the text of any other short value, ``Value`` whatever has a
type of its own. Some answers say less than the value; the constants below stand for those.
"""

from __future__ import annotations

from hashlib import sha1, sha256
from typing import Any, NamedTuple

import msgspec

PRIMARY = "primary"

WRITES = ("put", "append", "unlink", "mkdir", "add", "exchange", "swap")
ANSWERS = ("get", "add", "exchange", "swap", "equals", "differs")
"""Steps whose answer can be wrong. A key that has none of them need not be judged."""

VALUED = ("put", "append", "add", "exchange", "swap", "equals", "differs")

DIRECTORY = "<directory>"

ANY = "<any>"
"""A value that is not known."""

BLOB = "<blob> "
"""Before the digest of a long value, in an answer that carries only its name."""

ERROR = "<error> "
"""Before the name of the error with which a read ended."""


class Value(NamedTuple):
    """A value that is neither a JSON integer nor plain text."""

    type: str
    data: bytes


class KeyStep(msgspec.Struct, array_like=True, frozen=True):
    """One step of a transaction or read: ``what``, on ``key``, with ``value``.

    ==========  ===============================================  ============================
    what        value                                            result
    ==========  ===============================================  ============================
    get                                                          the value, None if absent
    look                                                         the same; a link is not followed
    list        [prefix, after, limit]                           [entries by name, more]
    put         the new value
    append      text
    unlink
    mkdir
    add         the amount; ``limit``: only below it             [done, the number after]
    exchange    the new value                                    the value before
    swap        the new value; ``expected``: the old one         [done, the value found]
    equals      the value that a guard found; None: absent
    differs     the value that a guard did not find; None: absent
    compare     a number or text; ``expected``: <, <=, >, >=
    changed     a version; ``expected``: the comparison with the key's last change
    within      the key was a directory, or became one
    tree                                                         all values below, by key
    ==========  ===============================================  ============================
    """

    what: str
    key: str
    value: Any = None
    expected: Any = None
    limit: int | None = None

    def __str__(self) -> str:
        value = f" {self.expected} → {self.value}" if self.what == "swap" else f" {self.value}"
        bound = "" if self.limit is None else f" below {self.limit}"
        return f"{self.what} {self.key}{value if self.what in VALUED else ''}{bound}"


class WatchOptions(msgspec.Struct):
    """What a watch asked for, by the names of ``kvs.wire.WatchRequest``.

    ``drained``: all notifications were taken, and the instance was idle. ``ending``: the error that ended the watch, or
    ``end``; ``ending_text``: its message. ``progress``: versions reported after the client last asked for progress;
    None: it did not.
    """

    key: str
    at_least: int = 0
    recursive: bool = False
    follow: bool = True
    glob: bool = False
    after: int | None = None
    latest: bool = False
    count: int = 0
    uniq: bool = True
    initial: bool = True
    wait: bool = False
    drained: bool = False
    cancelled: bool = False
    ending: str = ""
    ending_text: str = ""
    progress: list[int] | None = None
    contradiction: str = ""
    """What is wrong in a notification by itself: parts of two versions, or appends that do not make the new value."""


class Operation(msgspec.Struct):
    """One request of one client, or one notification of a watch.

    ``kind``: commit; read (all ``steps`` are reads); root (only a version); watch (one notification: ``start`` is the
    watch's, ``end`` its own arrival); watching (the watch itself, with ``options``).

    ``results``: one per step; None without an answer. ``version``, ``ref``: those that the answer names. ``fresh``: the
    newest version of the instance was asked for, not only the broker's. ``at``: a version or root was asked for by name
    (``asked``: that root); such an answer says nothing about the client's session. ``least``: the version that it had
    to wait for.

    ``fence``: contributions of one name and version are one transaction; ``size``: how many there must be. ``repeats``:
    later answers, [error, version, ref, results] each.

    ``stream``: which watch; ``pattern``: its key, or, with a dot at the end, everything below. The results of a
    notification are [value, existed] or [value, existed, old value]. ``after``: the version after which the watch
    continues.

    ``window``: the versions of the answering broker when it took the request and when it answered (only the simulator
    knows). ``number``: its place in its process's history.
    """

    client: str
    kind: str
    start: float
    end: float | None = None
    steps: list[KeyStep] = []
    results: list[Any] | None = None
    version: int | None = None
    namespace: str = PRIMARY
    broker: int = 0
    fresh: bool = False
    at: bool = False
    asked: str = ""
    fence: str = ""
    error: str = ""
    ref: str = ""
    least: int = 0
    stream: str = ""
    pattern: str = ""
    after: int | None = None
    number: int = 0
    size: int = 0
    repeats: list[list[Any]] = []
    window: tuple[int, int] | None = None
    options: WatchOptions | None = None

    @property
    def answered(self) -> bool:
        return self.end is not None and not self.error

    @property
    def pending(self) -> bool:
        return self.end is None

    def result(self, index: int) -> Any:
        return self.results[index] if self.results is not None and index < len(self.results) else None

    def __str__(self) -> str:
        if self.kind == "root":
            text = f"{'fresh ' if self.fresh else ''}root"
        elif self.options is not None:
            text = f"watch {self.options}"
        else:
            text = "; ".join(self._step(index, step) for index, step in enumerate(self.steps)) or self.kind
            text = f"fresh {text}" if self.fresh and self.kind == "read" else text
        end = "no answer" if self.end is None else f"{self.end * 1e3:.3f} ms"
        answer = (
            f" = version {self.version}" if self.version is not None else f" = error {self.error}" if self.error else ""
        )
        return f"{self.client} at broker {self.broker} [{self.start * 1e3:.3f} … {end}] {text}{answer}"

    def _step(self, index: int, step: KeyStep) -> str:
        if self.results is None or step.what in ("put", "append", "unlink", "mkdir", "equals", "differs", "within"):
            return str(step)[:500]
        return f"{step} → {self.result(index)}"[:500]


def says(value: Any, answer: Any) -> bool:
    """Return whether ``answer`` names this value, as far as it says what the value is.

    ``value`` may be a directory of the model, a dict.
    """
    if isinstance(value, list) and isinstance(answer, list):
        return value[0] == answer[0] and says(value[1], answer[1])
    if isinstance(answer, str) and answer.startswith(BLOB) and isinstance(value, str | int | Value) and value != ANY:
        name = answer.removeprefix(BLOB)
        data = value.data if isinstance(value, Value) else str(value).encode("latin-1")
        return (sha1 if len(name) == 40 else sha256)(data).hexdigest() == name or value == answer
    if answer == DIRECTORY and isinstance(value, dict):
        return True
    return bool(value == answer) or ANY in (value if not isinstance(value, dict) else None, answer)
