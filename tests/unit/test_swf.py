"""The reader of workload logs, and the log that the package ships."""

from __future__ import annotations

import gzip

import pytest

from fluxmpi.examples import swf

LOG = """\
; Version: 2.2
; Computer: Intel iPSC/860
; Note: the first
; Note: the second
 1    0  -1 1451 128 -1 -1 -1 -1 -1 -1  7 1 -1 -1 -1 -1 -1

 2 1460  30   -1   4 -1 -1 -1 -1 -1 -1  8 1 -1 -1 -1 -1 -1
"""


def test_reads_header_and_jobs() -> None:
    header, jobs = swf.read(LOG.encode())
    assert header == {"Version": "2.2", "Computer": "Intel iPSC/860", "Note": "the first"}
    assert jobs == [swf.Job(1, 0, -1, 1451, 128, 7), swf.Job(2, 1460, 30, -1, 4, 8)]
    assert [(job.start, job.end) for job in jobs] == [(0, 1451), (1490, 1490)]


def test_reads_gzip_and_stops_at_the_limit() -> None:
    assert [job.id for job in swf.read(gzip.compress(LOG.encode()), 1)[1]] == [1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3", "line 1: 3 fields where a job has 18: '1 2 3'"),
        ("x" + " 1" * 17, "line 1: invalid literal"),
    ],
)
def test_a_line_that_is_no_job_is_named(line: str, message: str) -> None:
    with pytest.raises(swf.SwfError, match=message):
        list(swf.parse([line]))


def test_the_shipped_log_is_whole() -> None:
    header, jobs = swf.shipped()
    assert len(jobs) == 18_239
    assert header["Acknowledge"] == "Bill Nitzberg"
    assert jobs[0] == swf.Job(1, 0, -1, 1451, 128, 1)
    assert all(job.processors >= 1 and job.run >= 0 for job in jobs)
    assert [job.submit for job in jobs] == sorted(job.submit for job in jobs)
