"""SECURITY.md against a running instance: every socket, file and port that it has open has a row there.

Also: ``start -n`` opens no port, other users cannot get in, and too small a /dev/shm is told with the remedy.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy
import psutil
import pytest
from instance import END_S, FLUXMPI, ROOT, START_S, Instance, environment
from killing import mpirun_words, segments_of

from fluxmpi.client.channel import URI_VARIABLE

SECURITY = (ROOT / "SECURITY.md").read_text()
LISTENING = "0A"
"""The state of a TCP socket in /proc/net/tcp."""


def rows(heading: str) -> list[dict[str, str]]:
    """Return the tables below a heading: name → mode."""
    section = SECURITY.split(f"\n### {heading}\n", 1)[1].split("\n#", 1)[0]
    tables: list[dict[str, str]] = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            continue
        if cells[0] == "name":
            tables.append({})
        elif not cells[0].startswith("---"):
            for name in re.findall(r"`([^`]+)`", cells[0]) or [cells[0]]:
                tables[-1][name] = cells[1]
    return tables


@dataclass
class Found:
    """What processes have open: name in SECURITY.md → modes seen; ``ports``: TCP and UDP sockets, as text."""

    names: dict[str, set[str]] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)

    def add(self, name: str, mode: int | None = None) -> None:
        seen = self.names.setdefault(name, set())
        if mode is not None:
            seen.add(f"{mode & 0o777:04o}")


def sockets() -> dict[int, tuple[str, str, str]]:
    """Return the sockets of this network namespace: inode → (protocol, state, local address or name)."""
    found = {}
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{protocol}").read_text().splitlines()[1:]:
            words = line.split()
            found[int(words[9])] = protocol, words[3], words[1]
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        found[int(words[6])] = "unix", words[4], words[7] if len(words) > 7 else ""
    return found


def walk(pids: list[int], folder: Path) -> Found:
    """Find what these processes have open, apart from what every program has: pipes, terminals, its own libraries."""
    found, known = Found(), sockets()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(link)
                if int(link.name) <= 2 or target.startswith(("pipe:", "anon_inode:", "/dev/null", "/dev/pts")):
                    continue
                if target.startswith("socket:"):
                    protocol, state, name = known[int(target[8:-1])]
                    if protocol == "unix":
                        found.add(unix_name(name, folder), os.stat(name).st_mode if name.startswith("/") else None)
                    else:
                        found.ports.append(f"{pid} {protocol} {state} {name}")
                else:
                    found.add(file_name(target, folder), link.stat().st_mode)
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            words = line.split(None, 5)
            if len(words) > 5 and words[1].startswith("rw") and words[1].endswith("s"):  # written, and shared
                found.add(file_name(words[5], folder))
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        if int(line.split()[4]) in pids:  # the process that made it
            found.add("SysV shared memory", int(line.split()[2], 8))
    found.add("DIR", folder.stat().st_mode)
    return found


def unix_name(name: str, folder: Path) -> str:
    if not name:
        return "unnamed socket"
    if name.startswith("@fluxmpi-start-"):
        return "@fluxmpi-start-INSTANCE"
    if re.fullmatch(r"@[0-9a-f]{5}", name):  # a name that the kernel chose
        return "@UCX"
    return file_name(name, folder)


def file_name(path: str, folder: Path) -> str:
    path = path.removesuffix(" (deleted)")
    if path.startswith(f"{folder}/"):
        return "DIR/" + re.sub(r"\.\d+", ".N", path.removeprefix(f"{folder}/"))
    if path.startswith("/memfd:"):
        return path.removeprefix("/")
    if path.startswith("/SYSV"):
        return "SysV shared memory"
    if path.startswith("/dev/shm/mpich_shm_"):
        return "/dev/shm/mpich_shm_ID"
    if path.endswith(".log"):
        return "FILE.log"
    return path


def family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Instance, Found]]:
    """An instance that is in use: clients, a long value that is mapped, a command on another rank."""
    log = tmp_path_factory.mktemp("log") / "brokers.log"
    with Instance(4, ["--log-file", str(log)]) as instance, instance.connect(3) as h:
        h.kvs.put("long", numpy.arange(1 << 19))
        assert h.kvs.get("long")[-1] == (1 << 19) - 1
        running = h.exec.start(["sh", "-c", "echo up; exec sleep 1000"], [1])
        try:
            assert running.get(START_S).data == b"up\n"
            yield instance, walk(family(instance.process.pid), instance.folder)
        finally:
            running.kill()
            assert [output.status for output in running] == [128 + signal.SIGTERM]


def test_everything_that_is_open_has_a_row(walked):
    _, found = walked
    ours, theirs = rows("fluxmpi's"), rows("The MPI's")
    listed = {name: mode for table in (*ours, *theirs) for name, mode in table.items()}
    assert sorted(set(found.names) - set(listed)) == [], "without a row in SECURITY.md"
    for name, modes in found.names.items():
        if listed[name].isdigit():
            assert modes <= {listed[name]}, f"{name}: mode {modes}, SECURITY.md has {listed[name]}"


def test_every_row_of_a_running_instance_is_found(walked):
    _, found = walked
    expected = rows("fluxmpi's")[0] | rows("The MPI's")[0]
    assert sorted(set(expected) - set(found.names)) == [], "SECURITY.md has rows for what does not exist"


def test_start_n_opens_no_port(walked):
    """Neither listening nor connected, neither beyond loopback nor on it, neither a broker's nor the launcher's."""
    assert walked[1].ports == []


def test_a_new_file_or_socket_without_a_row_would_be_found(walked, tmp_path):
    instance, _ = walked
    listed = {name for section in ("fluxmpi's", "The MPI's") for table in rows(section) for name in table}
    with (tmp_path / "secret").open("w"), socket.socket(socket.AF_UNIX) as sock, socket.socket() as port:
        sock.bind(f"\0new-{os.getpid()}")
        port.bind(("127.0.0.1", 0))
        port.listen()
        found = walk([os.getpid()], instance.folder)
        assert str(tmp_path / "secret") in found.names.keys() - listed
        assert f"@new-{os.getpid()}" in found.names.keys() - listed
        assert [line for line in found.ports if f" tcp {LISTENING} 0100007F:" in line]


def test_the_walk_of_a_wide_umask_finds_the_same_modes(tmp_path):
    """The modes do not depend on the umask of whoever starts the instance."""
    script = f'umask 000; exec "$@"; # {tmp_path}'
    ask = "import os, sys; from pathlib import Path; folder = Path(os.environ['FLUXMPI_URI'][8:]).parent; " + (
        "print(oct(folder.stat().st_mode & 0o777), *sorted({oct(p.stat().st_mode & 0o777) for p in folder.iterdir()}))"
    )
    words = ["sh", "-c", script, "sh", *FLUXMPI, "start", "-n", "2", "--", sys.executable, "-c", ask]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=START_S)
    assert done.stdout.split() == ["0o700", "0o600"], done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it becomes another user")
def test_another_user_gets_in_nowhere(walked):
    """Neither through the folder, nor through the starter's abstract socket, which has no permissions."""
    instance, _ = walked
    starter = next(name for _, _, name in sockets().values() if name.startswith("@fluxmpi-start-"))
    script = f"""
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
client = socket.socket(socket.AF_UNIX)
try:
    client.connect({str(instance.folder / "broker.0.sock")!r})
    sys.exit("connected to a broker")
except PermissionError:
    pass
try:
    print(os.listdir({str(instance.folder)!r}))
    sys.exit("listed the folder")
except PermissionError:
    pass
other = socket.socket(socket.AF_UNIX)
other.settimeout(10)
try:
    other.connect({chr(0) + starter[1:]!r})
    other.sendall(b"ended 0" + bytes([10]))
    sys.exit(0 if other.recv(10) == b"" else "the starter answered")
except (ConnectionError, BlockingIOError, TimeoutError):
    pass
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=END_S)
    assert done.returncode == 0, done.stderr
    with instance.connect(0) as h:
        assert h.size == 4, "the instance goes on"


def test_bytes_at_the_sockets_that_every_user_can_reach_do_no_harm(walked):
    """UCX's datagram sockets have abstract names: every user of the host can send to them."""
    instance, _ = walked
    known = sockets()
    names = set()
    for pid in instance.pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(link)
                if target.startswith("socket:") and re.fullmatch(r"@[0-9a-f]{5}", known[int(target[8:-1])][2]):
                    names.add(known[int(target[8:-1])][2])
    assert names
    for name in names:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(f"\0{name[1:]}")
            with contextlib.suppress(BlockingIOError):
                for size in (0, 1, 16, 1000):
                    sock.send(os.urandom(size))
    with instance.connect(3) as h:
        assert h.kvs.put("after", 1).version > 0
        assert h.rpc("ping.ping", [1], target=0)


# ---------------------------------------------------------------------------------------------------- other launchers


OPENMPI = ROOT / ".venv-test-openmpi/bin/python"


@pytest.mark.skipif(not OPENMPI.exists(), reason="the environment with Open MPI is not made: launch/test makes it")
def test_with_open_mpi_only_its_launcher_listens():
    ask = f"import sys; sys.path.insert(0, {str(ROOT / 'tests/cli')!r}); import test_security as t; t.print_ports()"
    words = [str(OPENMPI), "-m", "fluxmpi.cli.main", "start", "-n", "4", "--", sys.executable, "-c", ask]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=START_S)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    listening = [line for line in lines if LISTENING in line.split()]
    assert [line for line in listening if not line.startswith(("prterun ", "mpirun "))] == []


def print_ports() -> None:
    """Print the ports of the instance that this command runs in, one a line: the process's name and the socket."""
    for line in walk(family(os.getppid()), Path(os.environ[URI_VARIABLE].removeprefix("local://")).parent).ports:
        print(psutil.Process(int(line.split()[0])).name(), line)


@pytest.mark.skipif(not OPENMPI.exists(), reason="the environment with Open MPI is not made: launch/test makes it")
def test_killed_brokers_of_open_mpi_leave_no_shared_memory():
    with tempfile.TemporaryDirectory(prefix="fxr-") as folder:  # a short path: it contains Unix sockets
        command = f'echo "${URI_VARIABLE}"; exec sleep 1000'
        process = subprocess.Popen(
            [str(OPENMPI), "-m", "fluxmpi.cli.main", "start", "-n", "3", "--", "sh", "-c", command],
            env=environment(FLUXMPI_RUNDIR=folder, TMPDIR=folder), stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"local://")
        processes = [psutil.Process(pid) for pid in family(process.pid)]
        segments = set().union(*(segments_of(each.pid) for each in processes))
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        process.stdout.close()
        psutil.wait_procs(processes, END_S)
    assert segments, "Open MPI uses shared memory"
    assert [segment for segment in segments if os.path.exists(segment)] == []


# ------------------------------------------------------------------------------------------------ too little /dev/shm


def can_mount() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not can_mount(), reason="needs root: it mounts a small /dev/shm in a mount namespace of its own")
@pytest.mark.parametrize("launcher", ["start -n", "mpirun"])
@pytest.mark.parametrize("size", ["64k", "1m", "4m"])
def test_too_small_a_shared_memory_is_told_at_the_start(launcher, size):
    start = [*FLUXMPI, "start", *(["-n", "4"] if launcher == "start -n" else []), "--", "echo", "ran"]
    words = start if launcher == "start -n" else [*mpirun_words(4), *start]
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    with tempfile.TemporaryDirectory(prefix="fxr-") as run:  # a short path: it contains Unix sockets
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *words],
            env=environment(FLUXMPI_RUNDIR=run), capture_output=True, text=True, timeout=START_S,
        )  # fmt: skip
        assert os.listdir(run) == []
    assert done.returncode != 0
    assert "ran" not in done.stdout.splitlines()
    lines = [line for line in done.stderr.splitlines() if line.startswith("fluxmpi start:")]
    assert len(lines) == 1, done.stderr
    assert re.search(r"/dev/shm has [0-9.]+ MiB free, and MPICH needs 5 MiB there for 4 ranks on one host", lines[0])
    assert "--shm-size=64m" in lines[0]
    assert "Traceback" not in done.stderr
    assert "Bus error" not in done.stdout + done.stderr


@pytest.mark.skipif(not can_mount(), reason="needs root: it mounts a small /dev/shm in a mount namespace of its own")
def test_as_little_shared_memory_as_is_told_is_enough():
    script = 'mount -t tmpfs -o size=5m tmpfs /dev/shm && exec "$@"'
    with tempfile.TemporaryDirectory(prefix="fxr-") as run:
        words = ["unshare", "-m", "sh", "-c", script, "sh", *FLUXMPI, "start", "-n", "4", "--", "echo", "ran"]
        done = subprocess.run(
            words, env=environment(FLUXMPI_RUNDIR=run), capture_output=True, text=True, timeout=START_S
        )
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
