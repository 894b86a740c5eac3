"""How far captures that nobody in this project made are read as two independent readers read them.

    python bench/corpus.py [FOLDER] [--verbose]

FOLDER (or LIVEFIRE_CORPUS; default: ../shared/corpus beside the repository) holds pcap/*.expect.json. In process, so
that it takes seconds. Exit code 1 when an account does not balance, an exchange appears that nobody saw, agreement
is below --min, or of the rows on which the readers differ fewer than before are told as far as they agree.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from capture.assembler import Assembler  # noqa: E402
from capture.settings import CaptureSettings  # noqa: E402
from capture.show import exchange_json, in_order  # noqa: E402
from capture.source_pcap import PcapSource  # noqa: E402
from wire.account import Account  # noqa: E402
from wire.config import ConfigError  # noqa: E402

#: Rows of the corpus on which the readers differ, and all whose agreed fields we tell, too; it may only grow.
PARTS, PARTLY = 324, 318
EMPTY = hashlib.sha256(b"").hexdigest()


def corpus_folder(given: str | None = None) -> Path | None:
    """Where the corpus is, or None."""
    folder = Path(given or os.environ.get("LIVEFIRE_CORPUS") or ROOT.parent / "shared" / "corpus")
    return folder if (folder / "pcap").is_dir() else None


def read(capture: Path, *, keep_unpaired: bool = True) -> tuple[list[dict[str, Any]], Account]:
    assembler = Assembler("0" * 32, CaptureSettings(keep_unpaired=keep_unpaired), None, b"corpus")
    for frame in PcapSource(capture).frames():
        if frame is not None:
            assembler.packet(*frame)
    exchanges = in_order(assembler.finish())
    return [exchange_json(exchange) for exchange in exchanges], assembler.account


def _norm(text: str | None) -> str:
    return (text or "").replace("[", "").replace("]", "")


def _sha(text: str | None) -> str | None:
    return None if text in (None, "", EMPTY) else text


def compare(want: dict[str, Any], got: list[dict[str, Any]]) -> tuple[int, int, int, list[str]]:
    """(agreed exchanges found, agreed exchanges, exchanges that no reader saw, what differs)."""
    pool: dict[tuple[Any, ...], list[tuple[Any, ...]]] = collections.defaultdict(list)
    for g in got:
        status = g["status"]
        pool[_norm(g["client"]), _norm(g["server"]), g["method"], g["target"]].append(
            (
                status,
                g["request_body_bytes"],
                _sha(g["request_body_sha256"]),
                g["response_body_bytes"] if status else 0,
                _sha(g["response_body_sha256"]) if status else None,
            )
        )
    found = total = 0
    differs: list[str] = []
    for e in want["exchanges"]:
        if not e["agreed"]:
            continue
        total += 1
        key = (_norm(e["client"]), _norm(e["server"]), e["method"], e["target"])
        status = e["status"]
        fields = (
            status,
            e["request_body_length"] or 0,
            _sha(e["request_body_sha256"]),
            (e["response_body_length"] or 0) if status else 0,
            _sha(e["response_body_sha256"]) if status else None,
        )
        if fields in pool[key]:
            pool[key].remove(fields)
            found += 1
        else:
            differs.append(
                f"{e['method']} {(e['target'] or '')[:50]} {fields} got {pool[key][:1]} {e.get('flags', '')}"
            )
    left = [(key, value) for key, values in pool.items() for value in values]
    extra = len(left) if want["count"] == want["agreed"] else 0
    if extra:
        differs.append(f"{extra} that no reader saw, first {left[0]}")
    return found, total, extra, differs


def compare_fields(want: dict[str, Any], got: list[dict[str, Any]]) -> tuple[int, int, list[str]]:
    """Of rows on which the readers differ: (those all of whose `agreed_fields` an exchange has, all, what differs)."""
    left = list(got)
    found = total = 0
    differs: list[str] = []
    for e in want["exchanges"]:
        fields = [name for name in e.get("agreed_fields", ()) if not name.endswith("_time")]
        if e["agreed"] or not fields:
            continue
        total += 1
        match = next((g for g in left if _has(g, e, fields)), None)
        if match is None:
            differs.append(f"{e.get('class')}: {e['method']} {(e['target'] or '')[:50]} {fields}")
        else:
            left.remove(match)
            found += 1
    return found, total, differs


def _has(got: dict[str, Any], want: dict[str, Any], fields: list[str]) -> bool:
    if (_norm(got["client"]), _norm(got["server"])) != (_norm(want["client"]), _norm(want["server"])):
        return False
    for name in fields:
        if name.endswith("sha256"):
            same = _sha(got[name]) == _sha(want[name])
        else:
            same = (got[name.replace("_length", "_bytes")] or None) == (want[name] or None)
        if not same:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--min", type=float, default=0.0, help="percent of agreement below which the exit code is 1")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--paired", action="store_true", help="without answers whose request was never seen")
    args = parser.parse_args()
    folder = corpus_folder(args.folder)
    if folder is None:
        print("no corpus here: give its folder, or set LIVEFIRE_CORPUS (it holds pcap/); nothing was compared")
        return 0
    begun = time.perf_counter()
    found = total = extra = captures = unbalanced = crashed = partly = parts = 0
    for expect in sorted((folder / "pcap").glob("*.expect.json")):
        want = json.loads(expect.read_text())
        capture = expect.with_name(want["file"])
        if not capture.exists():
            continue
        captures += 1
        try:
            got, account = read(capture, keep_unpaired=not args.paired)
        except ConfigError as error:
            print(f"{capture.name}: {error}")
            got, account = [], Account()
        except Exception:
            crashed += 1
            traceback.print_exc()
            got, account = [], Account()
        if not account.balanced:
            unbalanced += 1
            print(f"{capture.name}: unbalanced {account.as_json()}")
        one = compare(want, got)
        found, total, extra = found + one[0], total + one[1], extra + one[2]
        some = compare_fields(want, got)
        partly, parts = partly + some[0], parts + some[1]
        if args.verbose:
            for line in some[2]:
                print(f"{capture.name[:60]}: not all agreed fields: {line}")
        if one[3] and args.verbose:
            print(f"{capture.name}: {one[0]} of {one[1]}")
            for line in one[3][:6]:
                print(f"    {line}")
    percent = 100 * found / max(1, total)
    print(
        f"{captures} captures: {found} of {total} agreed exchanges ({percent:.2f} %), {extra} that no reader saw, "
        f"{unbalanced} accounts unbalanced, {crashed} crashed, {time.perf_counter() - begun:.1f} s"
    )
    print(f"where the readers differ: all agreed fields of {partly} of {parts} exchanges")
    fewer = parts == PARTS and partly < PARTLY
    if fewer:
        print(f"that were {PARTLY}: run with --verbose")
    return 1 if percent < args.min or extra or fewer or unbalanced or crashed or not captures else 0


if __name__ == "__main__":
    sys.exit(main())
