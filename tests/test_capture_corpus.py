"""A spread of captures that nobody here made, against two independent readers. `bench/corpus.py` takes all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from capture_corpus import corpus

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))

import corpus as bench

SPREAD = 8  # every so many captures


def test_a_spread_of_captures_agrees_and_balances() -> None:
    folder = corpus("pcap")
    expectations = sorted(folder.glob("*.expect.json"))[::SPREAD]
    assert len(expectations) >= 40
    found = total = extra = partly = parts = 0
    for expect in expectations:
        want = json.loads(expect.read_text())
        got, account = bench.read(expect.with_name(want["file"]))
        assert account.balanced, (want["file"], account.as_json())
        one = bench.compare(want, got)
        found, total, extra = found + one[0], total + one[1], extra + one[2]
        some = bench.compare_fields(want, got)
        partly, parts = partly + some[0], parts + some[1]
    assert total > 100
    assert extra == 0
    assert found == total
    assert parts and parts - partly <= bench.PARTS - bench.PARTLY


def test_the_comparison_can_fail() -> None:
    want = {
        "count": 1,
        "agreed": 1,
        "exchanges": [
            {
                "agreed": True,
                "client": "1.1.1.1:1",
                "server": "2.2.2.2:2",
                "method": "GET",
                "target": "/",
                "status": 200,
                "request_body_length": 0,
                "request_body_sha256": None,
                "response_body_length": 3,
                "response_body_sha256": "x",
            }
        ],
    }
    seen = {
        "client": "1.1.1.1:1",
        "server": "2.2.2.2:2",
        "method": "GET",
        "target": "/",
        "status": 200,
        "request_body_bytes": 0,
        "request_body_sha256": None,
        "response_body_bytes": 3,
        "response_body_sha256": "x",
    }
    assert bench.compare(want, [seen])[:3] == (1, 1, 0)
    assert bench.compare(want, [])[:3] == (0, 1, 0)
    assert bench.compare(want, [{**seen, "response_body_bytes": 4}])[:3] == (0, 1, 1)
    assert bench.compare(want, [seen, seen])[:3] == (1, 1, 1)


def test_the_comparison_of_agreed_fields_can_fail() -> None:
    want = {
        "exchanges": [
            {"agreed": False, "agreed_fields": ["method", "target", "host", "status", "request_time"], "method": "GET",
             "target": "/", "host": "h", "status": None, "client": "1.1.1.1:1", "server": "2.2.2.2:2"},
        ]
    }  # fmt: skip
    seen = {"client": "1.1.1.1:1", "server": "2.2.2.2:2", "method": "GET", "target": "/", "host": "h", "status": None}
    assert bench.compare_fields(want, [seen])[:2] == (1, 1)
    assert bench.compare_fields(want, [])[:2] == (0, 1)
    for name in ("method", "target", "host", "status", "client"):
        assert bench.compare_fields(want, [{**seen, name: "other"}])[:2] == (0, 1), name
