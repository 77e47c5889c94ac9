"""Run seeds and scenarios; report which rule was broken, and the command that reproduces it.

python -m fluxmpi.simulator --seed 7                        one run, with what the seed decides
python -m fluxmpi.simulator --seed 7 --trace                the same run, one line per message
python -m fluxmpi.simulator --seeds 0..1000                 many runs; exit status 1 at the first violation
python -m fluxmpi.simulator --seed 3 --ranks 64 --steps 2000 --topology binomial --cache-bytes 2000
python -m fluxmpi.simulator --seed 3 --ranks 16 --kill 5    rank 5 is killed during the run
python -m fluxmpi.simulator --scenario tests/scenarios/*.txt
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from fluxmpi.simulator.plan import MIXES, Plan, plan_of
from fluxmpi.simulator.run import RunReport, run
from fluxmpi.simulator.scenario import play
from fluxmpi.simulator.trace import Trace

VIOLATIONS_SHOWN = 10


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fluxmpi.simulator", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this seed")
    what.add_argument("--seeds", metavar="A..B", help="run the seeds from A to B - 1")
    what.add_argument("--scenario", nargs="+", type=Path, metavar="FILE", help="play these scenario files")
    parser.add_argument("--ranks", type=int, help="number of brokers")
    parser.add_argument("--steps", type=int, help="number of requests of all clients together")
    parser.add_argument("--topology", help="kary:K, binomial or flat")
    parser.add_argument("--mix", choices=MIXES, help="request mix of the clients")
    parser.add_argument("--cache-bytes", type=int, help="maximum size of each broker's blob cache")
    parser.add_argument("--nodes", type=int, help="maximum of each broker's cache of decoded nodes")
    parser.add_argument("--kill", type=int, metavar="RANK", help="kill this rank during the run")
    parser.add_argument("--trace", action="store_true", help="print every message")
    return parser.parse_args(arguments)


def plan_for(seed: int, options: argparse.Namespace) -> Plan:
    """Return the seed's plan, with parts replaced by options."""
    plan = plan_of(seed, options.ranks, options.steps, options.kill)
    shape = plan.shape
    if options.topology is not None:
        shape = replace(shape, topology=options.topology)
    if options.cache_bytes is not None:
        shape = replace(shape, cache_bytes_max=options.cache_bytes)
    if options.nodes is not None:
        shape = replace(shape, nodes_max=options.nodes)
    return replace(plan, shape=shape, mix=options.mix or plan.mix)


def command(seed: int, options: argparse.Namespace) -> str:
    """Return the command that runs that seed again."""
    words = [f"python -m fluxmpi.simulator --seed {seed}"]
    for name in ("ranks", "steps", "topology", "mix", "cache_bytes", "nodes", "kill"):
        value = getattr(options, name)
        if value is not None:
            words.append(f"--{name.replace('_', '-')} {value}")
    return " ".join(words)


def summary(report: RunReport, seconds: float) -> str:
    shape, faults = report.plan.shape, report.plan.faults
    lines = [
        f"seed {report.plan.seed}: {shape.ranks} brokers as {shape.topology}, {report.plan.clients} clients, mix"
        f" {report.plan.mix}, caches of {shape.cache_bytes_max:,} bytes and {shape.nodes_max} nodes"
        + "".join(f", rank {rank} killed after {at:.3f} s" for rank, at in faults.kills),
        "  " + ", ".join(f"{name} {value:,.6g}" for name, value in report.numbers.items()),
        f"  {seconds:.2f} s; trace {report.digest}",
    ]
    return "\n".join(lines)


def print_violations(report: RunReport, again: str) -> None:
    for violation in report.violations[:VIOLATIONS_SHOWN]:
        print(f"  VIOLATION {violation}")
    if len(report.violations) > VIOLATIONS_SHOWN:
        print(f"  … and {len(report.violations) - VIOLATIONS_SHOWN} more")
    print(f"  again: {again}")


def one(options: argparse.Namespace) -> int:
    began = time.perf_counter()
    report = run(plan_for(options.seed, options), Trace(print if options.trace else None))
    print(summary(report, time.perf_counter() - began))
    if report.ok:
        return 0
    print_violations(report, command(options.seed, options))
    return 1


def many(options: argparse.Namespace) -> int:
    first, _, last = options.seeds.partition("..")
    seeds = range(int(first), int(last or first) + (not last))
    began = time.perf_counter()
    numbers: dict[str, float] = {}
    for done, seed in enumerate(seeds, 1):
        report = run(plan_for(seed, options))
        if not report.ok:
            print(summary(report, time.perf_counter() - began))
            print_violations(report, command(seed, options))
            return 1
        for name, value in report.numbers.items():
            numbers[name] = numbers.get(name, 0) + value
        progress(done, len(seeds), began)
    print(
        f"{len(seeds)} seeds without a violation: "
        + ", ".join(f"{name} {value:,.6g}" for name, value in numbers.items())
    )
    return 0


def progress(done: int, total: int, began: float) -> None:
    """Print one line that is overwritten on a terminal; elsewhere a line every 500 seeds."""
    terminal = sys.stderr.isatty()
    if terminal or done % 500 == 0:
        text = f"{done} of {total} seeds, {done / (time.perf_counter() - began):.1f} per second"
        end = "\n" if not terminal or done == total else ""
        print(f"\r{text}" if terminal else text, end=end, file=sys.stderr, flush=True)


def scenarios(options: argparse.Namespace) -> int:
    status = 0
    for path in options.scenario:
        report = play(path.read_text(), trace=Trace(print if options.trace else None))
        print(f"{'ok' if report.ok else 'FAILED':6} {path.read_text().partition(chr(10))[0]}")
        if not report.ok:
            print_violations(report, f"python -m fluxmpi.simulator --scenario {path} --trace")
            status = 1
    return status


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.scenario:
        return scenarios(options)
    return one(options) if options.seed is not None else many(options)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(1)
