"""Tries every fault, again and again, and checks what must hold then.

    python tests/soak.py [--count 200] [--seed N] [--only NAME] [--write FILE]

One line a fault: how often it took place, how often while work was in flight, and the longest time: from a kill to
the last request that the target saw, from a broker that is back to the first commit. Exit code 1 when anything does
not hold, or when fewer than a third of the faults hit work in flight.
"""

from __future__ import annotations

import argparse
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this tree, whatever is installed

import fault_bus
import fault_cleanse
import fault_fleet
import fault_panes
import fault_record
import fault_record_bus
import fault_record_clock
import fault_record_disk
import fault_replay
import fault_stores
import fault_target
from fault_checks import LINUX, ROOT, Tally

from capture.source_ring import explained, open_error

Fault = Callable[[int, int], Tally]  # count, seed


def _each(one: Callable[[Path, int], tuple[bool, bool, list[str]]], share: int = 1) -> Fault:
    """`one` in a folder of its own each time. `share`: how many times rarer than the kills."""

    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=-(-count // share))
        for number in range(2 * tally.wanted):
            if tally.hits == tally.wanted:
                break
            with tempfile.TemporaryDirectory() as folder:
                hit, in_flight, problems = one(Path(folder), seed + number)
            tally.add(hit=hit, in_flight=in_flight, problems=[f"seed {seed + number}: {text}" for text in problems])
        return tally

    return fault


def _replay(name: str, requests: int = 200) -> Fault:
    def fault(count: int, seed: int) -> Tally:
        tally = Tally(wanted=count)
        for number in range(2 * count):  # an instant after the end kills nothing, and proves nothing
            if tally.hits == count:
                break
            with tempfile.TemporaryDirectory() as folder:
                found = fault_replay.fault(Path(folder), fault_replay.CASES[name], seed + number, requests)
            problems = [f"seed {seed + number}: {text}" for text in found.problems]
            tally.add(hit=found.killed, in_flight=found.open_shots > 0, problems=problems, last_ns=found.last_ns)
        return tally

    return fault


def _recorder(kind: str) -> Fault:
    def fault(count: int, seed: int) -> Tally:
        if kind == "ring" and (refused := open_error()) is not None:
            return Tally(skipped=explained(refused))
        with tempfile.TemporaryDirectory() as folder:
            return fault_record.kills(Path(folder), kind, count, seed)

    return fault


def _on_one_ground(fault: Callable[[Path, int, int], Tally]) -> Fault:
    def tried(count: int, seed: int) -> Tally:
        with tempfile.TemporaryDirectory() as folder:
            return fault(Path(folder), count, seed)

    return tried


def _at_most(most: int, fault: Fault) -> Fault:
    return lambda count, seed: fault(min(count, most), seed)


def _rarer(share: int, fault: Fault) -> Fault:
    return lambda count, seed: fault(-(-count // share), seed)


def _in_rounds(most: int, fault: Fault) -> Fault:
    """So many at a time on one ground: what hours of load leave behind would be all that is tried in the end."""

    def rounds(count: int, seed: int) -> Tally:
        tally = Tally()
        while tally.wanted < count and not tally.skipped:
            tally.join(fault(min(most, count - tally.wanted), seed + 1000 * tally.wanted))
        return tally

    return rounds


def _linux(fault: Fault) -> Fault:
    """Limits of a running process, and the descriptors of another one, are Linux's."""
    return fault if LINUX else lambda count, seed: Tally(skipped="only on Linux")


def _where(refused: Callable[[], str], fault: Fault) -> Fault:
    def tried(count: int, seed: int) -> Tally:
        why = refused()
        return Tally(skipped=why) if why else fault(count, seed)

    return tried


#: Every fault, by its name.
FAULTS: dict[str, Fault] = {
    "kill -9: recorder, ring": _recorder("ring"),
    "kill -9: recorder, proxy": _recorder("proxy"),
    "kill -9: recorder inside of a write": _linux(_in_rounds(5, _on_one_ground(fault_record_disk.torn_writes))),
    "kill -9: recorder of segments": _recorder("rotate"),
    "kill -9: recorder of a ring of time": _recorder("keep-last"),
    "kill -9: feeder": _replay("feeder"),
    "kill -9: firer": _replay("firer"),
    "kill -9: conductor of a replay": _replay("conductor"),
    "kill -9: conductor, lease alone ends the load": _linux(_replay("conductor, lease alone")),
    "kill -9: controller of a drill": _replay("controller"),
    "kill -9: controller, lease alone ends the load": _linux(_replay("controller, lease alone")),
    "kill -9: maker of panes": _each(fault_panes.kill),
    **fault_stores.FAULTS,
    "firer stands still for 2 s": _each(fault_target.stalled_firer, 4),
    "conductor stands still for 4 s": _each(fault_target.stalled_conductor, 4),
    "target dies and comes back": _each(fault_target.dead_target, 4),
    "target hangs for 2 s": _each(fault_target.hung_target, 4),
    "kill -9: recorder, Kafka": _in_rounds(20, fault_record_bus.recorder_kills),
    "broker of a recorder dies and comes back": fault_record_bus.outages,
    "disk under a recorder's spool is full": _linux(fault_record_bus.full_spools),
    "kill -9: Faust cleanser": _in_rounds(20, fault_cleanse.cleanser_kills),
    # Each is a whole drill; the same processes are killed one by one above.
    **{name: _rarer(2, _at_most(25, _in_rounds(5, fault))) for name, fault in fault_fleet.FAULTS.items()},
    "recorder's disk is full": _linux(_each(fault_record.full_disk)),
    "disk under a ring of segments is full": _where(fault_record_disk.mount_error, _each(fault_record_disk.full_ring)),
    "disk under a folder of segments is full": _where(
        fault_record_disk.mount_error, _each(fault_record_disk.full_segments)
    ),
    "recorder's interface goes down and up": _where(fault_record_disk.link_error, _each(fault_record_disk.link)),
    "recorder's wall clock is set": _where(fault_record_clock.refused, _each(fault_record_clock.clock)),
    "a run's disk is full": _linux(_each(fault_target.full_run_disk, 4)),
    "damaged bytes in outcomes": _each(fault_panes.damage, 4),
    "kill -9: broker": _at_most(25, fault_bus.kills),  # each takes ten seconds
    "broker stands still": fault_bus.freezes,
    "messages that nobody should have written": _at_most(10, fault_bus.strangers),
    "wrong password for the broker": fault_bus.passwords,
}


def row(name: str, tally: Tally, wrong: list[str]) -> str:
    if tally.skipped:
        return f"| {name} | skipped: {tally.skipped} | | | |"
    worst = "" if tally.worst_ns is None else f"{tally.worst_ns / 1e9:.2f} s"
    return f"| {name} | {tally.hits} | {tally.in_flight} | {worst} | {len(wrong) or 'none'} |"


HEAD = ("| fault | times | work in flight | longest | problems |", "|---|---|---|---|---|")
_PAGE_HEAD = (
    "| fault | times | work in flight | longest | problems | commit | seed |",
    "|---|---|---|---|---|---|---|",
)


def page(rows: dict[str, str], seed: int, before: str) -> str:
    """The page with these rows, each with its commit and seed. Those of faults that were not tried now stay as they
    were on the page `before`."""
    commit = subprocess.run(
        ("git", "rev-parse", "--short", "HEAD"), cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    table = {line.split(" | ")[0].removeprefix("| "): line for line in before.splitlines() if line.startswith("| ")}
    table |= {name: f"{line} {commit} | {seed} |" for name, line in rows.items()}
    return "\n".join(
        (
            "# Faults", "",
            "`make soak` wrote this page. Each fault strikes the real commands at a random instant; the witness is the",
            "target's own log. Afterwards all files open, planned = sent + shed + unknown, windows count what outcomes",
            "count, no shot was fired twice, and a load whose controller is gone ends within its lease of 3 s. Of what a",
            "broker has acknowledged nothing is lost and nothing comes twice, and it goes on within 15 s. *longest*: from",
            "a kill to the last request; from a broker that answers again until all writers and readers have moved; of a",
            "killed recorder, how much of what came last it had not written: before that there is never a hole. What is",
            "struck runs compiled, as it is installed where there is a C compiler, in rows from commit 7c7619f on.", "",
            f"The last ones ran on {time.strftime('%Y-%m-%d', time.gmtime())}, Python {platform.python_version()}.", "",
            *_PAGE_HEAD, *(table[name] for name in FAULTS if name in table), "",
        )
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills of each process; other faults fewer")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--only", metavar="NAME", help="the fault of this name, or those whose names hold it")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page of Markdown with the result")
    args = parser.parse_args()
    chosen = {name: fault for name, fault in FAULTS.items() if (args.only or "") in name}
    if args.only in FAULTS:
        chosen = {args.only: FAULTS[args.only]}
    if not chosen:
        parser.error(f"no fault is named {args.only!r}; there are: {'; '.join(FAULTS)}")
    print(f"seed {args.seed}, {args.count} kills each\n" + "\n".join(HEAD), flush=True)
    bad, rows = 0, {}
    for name, fault in chosen.items():
        tally = fault(args.count, args.seed)
        wrong = tally.verdict()
        rows[name] = row(name, tally, wrong)
        print("\n".join((rows[name], *(f"    {text}" for text in wrong))), flush=True)
        bad += bool(wrong)
        if args.write:  # after each: hours may pass, and somebody may have enough
            before = args.write.read_text() if args.write.exists() else ""
            args.write.write_text(page({name: rows[name]}, args.seed, before))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
