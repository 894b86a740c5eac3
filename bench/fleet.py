"""The fleet's way, part by part: what an exchange and an outcome cost over Kafka, how soon a stop and a figure arrive.

    .venv/bin/python bench/fleet.py [--only ready,cleanse,outcomes,stop,visible,memory] [--repeat 3]

Servers are started (`make servers` fetches them), or those are used that LIVEFIRE_KAFKA, LIVEFIRE_CLICKHOUSE and
LIVEFIRE_ELASTICSEARCH name. Each part makes topics, databases and indices of its own and removes them.

    ready      exchanges that are ready -> Kafka
    cleanse    Kafka -> `livefire cleanse`, a Faust worker -> Kafka
    outcomes   outcomes from the bus -> panes -> the embedded store, ClickHouse
    stop       `livefire stop --all --bus` -> the last request, by the target's own log
    visible    an outcome done -> its count can be read from the store: embedded, ClickHouse, Elasticsearch
    memory     RSS of each process of a fleet at work, and its slope

CPU is user and system time of the process named, all threads; what the server's process took beside it is a column of
its own. `x floor` divides by the least that any program must do with the same bytes: take them from Kafka, decode,
encode, bring them to Kafka, in the same round on the same machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
# This folder's files are named as packages and tests are; the packages come first, and the bench is `bench.*`.
_OWN = Path(__file__).parent
sys.path[:] = [str(_ROOT), str(_ROOT / "tests"), *(p for p in sys.path if Path(p or ".").resolve() != _OWN)]

from bench import fleet_bed as bed  # noqa: E402

PARTS = ("ready", "cleanse", "outcomes", "stop", "visible", "memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of each part")
    parser.add_argument("--count", type=int, default=0, help="exchanges or outcomes a round")
    parser.add_argument("--stops", type=int, default=10, help="stops that are measured")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long memory is looked at")
    args = parser.parse_args()
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))} (there are {', '.join(PARTS)})")
    if args.count > 2_000_000 or args.minutes > 60 or args.stops > 1000:
        parser.error("at most 2,000,000 exchanges, 60 minutes, 1000 stops: disk and time are bounded")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the `finally`s
    servers = bed.Servers()
    bed.slow()
    try:
        for part in wanted:
            try:
                _run(part, servers, args)
            except bed.Missing as missing:
                bed.skipped(part, missing)
    finally:
        servers.close()
    return 0


def _run(part: str, servers: bed.Servers, args: argparse.Namespace) -> None:
    if part in ("ready", "cleanse"):
        from bench import fleet_carry

        if part == "ready":
            fleet_carry.ready(servers.get("kafka"), args.repeat, args.count or 200_000)
        else:
            fleet_carry.cleansed(servers.get("kafka"), args.repeat, args.count or 192_000)
    elif part in ("outcomes", "visible"):
        from bench import fleet_outcomes

        if part == "outcomes":
            fleet_outcomes.aggregated(servers, args.repeat, args.count or 400_000)
        else:
            fleet_outcomes.visible(servers, 30)
    elif part == "stop":
        from bench import fleet_run

        fleet_run.stops(servers.get("kafka"), args.stops)
    else:
        from bench import fleet_run

        fleet_run.memory(servers, args.minutes)


if __name__ == "__main__":
    sys.exit(main())
