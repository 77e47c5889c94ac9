"""The end of an instance: every cause, the order on all ranks, and the messages."""

from __future__ import annotations

import pytest
from machines import (
    NOW,
    Cluster,
    answer_to,
    ask,
    body,
    commit,
    control_from,
    error,
    failed_with,
    put,
    to_broker,
    topics,
)

from fluxmpi import errors
from fluxmpi.broker.config import Config
from fluxmpi.broker.lifecycle import END_GRACE_PER_LEVEL_S, END_GRACE_S, Lifecycle, LifecycleState
from fluxmpi.broker.wire import GetAttr, Shutdown
from fluxmpi.jobs.wire import Signal, Spawn, Spawned
from fluxmpi.kvs.wire import Save, Saved, SavedFile
from fluxmpi.machine import NEVER
from fluxmpi.message import DISK, LAUNCHER, LOOP, MORE, Message
from fluxmpi.overlay.router import Router
from fluxmpi.overlay.wire import LostRank

SIGINT, SIGKILL, SIGTERM = 2, 9, 15
HANG_UP = ("loop.hang-up", LOOP)
END = [("lifecycle.end", 1), ("lifecycle.end", 2), HANG_UP, HANG_UP]
"""After the end, nothing more goes to a child."""


def lifecycle(rank=0, size=3, **config):
    machine = Lifecycle(Config(rank=rank, size=size, hosts=("a", "b", "c", "d")[:size], **config), Router(rank, size))
    machine.out = machine.start(NOW)
    return machine


def shut_down(machine, status=0, reason="", now=NOW):
    return machine.step(ask("lifecycle.shutdown", Shutdown(status, reason)), now)


def step(machine, topic, record=None, hop=-1, now=NOW):
    return machine.step(control_from(topic, record, hop), now)


def bye(machine, *children):
    return [msg for child in children for msg in step(machine, "lifecycle.bye", None, child)]


def exit_of(out) -> Shutdown:
    (msg,) = [msg for msg in out if msg.topic == "loop.exit"]
    return body(msg, Shutdown)


# -------------------------------------------------------------------------------------------------------------- rank 0


def test_the_program_runs_on_rank_0_only():
    (spawn,) = lifecycle(command=("sh", "-c", "true")).out
    assert (spawn.topic, spawn.hop) == ("launcher.spawn", LAUNCHER)
    assert body(spawn, Spawn) == Spawn(0, ["sh", "-c", "true"], None, {}, b"", inherit=True)
    assert lifecycle(rank=1, command=("true",)).out == []
    assert lifecycle().out == []


def test_a_shutdown_goes_down_the_tree_and_waits_for_all():
    machine = lifecycle()
    answer, *out = shut_down(machine, 3, "enough")
    assert body(answer) is None
    assert topics(out) == END
    assert [body(msg, Shutdown) for msg in out[:2]] == [Shutdown(3, "enough")] * 2
    assert machine.state == LifecycleState.END
    assert machine.deadline == NOW + END_GRACE_S + END_GRACE_PER_LEVEL_S * machine.router.height, (
        "longer than its children"
    )
    assert bye(machine, 2) == []
    assert exit_of(bye(machine, 1)) == Shutdown(3, "enough")
    assert (machine.state, machine.deadline) == (LifecycleState.GONE, NEVER)


def test_a_second_shutdown_is_refused():
    machine = lifecycle()
    shut_down(machine, 3)
    (answer,) = shut_down(machine, 4)
    assert isinstance(error(answer), errors.InstanceEnding)
    assert exit_of(bye(machine, 1, 2)).status == 3, "the first cause is kept"


@pytest.mark.parametrize("status", [-1, 256, 1 << 62])
def test_an_invalid_exit_status_is_refused(status):
    machine = lifecycle()
    (answer,) = shut_down(machine, status)
    assert isinstance(error(answer), errors.InvalidRequest)
    assert machine.state == LifecycleState.RUN


@pytest.mark.parametrize("status", [0, 1, 127, 143])
def test_the_instance_ends_with_the_program_and_its_status(status):
    machine = lifecycle(command=("true",))
    out = step(machine, "lifecycle.program", Spawned(0, status=status))
    assert topics(out) == END
    assert exit_of(bye(machine, 1, 2)).status == status


def test_a_program_that_cannot_be_started_ends_the_instance_with_the_reason():
    machine = lifecycle(command=("nope",))
    step(machine, "lifecycle.program", Spawned(0, status=127, error="nope: cannot be started"))
    assert exit_of(bye(machine, 1, 2)) == Shutdown(127, "nope: cannot be started")


def test_a_program_gets_sigterm_then_sigkill():
    machine = lifecycle(command=("sleep", "9"))
    _, out = shut_down(machine, 5)
    assert (out.topic, body(out, Signal)) == ("launcher.signal", Signal(0, SIGTERM))
    assert (machine.state, machine.deadline) == (LifecycleState.STOP, NOW + END_GRACE_S)
    (out,) = machine.tick(NOW + END_GRACE_S)
    assert (out.hop, body(out, Signal)) == (LAUNCHER, Signal(0, SIGKILL))
    out = step(machine, "lifecycle.program", Spawned(0, status=137))
    assert topics(out) == END
    assert exit_of(bye(machine, 1, 2)).status == 5, "the status of the shutdown, not of the killed program"


def test_signals_end_the_instance():
    machine = lifecycle()
    assert topics(step(machine, "lifecycle.signal", SIGTERM)) == END
    assert exit_of(bye(machine, 1, 2)) == Shutdown(143, "signal 15")
    assert step(lifecycle(size=1), "lifecycle.signal", SIGINT)[-1].hop == LOOP


def test_an_interrupt_is_passed_to_the_program():
    machine = lifecycle(command=("sh",))
    (out,) = step(machine, "lifecycle.signal", SIGINT)
    assert body(out, Signal) == Signal(0, SIGINT)
    assert machine.state == LifecycleState.RUN
    (out,) = step(machine, "lifecycle.signal", SIGTERM)
    assert body(out, Signal) == Signal(0, SIGTERM)
    assert machine.state == LifecycleState.STOP
    assert step(machine, "lifecycle.signal", SIGTERM) == [], "once is enough"


def test_the_store_is_saved_when_there_is_a_file():
    machine = lifecycle(checkpoint="/x.h5", command=("true",))
    (save,) = step(machine, "lifecycle.program", Spawned(0, status=7))
    assert (save.topic, save.target, body(save, Save)) == ("checkpoint.save", 0, Save(None))
    assert machine.state == LifecycleState.SAVE
    progress = answer_to(save, (1, 2))
    progress.status = MORE
    assert machine.step(progress, NOW) == []
    assert topics(machine.step(answer_to(save, None), NOW)) == END
    assert exit_of(bye(machine, 1, 2)) == Shutdown(7, "")


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (7, 7)])
def test_a_save_that_fails_is_not_hidden_by_a_clean_end(status, expected):
    machine = lifecycle(checkpoint="/x.h5")
    _, save = shut_down(machine, status)
    machine.step(failed_with(save, errors.StorageError("disk full")), NOW)
    shutdown = exit_of(bye(machine, 1, 2))
    assert shutdown.status == expected
    assert "the checkpoint was not written: disk full" in shutdown.reason


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (7, 7)])
def test_a_save_that_fails_is_tried_elsewhere_and_the_file_is_named(status, expected):
    machine = lifecycle(checkpoint="/x.h5", checkpoint_fallbacks=("/y.h5", "/z.h5"))
    _, save = shut_down(machine, status)
    (second,) = machine.step(failed_with(save, errors.StorageError("disk full.")), NOW)
    assert body(second, Save) == Save("/y.h5", verify=True)
    (third,) = machine.step(failed_with(second, errors.StorageError("no space.")), NOW)
    assert body(third, Save) == Save("/z.h5", verify=True)
    machine.step(answer_to(third, Saved("/z.h5", 1, 2, [])), NOW)
    shutdown = exit_of(bye(machine, 1, 2))
    assert shutdown.status == expected
    assert shutdown.reason == (
        "the checkpoint was not written: disk full. no space. The store was saved to /z.h5 instead: "
        "resume with --checkpoint /z.h5 --resume"
    )


def test_a_save_that_fails_everywhere_gives_every_reason():
    machine = lifecycle(checkpoint="/x.h5", checkpoint_fallbacks=("/y.h5",))
    _, save = shut_down(machine)
    (second,) = machine.step(failed_with(save, errors.StorageError("disk full.")), NOW)
    machine.step(failed_with(second, errors.StorageError("no space.")), NOW)
    assert exit_of(bye(machine, 1, 2)) == Shutdown(1, "the checkpoint was not written: disk full. no space.")


@pytest.mark.parametrize(("status", "expected"), [(0, 1), (7, 7)])
def test_a_child_without_bye_is_lost_and_named(status, expected):
    machine = lifecycle()
    shut_down(machine, status)
    bye(machine, 1)
    shutdown = exit_of(machine.tick(machine.deadline))
    assert shutdown.status == expected
    assert "broker 2 (" in shutdown.reason
    assert 2 in machine.router.lost, "so MPI is not finalized: that would wait for it"
    assert 1 not in machine.router.lost
    assert bye(machine, 2) == [], "too late"


def test_a_lost_rank_ends_the_instance_and_is_named():
    machine = lifecycle()
    machine.router.mark_lost(2, "silent")
    out = step(machine, "lifecycle.lost", LostRank(2, "silent"))
    assert topics(out) == [("lifecycle.end", 1), HANG_UP], "nothing is sent to it"
    assert exit_of(bye(machine, 1)) == Shutdown(1, "broker 2 (c) is gone: silent", lost=True)


def test_a_child_that_is_lost_while_its_bye_is_awaited():
    machine = lifecycle()
    shut_down(machine, 0)
    bye(machine, 1)
    assert exit_of(step(machine, "lifecycle.lost", LostRank(2, "silent"))).status == 0


def test_a_loss_while_the_store_is_saved_does_not_stop_the_saving():
    machine = lifecycle(checkpoint="/x.h5")
    _, save = shut_down(machine, 0)
    machine.router.mark_lost(2, "silent")
    assert step(machine, "lifecycle.lost", LostRank(2, "silent")) == []
    assert topics(machine.step(answer_to(save, None), NOW)) == [("lifecycle.end", 1), HANG_UP]


# --------------------------------------------------------------------------------------------------------- other ranks


def test_another_rank_ends_after_its_subtree_and_says_bye():
    machine = lifecycle(rank=1, size=4)
    out = step(machine, "lifecycle.end", Shutdown(3, "enough"), 0)
    assert topics(out) == [("lifecycle.end", 3), HANG_UP]
    out = bye(machine, 3)
    assert topics(out) == [("lifecycle.bye", 0), ("loop.exit", LOOP)]
    assert exit_of(out) == Shutdown(3, "enough")
    leaf = lifecycle(rank=2)
    assert topics(step(leaf, "lifecycle.end", Shutdown(3), 0)) == [("lifecycle.bye", 0), ("loop.exit", LOOP)]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_broker_that_loses_its_parent_or_rank_0_ends_its_subtree(lost):
    machine = lifecycle(rank=3, size=4)
    machine.router.mark_lost(lost, "silent")
    out = step(machine, "lifecycle.lost", LostRank(lost, "silent"))
    assert exit_of(out) == Shutdown(1, f"broker {lost} ({'ab'[lost]}) is gone: silent", lost=True)
    assert (("lifecycle.bye", 1) in topics(out)) == (lost == 0), "a bye to a parent that is not lost"


def test_rank_0_decides_about_other_losses():
    machine = lifecycle(rank=3, size=4)
    assert step(machine, "lifecycle.lost", LostRank(2, "silent")) == []
    assert machine.state == LifecycleState.RUN


def test_a_signal_elsewhere_goes_to_rank_0():
    machine = lifecycle(rank=2)
    (asked,) = step(machine, "lifecycle.signal", SIGTERM)
    assert (asked.topic, asked.target, body(asked, Shutdown)) == ("lifecycle.shutdown", 0, Shutdown(143, "signal 15"))
    assert machine.step(answer_to(asked, None), NOW) == []
    assert isinstance(error(shut_down(lifecycle(rank=2))[0]), errors.InvalidRequest)


# ----------------------------------------------------------------------------------------------------------- attributes


def test_attributes():
    machine = lifecycle(rank=1, attributes={"colour": "red"}, instance="i7")
    wanted = {"rank": "1", "size": "3", "hostname": "b", "hostlist": "a,b,c", "instance": "i7", "colour": "red"}
    assert wanted.items() <= body(machine.step(ask("lifecycle.lsattr"), NOW)[0]).items()
    for name, value in wanted.items():
        assert body(machine.step(ask("lifecycle.getattr", GetAttr(name)), NOW)[0]) == value
    for topic, record in (
        ("lifecycle.getattr", GetAttr("none")),
        ("lifecycle.getattr", None),
        ("lifecycle.none", None),
    ):
        assert isinstance(error(machine.step(ask(topic, record), NOW)[0]), errors.InvalidRequest)


def attribute(broker, name):
    (answer,) = broker.step(to_broker("lifecycle.getattr", GetAttr(name)), NOW + 90)
    return body(answer)


def test_every_broker_knows_the_newest_checkpoint():
    cluster = Cluster(7, checkpoint="/x.h5", checkpoint_every_s=300.0)
    assert attribute(cluster.brokers[6], "checkpoint-newest") == ""
    assert attribute(cluster.brokers[6], "checkpoint-every") == "300"
    for serial in (1, 2):
        cluster.call(3, to_broker("kvs.commit", commit(serial, put("a", serial))))
    cluster.call(0, to_broker("checkpoint.save", Save()))
    cluster.step(0, control_from("disk.saved", ("/x.h5", 1, 100), DISK))
    cluster.run()
    cluster.call(3, to_broker("kvs.commit", commit(3, put("a", 3))))
    for broker in cluster.brokers:
        found = {
            name: attribute(broker, f"checkpoint-{name}") for name in ("newest", "time", "age", "version", "behind")
        }
        assert found == {"newest": "/x.h5", "time": f"{NOW:.6f}", "age": "90.000", "version": "2", "behind": "1"}
        statistics = broker.statistics()["lifecycle"]
        assert (statistics["checkpoint_time"], statistics["checkpoint_version"]) == (NOW, 2)


def test_the_file_that_an_instance_resumes_is_known_at_the_start():
    file = SavedFile("/x.h5", NOW - 10, 41, 2)
    machine = Lifecycle(Config(size=3, hosts=("a", "b", "c")), Router(0, 3), lambda: 43, file)
    out = machine.start(NOW)
    assert topics(out) == [("lifecycle.checkpoint", 1), ("lifecycle.checkpoint", 2)]
    assert body(out[0], SavedFile) == file
    assert body(machine.step(ask("lifecycle.getattr", GetAttr("checkpoint-behind")), NOW)[0]) == "2"


def test_a_checkpoint_is_not_published_to_a_child_that_was_ordered_to_end():
    machine = lifecycle()
    shut_down(machine)
    assert step(machine, "lifecycle.checkpoint", SavedFile("/x.h5", NOW, 1, 1)) == []


# ----------------------------------------------------------------------------------------------------- whole instances


def ends(sent) -> dict[int, Shutdown]:
    """Rank to the Shutdown that its loop exits with, in the order of the exits."""
    return {rank: body(msg, Shutdown) for rank, msg in sent if msg.topic == "loop.exit"}


@pytest.mark.parametrize("shape", ["kary:2", "kary:1", "binomial", "flat"])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_all_ranks_end_each_after_its_subtree(shape, size):
    cluster = Cluster(size, shape)
    cluster.step(size - 1, Message(1, "lifecycle.shutdown", -16, 0, 1, body=control_from("x", Shutdown(4, "why")).body))
    ended = ends(cluster.run())
    assert set(ended) == set(range(size))
    assert {(shutdown.status, shutdown.reason) for shutdown in ended.values()} == {(4, "why")}
    order = list(ended)
    for rank in range(1, size):
        assert order.index(rank) < order.index(cluster.brokers[rank].router.parent)
    assert all(broker.gone for broker in cluster.brokers)


@pytest.mark.parametrize("killed", range(7))
def test_all_others_end_in_time_when_one_is_killed(killed):
    cluster = Cluster(7, heartbeat_s=1.0)
    cluster.run(10.0)
    cluster.kill(killed)
    ended = ends(cluster.run(5 + 2 * 5 + 4 * END_GRACE_S))
    assert set(ended) == set(range(7)) - {killed}
    for rank, shutdown in ended.items():
        assert shutdown.status == 1, f"rank {rank}"
        assert "is gone" in shutdown.reason
    if killed:
        assert f"broker {killed} (host{killed}) is gone: no heartbeat" in ended[0].reason


def test_a_whole_end_with_program_and_checkpoint():
    cluster = Cluster(3, command=("true",), checkpoint="/x.h5")
    cluster.step(0, control_from("launcher.spawned", Spawned(0, status=9), LAUNCHER))
    sent = cluster.run()
    assert [msg.topic for _, msg in sent if msg.hop == DISK] == ["disk.refs", "disk.commit"]
    assert not ends(sent), "no broker ends before the file is written"
    cluster.step(0, control_from("disk.saved", ("/x.h5", 1, 100), DISK))
    assert {shutdown.status for shutdown in ends(cluster.run()).values()} == {9}


def test_the_first_reason_is_kept_when_a_child_does_not_end():
    machine = lifecycle()
    machine.router.mark_lost(2, "silent")
    step(machine, "lifecycle.lost", LostRank(2, "silent"))
    shutdown = exit_of(machine.tick(machine.deadline))
    assert shutdown.status == 1
    assert "broker 2 (" in shutdown.reason
    assert "; broker 1 (" in shutdown.reason, "the first cause, then the later ones"
