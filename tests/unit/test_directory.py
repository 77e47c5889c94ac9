"""The instance's directory: closed to others, locked while a broker runs, removed when all have ended."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess
import sys
import tempfile

import pytest

from fluxmpi.drivers.directory import InstanceDirectory, check_private, path_of, remove_leftovers
from fluxmpi.errors import LaunchError, PermissionDenied


@pytest.fixture
def tmp_path():
    """A short path: pytest's own is too long for a socket when tests run in parallel."""
    with tempfile.TemporaryDirectory(prefix="fxd-", dir="/tmp") as path:
        yield pathlib.Path(path)


@pytest.fixture(autouse=True)
def rundir(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXMPI_RUNDIR", str(tmp_path))
    return tmp_path


def test_the_directory_is_private_whatever_the_umask():
    old = os.umask(0)
    try:
        directory = InstanceDirectory("abc", 0)
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(os.path.join(directory.path, "lock.0")).st_mode) == 0o600
    directory.close()


def test_the_last_broker_removes_the_directory():
    brokers = [InstanceDirectory("abc", rank) for rank in range(3)]
    for broker in brokers:
        open(broker.socket, "w").close()
        open(os.path.join(broker.path, f"bell.{broker.rank}"), "w").close()
    path = brokers[0].path
    for broker in brokers:
        assert os.path.exists(path)
        broker.close()
    assert not os.path.exists(path)


def test_two_brokers_cannot_be_one_rank():
    directory = InstanceDirectory("abc", 0)
    with pytest.raises(OSError, match="unavailable"):
        InstanceDirectory("abc", 0)
    directory.close()


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o777])
def test_a_directory_that_is_open_to_others_is_refused(mode):
    os.mkdir(path_of("abc"))
    os.chmod(path_of("abc"), mode)
    with pytest.raises(PermissionDenied, match="mode 0700"):
        InstanceDirectory("abc", 0)


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    os.symlink(tmp_path / "elsewhere", path_of("abc"))
    with pytest.raises(PermissionDenied):
        InstanceDirectory("abc", 0)
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give a directory to another user")
def test_a_directory_of_another_user_is_refused():
    os.mkdir(path_of("abc"), 0o700)
    os.chown(path_of("abc"), 65534, 65534)
    with pytest.raises(PermissionDenied):
        InstanceDirectory("abc", 0)
    with pytest.raises(PermissionDenied):
        check_private(path_of("abc"))


def test_a_path_that_is_too_long_for_a_socket(monkeypatch, tmp_path):
    monkeypatch.setenv("FLUXMPI_RUNDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(LaunchError, match="too long for a socket: set TMPDIR or FLUXMPI_RUNDIR"):
        InstanceDirectory("abc", 0)


HOLD = """
import sys
from fluxmpi.drivers.directory import InstanceDirectory
directory = InstanceDirectory("dead1", 3)
print(directory.path, flush=True)
sys.stdin.read()
"""


def test_leftovers_go_when_their_brokers_are_dead_and_not_before(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        path = holder.stdout.readline().strip()
        assert os.path.exists(os.path.join(path, "lock.3"))
        assert remove_leftovers() == [], "its broker runs"
        holder.kill()
    assert os.path.exists(path), "kill -9 leaves it"
    mine = InstanceDirectory("alive", 0)
    assert remove_leftovers() == [path]
    assert not os.path.exists(path)
    assert os.path.exists(mine.path)
    mine.close()


def test_directories_of_others_are_not_removed(tmp_path):
    (tmp_path / "fluxmpi-0-notes").mkdir(mode=0o755)
    (tmp_path / f"fluxmpi-{os.getuid()}-new").mkdir(mode=0o700)
    (tmp_path / f"fluxmpi-{os.getuid()}-UPPER").mkdir(mode=0o700)
    (tmp_path / f"fluxmpi-{os.getuid()}-UPPER" / "lock.0").touch()
    (tmp_path / f"fluxmpi-{os.getuid()}-file").touch()
    (tmp_path / f"fluxmpi-{os.getuid()}-open").mkdir(mode=0o755)
    (tmp_path / f"fluxmpi-{os.getuid()}-open" / "lock.0").touch()
    names = sorted(os.listdir(tmp_path))
    assert remove_leftovers() == []
    assert sorted(os.listdir(tmp_path)) == names


def test_a_lock_is_held_from_the_moment_it_can_be_seen(monkeypatch):
    """Another instance that starts now searches for locks that are not held.

    Between open and flock it would find this one.
    """
    import fcntl

    seen = []
    real = fcntl.flock

    def flock(fd, how):
        seen.append(sorted(os.listdir(path_of("abc"))))
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    directory = InstanceDirectory("abc", 0)
    assert not any(name.startswith("lock.") for name in seen[0])
    assert os.listdir(directory.path) == ["lock.0"]
    directory.close()
