"""``fluxmpi stats``: the numbers that every machine of a broker keeps."""

from __future__ import annotations

import click

from fluxmpi.cli.common import Command, about, connect, json_option, parse_idset, write_json, write_line
from fluxmpi.errors import InvalidRequest


@click.command(cls=Command, examples="fluxmpi stats\nfluxmpi stats -r 0-3 event\nfluxmpi stats -r all --json")
@click.option("-r", "--rank", "ranks", metavar="IDSET", help="Of these ranks.  [default: this node's]")
@json_option
@click.argument("service", required=False)
def stats(ranks: str | None, as_json: bool, service: str | None) -> None:
    """Print 'RANK SERVICE.NAME NUMBER' for all services of a broker, or for one."""
    with connect() as h:
        chosen = [h.rank] if ranks is None else parse_idset(ranks, h.size)
        with h.batch():
            futures = {rank: h.rpc_async("stats.get", target=rank) for rank in chosen}
        found = {}
        for rank, future in futures.items():
            with about(f"rank {rank}"):
                found[rank] = future.get()
    if service is not None:
        if not any(service in services for services in found.values()):
            raise InvalidRequest(f"no service '{service}' keeps numbers; there are {', '.join(found[chosen[0]])}")
        found = {rank: {service: services[service]} for rank, services in found.items() if service in services}
    if as_json:
        write_json(found)
        return
    for rank, services in found.items():
        for name, numbers in services.items():
            for key, value in numbers.items():
                write_line(
                    f"{rank} {name}.{key} {value:g}" if isinstance(value, float) else f"{rank} {name}.{key} {value}"
                )
