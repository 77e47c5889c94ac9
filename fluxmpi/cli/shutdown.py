"""``fluxmpi shutdown``: end the instance."""

from __future__ import annotations

import click

from fluxmpi.broker.wire import Shutdown
from fluxmpi.cli.common import LEADER, Command, connect
from fluxmpi.errors import ConnectionLost, InstanceEnding


@click.command(
    cls=Command,
    examples="fluxmpi shutdown\nfluxmpi shutdown --background\nfluxmpi shutdown --status 3 --reason 'no more work'",
)
@click.option("--status", type=click.IntRange(0, 255), default=0, show_default=True, help="The instance's exit status.")
@click.option("--reason", default="", metavar="TEXT", help="The reason; rank 0 prints it.")
@click.option("--background", is_flag=True, help="Return at once; do not wait until the instance has ended.")
def shutdown(status: int, reason: str, background: bool) -> None:
    """End the instance on all nodes.

    Its command gets SIGTERM. If it was started with --checkpoint, the store is saved. Exit status: 0.
    """
    with connect() as h:
        try:
            h.rpc("lifecycle.shutdown", Shutdown(status, reason), target=LEADER)
        except InstanceEnding:
            pass
        except ConnectionLost:
            return
        if not background:
            h.wait_closed()
