"""Every command with words that run it, for tests of what all commands have in common.

A new command is in none of these tables, and ``test_the_table_has_every_command`` fails until it is. Words in braces are
filled in by the test: keys, a file.
"""

from __future__ import annotations

Path = tuple[str, ...]

STREAMS: dict[Path, list[list[str]]] = {
    ("kvs", "watch"): [["{value}"], ["-j", "{value}"], ["--progress", "{dir}."], ["{absent}"]],
    ("kvs", "get"): [["-w", "{value}"], ["-w", "-A", "{log}"], ["-W", "{absent}"]],
    ("kvs", "eventlog", "get"): [["-w", "{log}"], ["-W", "-w", "{absent}"]],
    ("kvs", "eventlog", "wait-event"): [["-v", "{log}", "never"], ["-W", "{absent}", "never"]],
    ("event", "sub"): [[], ["-j", "term."]],
    ("exec",): [["sh", "-c", "echo begun; exec sleep 1000"], ["sleep", "1000"]],
    ("ping",): [["0"], ["-i", "1000s", "0"]],
    ("trace",): [["--follow"], ["--follow", "--topic", "none.such"]],
}
"""Commands that wait for something to print, with words for which they do. They end when the reader of their output has."""

PRINTS: dict[Path, list[str]] = {
    ("kvs", "get"): ["{value}"],
    ("kvs", "ls"): ["-R"],
    ("kvs", "dir"): ["-R", "{dir}"],
    ("kvs", "readlink"): ["{link}"],
    ("kvs", "put"): ["-s", "term.put=1"],
    ("kvs", "mkdir"): ["-s", "term.mkdir"],
    ("kvs", "unlink"): ["-s", "-f", "term.unlink"],
    ("kvs", "link"): ["-s", "a", "term.madelink"],
    ("kvs", "add"): ["term.add"],
    ("kvs", "version"): [],
    ("kvs", "getroot"): [],
    ("kvs", "history"): ["{value}"],
    ("kvs", "log"): [],
    ("kvs", "diff"): ["1"],
    ("kvs", "retention"): [],
    ("kvs", "namespace", "list"): [],
    ("kvs", "gc"): [],
    ("kvs", "stats"): [],
    ("kvs", "eventlog", "get"): ["{log}"],
    ("event", "pub"): ["-s", "term.event"],
    ("exec",): ["echo", "x"],
    ("ping",): ["-c", "1", "0"],
    ("checkpoint", "save"): ["-f", "{file}"],
    ("checkpoint", "list"): ["{file}"],
    ("content", "store"): [],
    ("content", "load"): ["{blob}"],
    ("content", "dropcache"): [],
    ("content", "stats"): [],
    ("overlay", "status"): [],
    ("overlay", "info"): [],
    ("getattr",): ["hostlist"],
    ("lsattr",): ["-v"],
    ("stats",): [],
    ("uptime",): [],
}
"""Commands that print and end, with words for which they do."""

SILENT: set[Path] = {
    ("kvs", "copy"),
    ("kvs", "move"),
    ("kvs", "txn"),
    ("kvs", "wait"),
    ("kvs", "lease"),
    ("kvs", "dropcache"),
    ("kvs", "sync"),
    ("kvs", "namespace", "create"),
    ("kvs", "namespace", "remove"),
    ("kvs", "eventlog", "append"),
    ("checkpoint", "restore"),
    ("start",),
    ("shutdown",),
}
"""Commands that print nothing, nothing before their end, or the output of another program."""
