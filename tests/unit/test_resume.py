"""What a user is told of checkpoints, and where a store is saved when its file cannot be written."""

from __future__ import annotations

import time

import pytest

from fluxmpi.content.store import Store
from fluxmpi.drivers.resume import Resumed, age, fallback_files, newest_text, resumed_text
from fluxmpi.kvs.wire import SavedFile, SavedNamespace

NOON = time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1))
FILE = SavedFile("run.h5", NOON, 41, 1)


@pytest.mark.parametrize(
    ("newest", "version", "now", "text"),
    [
        (
            FILE,
            53,
            NOON + 250,
            "newest checkpoint run.h5, saved 12:00:00 (4 min ago), version 41; 12 versions since are lost",
        ),
        (FILE, 42, NOON + 7, "newest checkpoint run.h5, saved 12:00:00 (7 s ago), version 41; 1 version since is lost"),
        (FILE, 41, NOON, "newest checkpoint run.h5, saved 12:00:00 (0 s ago), version 41; no version since is lost"),
        (
            FILE,
            1041,
            NOON + 86400,
            "newest checkpoint run.h5, saved 2026-11-24 12:00:00 (24 h ago), version 41; 1,000 versions since are lost",
        ),
        (None, 0, NOON, "there is no checkpoint, and nothing was committed"),
        (None, 1, NOON, "there is no checkpoint: 1 version is lost"),
        (None, 12, NOON, "there is no checkpoint: 12 versions are lost"),
    ],
)
def test_what_is_lost(newest, version, now, text):
    assert newest_text(newest, version, now) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (2e5, "2 d")]
)
def test_ages(seconds, text):
    assert age(seconds) == text


def test_what_was_resumed():
    def saved(name, version, keys=-1):
        return SavedNamespace(name, version, b"", 0.0, keys=keys)

    def text(*namespaces):
        return resumed_text(Resumed(list(namespaces), Store(), FILE, "f00d"), NOON + 60)

    begin = "resumed from run.h5, saved 12:00:00 (60 s ago) by instance f00d: version 41"
    assert text(saved("primary", 41)) == begin, "a file of format 1"
    assert text(saved("primary", 41, 1234)) == f"{begin}, 1,234 keys"
    assert text(saved("work", 3, 1), saved("primary", 41, 1)) == f"{begin}, 1 key; work version 3, 1 key"
    many = [saved(f"n{number}", number) for number in range(7)]
    assert text(saved("primary", 41), *many).endswith("; n3 version 3; n4 version 4; 2 more namespaces")


def test_the_files_that_stand_in(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXMPI_RUNDIR", "/run/x")
    monkeypatch.setenv("HOME", "/home/x")
    assert fallback_files("/a/run.h5", "", "f00d") == ("/run/x/fluxmpi-f00d.h5", "/home/x/fluxmpi-f00d.h5")
    assert fallback_files("/a/run.h5", str(tmp_path), "f00d") == (f"{tmp_path}/run.h5",)
    assert fallback_files("/a/run.h5", "/b/spare.h5", "f00d") == ("/b/spare.h5",)
    assert fallback_files("", "", "f00d") == ()
    monkeypatch.setenv("HOME", "/run/x")
    assert fallback_files("/a/run.h5", "", "f00d") == ("/run/x/fluxmpi-f00d.h5",)
