"""``fluxmpi stats``: the statistics of all services of a broker."""

from __future__ import annotations

import click

from fluxmpi.cli.common import Command, connect, error_context, json_option, parse_idset, write_json, write_statistics
from fluxmpi.errors import InvalidRequest


@click.command(cls=Command, examples="fluxmpi stats\nfluxmpi stats -r 0-3 event\nfluxmpi stats -r all --json")
@click.option(
    "-r", "--rank", "ranks", metavar="IDSET", help="The brokers' ranks: 0-3,7 or all.  [default: this node's broker]"
)
@json_option
@click.argument("service", required=False)
def stats(ranks: str | None, as_json: bool, service: str | None) -> None:
    """Print the statistics of brokers, of all services or of SERVICE: RANK SERVICE.NAME NUMBER.

    --json prints one object: rank, service, name, number.
    """
    with connect() as h:
        chosen = [h.rank] if ranks is None else parse_idset(ranks, h.size)
        with h.batch():
            futures = {rank: h.rpc_async("stats.get", target=rank) for rank in chosen}
        found = {}
        for rank, future in futures.items():
            with error_context(f"rank {rank}"):
                found[rank] = future.get()
    if service is not None:
        if not any(service in services for services in found.values()):
            raise InvalidRequest(f"no service '{service}' has statistics: use one of {', '.join(found[chosen[0]])}")
        found = {rank: {service: services[service]} for rank, services in found.items() if service in services}
    if as_json:
        write_json(found)
        return
    for rank, services in found.items():
        for name, numbers in services.items():
            write_statistics(numbers, f"{rank} {name}.")
