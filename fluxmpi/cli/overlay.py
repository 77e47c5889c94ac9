"""``fluxmpi overlay status | info``: the tree of brokers, as flux-overlay(1) shows it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from fluxmpi.cli.common import (
    CONTEXT,
    LEADER,
    Group,
    connect,
    json_option,
    plural,
    rank_option,
    response_timeout_option,
    write_json,
    write_line,
)
from fluxmpi.errors import NoSuchRank
from fluxmpi.overlay.wire import Info, Peer


@click.group(cls=Group, context_settings=CONTEXT)
def overlay() -> None:
    """Show the tree of brokers: who is whose parent, and which brokers are lost."""


@overlay.command(
    examples="fluxmpi overlay status        the tree, and the newest checkpoint\n"
    "fluxmpi overlay status -v -r 1\nfluxmpi overlay status --json"
)
@click.option(
    "-r",
    "--rank",
    type=click.IntRange(min=0),
    metavar="RANK",
    default=LEADER,
    show_default=True,
    help="Show the subtree of this rank.",
)
@click.option("-v", "--verbose", is_flag=True, help="Print the time since the last heartbeat.")
@click.option("--summary", is_flag=True, help="Print only the first line, the state of the whole subtree.")
@click.option("--no-pretty", is_flag=True, help="Print no tree characters.")
@response_timeout_option(10.0)
@json_option
def status(rank: int, verbose: bool, summary: bool, no_pretty: bool, timeout: float, as_json: bool) -> None:
    """Print the tree of brokers: RANK HOST: STATE, where STATE is that of the broker's subtree.

    \b
    full       all its brokers are up
    degraded   a broker below this one is lost
    lost       this broker is lost

    In an instance that saves checkpoints, a last line tells the newest one: its file, when it was saved, its version,
    and how many versions are not in it.
    """
    with connect() as h:
        attributes = h.rpc("lifecycle.lsattr", target=LEADER, timeout=timeout)
        peers = {peer.rank: peer for peer in h.rpc("overlay.status", target=LEADER, timeout=timeout, reply=list[Peer])}
    if rank not in peers:
        raise NoSuchRank(f"rank {rank} does not exist: the instance has ranks 0 to {max(peers)}")
    tree = OverlayTree(peers)
    if as_json:
        brokers = [tree.as_json(each) for each in tree.below(rank)]
        if rank == LEADER:
            brokers[0]["checkpoint"] = checkpoint_json(attributes)
        write_json(brokers)
        return
    for number, line in enumerate(tree.lines(rank, verbose, not no_pretty)):
        if summary and number:
            break
        write_line(line)
    if rank == LEADER and not summary and (attributes["checkpoint"] or attributes["checkpoint-newest"]):
        write_line(checkpoint_line(attributes))


def checkpoint_json(attributes: dict[str, str]) -> dict[str, object] | None:
    """Return what the attributes tell of the newest checkpoint, None if there is none."""
    if not attributes["checkpoint-newest"]:
        return None
    return {
        "path": attributes["checkpoint-newest"],
        "time": float(attributes["checkpoint-time"]),
        "age_s": float(attributes["checkpoint-age"]),
        "version": int(attributes["checkpoint-version"]),
        "behind": int(attributes["checkpoint-behind"]),
    }


def checkpoint_line(attributes: dict[str, str]) -> str:
    """Return the same as a line."""
    from fluxmpi.drivers.resume import age, moment

    behind = int(attributes["checkpoint-behind"])
    since = plural(behind, "version") if behind > 0 else "no version"
    if not attributes["checkpoint-newest"]:
        return f"checkpoint {attributes['checkpoint']}: not saved yet; {since} so far"
    now, then = time.time(), float(attributes["checkpoint-time"])
    saved = f"saved {moment(then, now)} ({age(float(attributes['checkpoint-age']))} ago)"
    return f"checkpoint {attributes['checkpoint-newest']}: {saved}, version {attributes['checkpoint-version']}; {since} since"


class OverlayTree:
    """The tree of brokers, by rank."""

    def __init__(self, peers: dict[int, Peer]) -> None:
        self.peers = peers
        self.children: dict[int, list[int]] = {rank: [] for rank in peers}
        for rank in sorted(peers):
            parent = peers[rank].parent
            if parent in self.children:
                self.children[parent].append(rank)

    def below(self, rank: int) -> Iterator[int]:
        """Yield the ranks of a subtree, parents first."""
        yield rank
        for child in self.children[rank]:
            yield from self.below(child)

    def state(self, rank: int) -> str:
        if self.peers[rank].state != "up":
            return "lost"
        ranks = self.below(rank)
        return "full" if all(self.peers[each].state == "up" for each in ranks) else "degraded"

    def as_json(self, rank: int) -> dict[str, object]:
        peer = self.peers[rank]
        return {
            "rank": rank,
            "host": peer.host,
            "parent": peer.parent,
            "state": peer.state,
            "subtree": self.state(rank),
            "idle_s": peer.idle_s,
        }

    def lines(self, rank: int, verbose: bool, pretty: bool, indent: str = "", edge: str = "") -> Iterator[str]:
        peer = self.peers[rank]
        idle = f", last heartbeat {peer.idle_s:.1f} s ago" if verbose and rank != LEADER else ""
        yield f"{edge}{rank} {peer.host}: {self.state(rank)}{idle}"
        children = self.children[rank]
        for child in children:
            last = child == children[-1]
            mark = ("└─ " if last else "├─ ") if pretty else ""
            pad = ("   " if last else "│  ") if pretty else ""
            yield from self.lines(child, verbose, pretty, indent + pad, indent + mark)


@overlay.command(examples="fluxmpi overlay info\nfluxmpi overlay info -r 3 --json")
@rank_option
@json_option
def info(rank: int | None, as_json: bool) -> None:
    """Print a broker's position in the tree: rank, host, parent and children."""
    with connect() as h:
        found = h.rpc("overlay.info", target=h.rank if rank is None else rank, reply=Info)
    fields = {name: getattr(found, name) for name in found.__struct_fields__}
    if as_json:
        write_json(fields)
        return
    for name, value in fields.items():
        write_line(f"{name} {' '.join(map(str, value)) if isinstance(value, list) else value}".rstrip())
