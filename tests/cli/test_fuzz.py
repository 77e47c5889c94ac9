"""A short fuzz of a real instance, always with the same seed: see ``benchmarks/fuzz.py``."""

from __future__ import annotations

import re
import subprocess
import sys

from instance import ROOT, environment

FUZZ = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py")]


def fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FUZZ, *words], capture_output=True, text=True, timeout=300, env=environment(), check=False)


def test_requests_of_all_topics_and_broken_frames_end_no_broker():
    done = fuzz("--bodies", "4000", "--frames", "300", "--seed", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 8: 4,000 bodies, 300 frames in ")
    assert len(re.findall(r"^broker \d: RSS", done.stdout, re.MULTILINE)) == 4
    assert done.stdout.endswith("no broker ended, every commit was read at every rank\n")
    assert done.stderr == ""


def test_the_topics_can_be_chosen():
    done = fuzz("--topic", "no-such-service")
    assert done.returncode != 0
    assert done.stderr == "fuzz: no topic and no service is called 'no-such-service'\n"
    assert "--bodies" in fuzz("--help").stdout
