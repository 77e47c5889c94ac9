"""Judge a finished run: the leader's log first, then what the clients were answered, by all checkers.

Only this module joins the two: the leader's log gives every version exactly, so the checkers need not guess any.
"""

from __future__ import annotations

from collections.abc import Iterator

from fluxmpi.kvs.objects import Dir, Link
from fluxmpi.kvs.wire import Put
from fluxmpi.message import OK
from fluxmpi.simulator.checkers import blobs, events
from fluxmpi.simulator.checkers.judge import judge_answers
from fluxmpi.simulator.cluster import Cluster
from fluxmpi.simulator.inspection.leader_log import LeaderLog
from fluxmpi.simulator.inspection.leader_replay import LeaderReplay
from fluxmpi.simulator.plan import ABANDONED
from fluxmpi.simulator.workload import operations
from fluxmpi.simulator.workload.transcript import Transcript


def judge_run(transcript: Transcript, log: LeaderLog, cluster: Cluster) -> list[str]:
    """Return all violations that the transcript and the leader's log show."""
    replay = LeaderReplay(log, transcript.asked(), cluster.store)
    states = replay.states
    history = operations.operations(transcript, replay.blobs.plain_or_missing)
    gaps = [name for name, requests in log.requests.items() if any(one.reset for one in requests)]
    keys = [] if _keys_depend(transcript) else [name for name in states.namespaces if name not in gaps]
    return [
        *log.problems,
        *states.problems,
        *outcomes(transcript, replay),
        *fresh_roots(transcript, log),
        *judge_answers(
            history,
            states,
            gaps=gaps,
            keys=[name for name in keys if not states.versions(name)[0].tree],
            queue_max=cluster.shape.kvs.watch.queue_max,
            abandoned=ABANDONED,
        ),
        *events.violations(
            operations.published(transcript), operations.event_streams(transcript), states, log.published
        ),
        *blobs.violations(operations.blob_answers(transcript), transcript.blobs, cluster.digest),
    ]


def _keys_depend(transcript: Transcript) -> bool:
    """Return whether a key may change by a write to another one, through links and copied directories."""
    return any(
        isinstance(op, Put) and isinstance(op.object, Link | Dir) for ops in transcript.ops().values() for op in ops
    )


def outcomes(transcript: Transcript, replay: LeaderReplay) -> Iterator[str]:
    """Compare the answers to commits with what the leader applied."""
    for call in transcript.of("kvs.commit", "kvs.fence", "kvs.add"):
        assert call.id is not None
        applied = replay.applied.get(call.id)
        for answer in call.answers[:1]:
            if answer.status == OK and applied != (answer.body.namespace, answer.body.version):
                yield f"once: {call} was answered with version {answer.body.version}, but was applied as {applied}"
        for index, answer in enumerate(call.answers):
            late = index and call.answers[0].status == OK and "was answered already" in str(answer.body)
            if answer.status > OK and answer.status not in operations.UNSURE and not late and applied is not None:
                yield f"once: {call} was answered with error {answer.status} ({answer.body}), but applied as {applied}"


def fresh_roots(transcript: Transcript, log: LeaderLog) -> Iterator[str]:
    """Yield the fresh roots that are older than the version that rank 0 had when the client asked."""
    for call in transcript.of("kvs.getroot"):
        for answer in call.answers:
            if answer.status == OK and call.body.fresh:
                least = log.version_at(call.body.namespace, call.began - 1e-9)
                if answer.body.version < least:
                    yield f"reads: {call} was answered with version {answer.body.version}, less than {least}"
