"""An instance on a real Slurm cluster: four hosts made of network, process and host-name namespaces (slurm/testbed.sh).

After every test no process of fluxmpi and no folder of an instance may be left on any host.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTBED = ROOT / "slurm" / "testbed.sh"
SBATCH = ROOT / "slurm" / "fluxmpi.sbatch"
NODES = [f"node{i}" for i in range(1, 5)]
BIN = Path(sys.executable).parent
FLUXMPI = str(BIN / "fluxmpi")
OPENMPI_BIN = ROOT / ".venv-test-openmpi" / "bin"

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

# Runs on a host: prints the pids and command lines that contain a word, except its own.
FIND_PROCESSES = """
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    except OSError:
        continue
    if sys.argv[1] in " ".join(words) and "FIND" not in words:
        print(pid, *words)
"""


def why_not() -> str | None:
    """Return why a cluster cannot be started here, or None."""
    if os.geteuid() != 0:
        return "Slurm tests need root: a host of the test cluster is a set of namespaces"
    installed = subprocess.run([ROOT / "slurm" / "install-debian.sh", "--check"], capture_output=True, text=True)
    if installed.returncode:
        return installed.stderr.strip()
    made = subprocess.run(["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "true"])
    return "Slurm tests need namespaces, and unshare cannot create them here" if made.returncode else None


@dataclass
class Cluster:
    """The test cluster. ``folder`` is the testbed's state, ``work`` is for files of the tests."""

    folder: Path
    work: Path

    @property
    def environment(self) -> dict[str, str]:
        path = f"{BIN}:{os.environ['PATH']}"
        # MPICH over OFI reports a lost rank as an error; over UCX it crashes. Over UCX one of about seventy starts on
        # four hosts that share a kernel failed, since UCX treats them as one host.
        more = {"TMPDIR": str(self.work / "tmp"), "MPIR_CVAR_CH4_NETMOD": "ofi"}
        return {**os.environ, "FXC_DIR": str(self.folder), "PATH": path, **more}

    def testbed(self, *args: str) -> None:
        subprocess.run([TESTBED, *args], env=self.environment, check=True, timeout=120, stdout=subprocess.DEVNULL)

    def start(self, host: str, *command: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [TESTBED, "exec", host, *command],
            env={**self.environment, **more},
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, host: str, *command: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host and wait for its end. After ``timeout`` it is killed, and the test fails."""
        process = self.start(host, *command, **more)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{command} on {host} has not ended in {timeout} s\n{out}\n{err}") from None
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def processes(self, host: str, word: str = "fluxmpi") -> dict[int, str]:
        """Return the processes of a host with ``word`` in their command line: pid on that host → command line."""
        lines = self.run(host, sys.executable, "-c", FIND_PROCESSES, word, "FIND").stdout.splitlines()
        return {int(pid): words for pid, words in (line.split(" ", 1) for line in lines)}

    def srun(self, *command: str, mpi: str = "pmi2", options: tuple[str, ...] = (), **more: str) -> tuple[str, ...]:
        return ("srun", "-N4", "--ntasks-per-node=1", f"--mpi={mpi}", *options, *command)


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll a condition, with a time limit."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def running_cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    # Short paths: they contain Unix sockets.
    folder = Path(tempfile.mkdtemp(prefix="fxs", dir="/tmp"))
    work = Path(tempfile.mkdtemp(prefix="fxw", dir="/tmp"))
    (work / "tmp").mkdir()
    cluster = Cluster(folder, work)
    try:
        cluster.testbed("up", "4")
        yield cluster
    finally:
        cluster.testbed("down")
        shutil.rmtree(work)


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    for node in NODES:
        until(lambda node=node: not running_cluster.processes(node), 20, f"no process of fluxmpi on {node}")
    assert list((running_cluster.work / "tmp").glob("fluxmpi-*")) == [], "folders of ended instances are left"


def ended(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    """Return the standard output. Fail unless the exit status is ``status``."""
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_one_broker_on_each_host(cluster: Cluster) -> None:
    """Commit on one host, read on another, save, end, and resume on two hosts."""
    script = """
        fluxmpi exec -l -r 0-3 hostname
        fluxmpi exec -r 3 fluxmpi kvs put answer=42
        fluxmpi exec -r 1 fluxmpi kvs get answer
        fluxmpi kvs getroot -b
    """
    file = str(cluster.work / "one.h5")
    start = (FLUXMPI, "start", "--checkpoint", file)
    lines = ended(cluster.run("head", *cluster.srun(*start, "--", "sh", "-ec", script))).split()
    root = lines.pop()
    assert lines.pop() == "42"
    assert sorted(lines[1::2]) == NODES
    assert len(set(lines[0::2])) == 4

    resumed = ("srun", "-N2", "--ntasks-per-node=1", "--mpi=pmi2", *start, "--resume", "--")
    command = "fluxmpi exec -r 1 fluxmpi kvs get answer; fluxmpi kvs getroot -b"
    assert ended(cluster.run("head", *resumed, "sh", "-ec", command)).split() == ["42", root]


def test_the_exit_status_is_that_of_the_command(cluster: Cluster) -> None:
    ended(cluster.run("head", *cluster.srun(FLUXMPI, "start", "--", "sh", "-c", "exit 7")), 7)


def test_srun_without_mpi_is_refused(cluster: Cluster) -> None:
    """Otherwise four instances of one broker each would start, and report success."""
    done = cluster.run("head", *cluster.srun(FLUXMPI, "start", "--", "touch", "ran", mpi="none"))
    assert done.returncode != 0
    assert "--mpi=pmi2" in done.stderr
    assert not (cluster.work / "ran").exists()


def submit(cluster: Cluster, *command: str, options: tuple[str, ...] = ()) -> Path:
    """Submit the batch script. Return the file with its output."""
    output = cluster.work / "job.out"
    output.unlink(missing_ok=True)
    ended(cluster.run("head", "sbatch", "--parsable", f"--output={output}", *options, str(SBATCH), *command))
    return output


def queue(cluster: Cluster) -> str:
    return ended(cluster.run("head", "squeue", "--noheader", "--format=%i %T"))


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_the_batch_script_resumes_from_the_last_job(cluster: Cluster) -> None:
    file = cluster.work / "fluxmpi.h5"
    script = """
        before=$(fluxmpi kvs get runs 2>/dev/null || echo 0)
        fluxmpi exec -r 2 fluxmpi kvs put runs=$((before + 1))
        echo "brokers: $(fluxmpi getattr size), runs: $(fluxmpi kvs get runs)"
    """
    for runs in (1, 2):
        output = submit(cluster, "sh", "-ec", script)
        until(lambda: not queue(cluster), 30, f"the end of the job: {text(output)}")
        assert f"brokers: 4, runs: {runs}" in text(output)
        assert file.exists()
    file.unlink()


def test_the_batch_script_saves_before_its_time_limit(cluster: Cluster) -> None:
    """``#SBATCH --signal=B:TERM@60`` sends SIGTERM to the script before the limit."""
    file = cluster.work / "fluxmpi.h5"
    output = submit(cluster, "sh", "-c", "fluxmpi kvs put work=half; echo started; sleep 600")
    until(lambda: "started" in text(output), 30, f"the start of the job: {text(output)}")
    (job, _) = queue(cluster).split()
    ended(cluster.run("head", "scancel", "--signal=TERM", "--batch", job))
    until(lambda: not queue(cluster), 30, f"the end of the job: {text(output)}")
    command = ("start", "--checkpoint", str(file), "--resume", "--", FLUXMPI, "kvs", "get", "work")
    assert ended(cluster.run("head", FLUXMPI, *command)) == "half\n"
    file.unlink()


def test_a_killed_broker_ends_the_instance_and_its_host_is_named(cluster: Cluster) -> None:
    """After kill -9 on one host the others end with a status that is not 0, and name the host."""
    options = ("-K0", "--no-kill")
    command = cluster.srun(FLUXMPI, "start", "--", "sh", "-c", "touch up; sleep 600", options=options)
    process = cluster.start("head", *command)
    try:
        until((cluster.work / "up").exists, 30, "the start of the instance")
        brokers = [pid for pid, words in cluster.processes("node3", "fluxmpi start").items() if "srun" not in words]
        assert brokers
        cluster.run("node3", "kill", f"-{int(signal.SIGKILL)}", *map(str, brokers))
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        (cluster.work / "up").unlink(missing_ok=True)
    assert process.returncode != 0
    assert "node3" in err, out + err
    # The next broker on its host removes what the killed one left.
    ended(cluster.run("head", *cluster.srun(FLUXMPI, "start", "--", "true")))


LISTENERS = """
import os
from pathlib import Path
from test_security import sockets
lines = ""
for pid in (p for p in Path("/proc").iterdir() if p.name.isdigit()):
    if b"fluxmpi" in (pid / "cmdline").read_bytes():
        for fd in (pid / "fd").iterdir():
            try:
                target = fd.readlink().as_posix()
            except FileNotFoundError:
                continue
            found = sockets().get(int(target[8:-1]), ("", "", "")) if target.startswith("socket:") else ("", "", "")
            if found[0].startswith("udp") or found[1] == "0A":
                lines += found[0] + " " + found[2].split(":")[0] + chr(10)
os.write(1, lines.encode())  # at once: two ranks print
"""


@pytest.mark.parametrize("netmod", ["ucx", "ofi"])
def test_with_an_interface_all_ports_of_a_broker_are_bound_to_it(cluster: Cluster, netmod: str) -> None:
    """Each host has a second network, on which the others cannot be reached."""
    hosts = NODES[:2]
    for number, host in enumerate(hosts):
        second = f"ip link add eth1 type veth peer name other && ip addr add 10.99.0.{number + 1}/24 dev eth1 && " + (
            "ip link set other up && ip link set eth1 up"
        )
        ended(cluster.run(host, "sh", "-c", second))
    try:
        script = f"fluxmpi exec -r 0,1 {sys.executable} -c '{LISTENERS}'"
        words = ("srun", "-N2", "--ntasks-per-node=1", f"--nodelist={','.join(hosts)}", "--mpi=pmi2")
        start = (FLUXMPI, "start", "--mpi-interface", "eth0", "--", "sh", "-ec", script)
        more = {"MPIR_CVAR_CH4_NETMOD": netmod, "PYTHONPATH": str(Path(__file__).parent)}
        lines = ended(cluster.run("head", *words, *start, **more)).splitlines()
    finally:
        for host in hosts:
            ended(cluster.run(host, "ip", "link", "del", "eth1"))
    assert {line.split()[0] for line in lines} == {"tcp", "udp"}
    addresses = {socket.inet_ntoa(bytes.fromhex(line.split()[1])[::-1]) for line in lines}
    expected = {cluster.run(host, "hostname", "-I").stdout.strip() for host in hosts}
    assert addresses == expected


@pytest.mark.parametrize("rank", [0, 2])
def test_a_broker_that_fails_ends_the_instance_and_the_store_is_saved(cluster: Cluster, rank: int) -> None:
    """Slurm kills a step in which a task fails (-K is its default here): the brokers end in order before."""
    file = cluster.work / "failed.h5"
    fail = f"import fluxmpi; fluxmpi.connect().rpc('lifecycle.fail', ['on purpose'], target={rank})"
    script = f'fluxmpi kvs put a=1; {sys.executable} -c "{fail}"; sleep 600'
    start = (FLUXMPI, "start", "--heartbeat", "20", "--checkpoint", str(file), "--", "sh", "-c", script)
    done = cluster.run("head", *cluster.srun(*start, options=("-K1",)), timeout=60, FLUXMPI_DEBUG="fail")
    assert done.returncode != 0
    line = f"fluxmpi: broker {rank} (node{rank + 1}) failed: RuntimeError: on purpose"
    assert done.stderr.count(line) == 1, done.stderr
    assert f"newest checkpoint {file}, saved " in done.stderr
    assert "version 1; no version since is lost" in done.stderr
    resume = ("start", "--checkpoint", str(file), "--resume", "--", FLUXMPI, "kvs", "get", "a")
    assert ended(cluster.run("head", FLUXMPI, *resume)) == "1\n"
    file.unlink()


def openmpi(cluster: Cluster, mpi: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run ``fluxmpi start`` on four hosts with Open MPI."""
    if not (OPENMPI_BIN / "fluxmpi").exists():
        pytest.skip(".venv-test-openmpi does not exist: launch/test creates it")
    environment = {"OMPI_MCA_btl": "^ofi", "PATH": f"{OPENMPI_BIN}:{cluster.environment['PATH']}"}
    return cluster.run("head", *cluster.srun(str(OPENMPI_BIN / "fluxmpi"), "start", *command, mpi=mpi), **environment)


def test_openmpi_under_pmix(cluster: Cluster) -> None:
    script = "fluxmpi exec -r 3 fluxmpi kvs put a=1; fluxmpi exec -r 1 fluxmpi kvs get a; fluxmpi getattr size"
    assert ended(openmpi(cluster, "pmix", "--", "sh", "-ec", script)).split() == ["1", "4"]


def test_openmpi_under_the_wrong_mpi_is_refused(cluster: Cluster) -> None:
    done = openmpi(cluster, "pmi2", "--", "touch", "ran")
    assert done.returncode != 0
    assert "--mpi=pmix" in done.stderr
    assert not (cluster.work / "ran").exists()
