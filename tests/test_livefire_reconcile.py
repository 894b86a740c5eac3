"""A recording beside a real server's access log: one exchange that is not there is named, with the likely reason."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from livefire.cli import cli
from livefire.errors import USER_ERRORS
from livefire.losses import Loss
from livefire.matching import Served
from livefire.reconcile import Span, reconcile
from livefire.recording import Recording
from tests.raw_recordings import write_raw
from wire.account import Increment, Ledger
from wire.records import Exchange, Fault, Request, Response

ROOT = Path(__file__).resolve().parent.parent
SECOND = 1_000_000_000
AT = 1_795_255_200 * SECOND  # 2026-11-21 10:00:00 UTC


def exchange(number: int, at_ns: int, target: str = "/a", status: int | None = 200) -> Exchange:
    response = Response(status, b"HTTP/1.1 %d X\r\n\r\n" % status) if status else None
    request = Request(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    end = at_ns + 1_000_000
    return Exchange(
        number.to_bytes(16, "big"), b"s" * 16, b"c" * 16, "1.2.3.4:5", "5.6.7.8:80", request, response,
        at_ns, at_ns, end if response else 0, end if response else 0, faults=() if response else (Fault.UNFINISHED,),
    )  # fmt: skip


def line(at_ns: int, target: str = "/a", status: int = 200) -> str:
    when = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(at_ns // SECOND))
    return f'1.2.3.4 - - [{when}] "GET {target} HTTP/1.1" {status} 0 "-" "-"\n'


def run(tmp_path: Path, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["--keys", str(tmp_path / "keys.yaml"), *arguments])
    if isinstance(result.exception, USER_ERRORS):
        result.exit_code = 2
    return result


def compared(tmp_path: Path, exchanges: list[Exchange], lines: list[str], **more: Any) -> tuple[int, dict[str, Any]]:
    (tmp_path / "a.lf").unlink(missing_ok=True)
    write_raw(tmp_path / "a.lf", exchanges, **more)
    (tmp_path / "access.log").write_text("".join(lines))
    result = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log"), "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, found


def reasons(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["target"], row["reason"]) for row in rows]


def test_all_that_match_are_no_difference_and_a_dropped_one_is_named(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND // 5, f"/{n % 3}") for n in range(50)]
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    code, told = compared(tmp_path, found, lines)
    assert (code, told["matched"], told["missing"], told["unlogged"]) == (0, 50, [], [])
    code, told = compared(tmp_path, found[:20] + found[21:], lines)
    assert code == 99 and reasons(told["missing"]) == [("/2", "unknown")] and told["matched"] == 49
    code, told = compared(tmp_path, found, lines[:20] + lines[21:])
    assert code == 99 and reasons(told["unlogged"]) == [("/2", "unknown")]


def test_tunnels_are_left_out_on_both_sides_and_told(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND) for n in range(4)]
    tunnel = Request(b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n")
    both = [found[0], replace(found[1], request=tunnel), replace(found[2], request=tunnel), found[3]]
    lines = [line(AT), line(AT + SECOND).replace("GET /a", "CONNECT x:443"), line(AT + 3 * SECOND)]
    code, told = compared(tmp_path, both, lines)
    assert (code, told["logged"], told["recorded"], told["matched"]) == (0, 2, 2, 2)
    assert told["tunnels"] == {"logged": 1, "recorded": 2} and told["unreadable_lines"] == {}
    said = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log"))
    assert "tunnels (CONNECT) are not compared: 1 logged, 2 recorded" in said.output


def test_a_request_whose_version_was_refused_is_not_missed(tmp_path: Path) -> None:
    """`GET /x HTTP/2.0` as text: a recording has no such request; of HTTP/1.1 it would have it."""
    found = [exchange(n, AT + n * SECOND) for n in range(3)]
    refused = line(AT + SECOND, "/x", 505)
    lines = [line(AT), refused.replace("HTTP/1.1", "HTTP/2.0"), line(AT + SECOND), line(AT + 2 * SECOND)]
    code, told = compared(tmp_path, found, lines)
    assert code == 0 and told["missing"] == [] and told["unreadable_lines"] == {"bad_version": 1}
    said = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log"))
    assert "may be any of these" not in said.output
    code, told = compared(tmp_path, found, [*lines, refused])
    assert code == 99 and reasons(told["missing"]) == [("/x", "unknown")]


def test_what_was_logged_as_http_2_is_likely_not_recorded_for_that(tmp_path: Path) -> None:
    """Where a gateway made HTTP/1 of it, it is there, and matches."""
    found = [exchange(n, AT + n * SECOND) for n in range(4)]
    lines = [line(AT + n * SECOND).replace("HTTP/1.1", "HTTP/2.0") for n in range(4)]
    missing = [line(AT + SECOND, "/x", 404).replace("HTTP/1.1", "HTTP/2.0"), line(AT + SECOND, "/y")]
    assert compared(tmp_path, found, lines)[0] == 0
    code, told = compared(tmp_path, found, lines + missing)
    assert code == 99 and sorted(reasons(told["missing"])) == [("/x", "not_http1"), ("/y", "unknown")]
    found = [exchange(n, AT + SECOND // 2 + n * SECOND) for n in range(4)]
    first = line(AT, "/w").replace("HTTP/1.1", "HTTP/2.0")  # of the second in which the first one began
    code, told = compared(tmp_path, found, [first, *lines])
    assert code == 0 and reasons(told["missing"]) == [("/w", "edge")]


def test_what_only_one_of_both_could_see_is_told_and_is_no_difference(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND) for n in range(10)]
    lines = [
        line(AT - 60 * SECOND, "/before"),
        *(line(e.response_end_ns) for e in found),
        line(AT + 90 * SECOND, "/after"),
    ]
    code, told = compared(tmp_path, found, lines)
    assert code == 0 and reasons(told["missing"]) == [("/before", "before_recording"), ("/after", "after_recording")]
    code, told = compared(tmp_path, [*found, exchange(99, AT + 80 * SECOND, "/late")], lines[1:-1])
    assert code == 0 and reasons(told["unlogged"]) == [("/late", "after_log")]


def test_likely_reasons_come_from_what_was_lost_then_and_no_more_often_than_it_was(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * 10 * SECOND) for n in range(10)]
    lines = [line(e.response_end_ns) for e in found]
    shed = Increment({"messages": Ledger(seen=1, drops={"shed": 1})})
    kernel = Increment({"packets": Ledger(seen=9, drops={"kernel": 9})})
    blind = Increment({}, {"blind": 1, "blind_ns": SECOND})
    extra = [line(AT + s * SECOND, f"/{s}") for s in (25, 26, 55, 85)]
    code, told = compared(tmp_path, found, lines + extra, increments=[(3, shed), (6, kernel), (9, blind)])
    assert code == 99
    assert reasons(told["missing"]) == [("/25", "shed"), ("/26", "unknown"), ("/55", "kernel"), ("/85", "blind")]


@pytest.mark.parametrize("left_out", ["1.2.3.4", "1.2.0.0/16"])
def test_other_status_no_answer_and_filters(tmp_path: Path, left_out: str) -> None:
    found = [exchange(1, AT, "/x", 500), exchange(2, AT, "/y", None), exchange(3, AT, "/z")]
    lines = [line(AT, "/x"), line(AT, "/y", 504), line(AT, "/z"), line(AT, "/w")]
    settings = {"for_ns": SECOND, "not_hosts": ["::1", left_out]}
    code, told = compared(tmp_path, found, lines, created_ns=AT, settings=settings)
    assert code == 99
    assert sorted(reasons(told["missing"])) == [("/w", "filtered"), ("/x", "other_status"), ("/y", "unanswered")]


def test_who_went_before_there_was_an_answer_is_no_difference(tmp_path: Path) -> None:
    """nginx's 499 and 444: the recording has no answer either, or one that nobody waited for any more."""
    answered = (("/x", None, 499), ("/y", None, 444), ("/z", 200, 499), ("/v", 200, 200))
    found = [exchange(n, AT + n * SECOND, target, seen) for n, (target, seen, _) in enumerate(answered)]
    lines = [line(AT + n * SECOND, target, logged) for n, (target, _, logged) in enumerate(answered)]
    code, told = compared(tmp_path, found, lines)
    assert (code, told["matched"], told["missing"], told["unlogged"]) == (0, 4, [], [])
    code, told = compared(tmp_path, [found[0], *found[2:]], lines)  # negative control
    assert code == 99 and reasons(told["missing"]) == [("/y", "unknown")]


def test_a_loss_lasts_until_the_next_exchanges_whatever_ends_behind_them_say(tmp_path: Path) -> None:
    """An import is younger than all that is in it; an end has the time of the last exchange."""
    found = [exchange(n, AT + n * 10 * SECOND) for n in range(10)]
    lines = [line(e.response_end_ns) for e in found] + [line(AT + s * SECOND, f"/{s}") for s in (25, 95, 96)]
    gaps = Increment({}, {"gaps": 1, "gap_bytes": 5000})
    shed = Increment({"messages": Ledger(seen=2, drops={"shed": 2})})
    settings, now_ns = {"for_ns": 0}, AT + 86_400 * SECOND
    code, told = compared(
        tmp_path, found, lines, increments=[(3, gaps), (10, shed)], created_ns=now_ns, settings={}, reason="done"
    )
    assert code == 99 and reasons(told["missing"])[0] == ("/25", "gap")
    code, told = compared(
        tmp_path, found, lines, increments=[(3, gaps), (10, shed)], created_ns=AT, settings=settings,
        reason="stopped", stopped_ns=AT + 100 * SECOND,
    )  # fmt: skip
    assert reasons(told["missing"]) == [("/25", "gap"), ("/95", "shed"), ("/96", "shed")]


def test_what_was_under_way_at_the_start_uses_up_no_reason(tmp_path: Path) -> None:
    """Of a log of seconds three of the first second, of which nobody can say that they are missing."""
    found = [exchange(n, AT + (n + 1) * SECOND, "/kept") for n in range(4)]
    lines = [line(AT, f"/begun-{n}") for n in range(3)] + [line(AT + 2 * SECOND, "/left-out")]
    lines += [line(e.response_end_ns, "/kept") for e in found]
    asked = Increment({"messages": Ledger(seen=2, intentional={"not_path": 2})})
    code, told = compared(
        tmp_path, found, lines, increments=[(1, asked)], created_ns=AT + SECOND // 2, settings={"for_ns": 4 * SECOND}
    )
    edges = [(f"/begun-{n}", "edge") for n in range(3)]
    assert code == 0 and reasons(told["missing"]) == [*edges, ("/left-out", "not_path")]


def test_a_folder_of_segments_is_compared_as_one(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(6)]
    (tmp_path / "ring").mkdir()
    shed = (1, Increment({"messages": Ledger(seen=2, drops={"no_room": 2})}, {}))
    write_raw(tmp_path / "ring" / "raw-0.000001.lf", found[:2])
    write_raw(tmp_path / "ring" / "raw-0.000002.lf", found[3:], increments=[shed])  # /2 is not there
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    (tmp_path / "access.log").write_text("".join(lines))
    arguments = ("reconcile", str(tmp_path / "ring"), "--access-log", str(tmp_path / "access.log"))
    told = run(tmp_path, *arguments, "--json")
    assert told.exit_code == 99, told.output
    assert reasons(json.loads(told.stdout)["missing"]) == [("/2", "no_room")]
    write_raw(tmp_path / "ring" / "raw-1.000001.lf", found[2:3])
    assert run(tmp_path, *arguments).exit_code == 0


@pytest.mark.parametrize(("reason", "told"), [("stopped", "after_recording"), ("done", "unknown")])
def test_what_was_stopped_early_saw_nothing_of_the_rest_of_its_time(tmp_path: Path, reason: str, told: str) -> None:
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(3)]
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    late = line(AT + 60 * SECOND, "/late")
    asked = {"for_ns": 3600 * SECOND}
    _, result = compared(tmp_path, found, [*lines, late], created_ns=AT, settings=asked, reason=reason)
    assert reasons(result["missing"]) == [("/late", told)]


def test_what_was_thrown_away_unread_is_a_likely_reason(tmp_path: Path) -> None:
    """For want of processor time, or by a proxy whose recorder was behind; each explains no more than it can have held."""
    found = [exchange(n, AT + n * 10 * SECOND, f"/{n}") for n in range(9)]
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    packets = (2, Increment({"packets": Ledger(seen=2, drops={"max_cpu": 2})}))
    bytes_ = (5, Increment({"bytes": Ledger(seen=100, drops={"shed": 100})}, {"shed_unread_bytes": 100}))
    kept = [found[n] for n in (0, 1, 3, 4, 5, 7, 8)]
    _, told = compared(tmp_path, kept, lines, increments=[packets, bytes_])
    assert reasons(told["missing"]) == [("/2", "max_cpu"), ("/6", "shed")]
    log = ("--access-log", str(tmp_path / "access.log"))
    assert "to keep to --max-cpu" in run(tmp_path, "reconcile", str(tmp_path / "a.lf"), *log).stdout
    _, told = compared(tmp_path, kept, lines)
    assert reasons(told["missing"]) == [("/2", "unknown"), ("/6", "unknown")]


def test_a_mirrors_requests_match_without_an_answer_and_a_dropped_one_is_named(tmp_path: Path) -> None:
    """The gateway sends the copy while its own server is at it, for a minute maybe."""
    found = [replace(exchange(n, AT + n * SECOND, f"/{n}", None), faults=()) for n in range(5)]
    form = '$remote_addr $server_addr $msec $request_time "$request" $status'
    took = [1, 60, 60, 60, 60]
    rows = [f'1.2.3.4 9.9.9.9 {AT // SECOND + n + s} {s} "GET /{n} HTTP/1.1" {200 + n}\n' for n, s in enumerate(took)]
    more = ("--access-log", str(tmp_path / "access.log"), "--log-format", form, "--json")

    def compare(log: list[str]) -> tuple[int, list[tuple[str, str]], list[tuple[str, str]]]:
        (tmp_path / "access.log").write_text("".join(log))
        result = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), *more)
        told = json.loads(result.stdout)
        assert all(row["status"] is None for row in told["unlogged"])
        return result.exit_code, reasons(told["missing"]), reasons(told["unlogged"])

    live: dict[str, Any] = {"created_ns": AT, "settings": {"for_ns": 0}, "stopped_ns": AT + 200 * SECOND}
    write_raw(tmp_path / "a.lf", found, **live)
    assert compare(rows) == (0, [], [])
    assert "5 requests alone" in run(tmp_path, "reconcile", str(tmp_path / "a.lf"), *more[:-1]).stdout
    assert compare(rows[:2] + rows[3:]) == (99, [], [("/2", "unknown")])
    (tmp_path / "a.lf").unlink()
    write_raw(tmp_path / "a.lf", found[:2] + found[3:], **live)
    assert compare(rows) == (99, [("/2", "unknown")], [])


def test_what_is_under_way_at_the_end_or_a_moment_later_is_no_difference(tmp_path: Path) -> None:
    """A server goes on when the recorder is stopped; a request that is missing before the last one is a difference."""
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(4)]
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    later = line(found[-1].response_end_ns + SECOND, "/later")
    code, result = compared(tmp_path, found, [*lines, later], created_ns=AT, settings={"for_ns": 0}, reason="stopped")
    assert (code, reasons(result["missing"])) == (0, [("/later", "edge")])
    code, result = compared(tmp_path, [found[0], *found[2:]], lines, created_ns=AT, settings={"for_ns": 0})
    assert (code, reasons(result["missing"])) == (99, [("/1", "unknown")])


def test_of_a_log_of_seconds_those_of_the_first_and_the_last_second_are_outside(tmp_path: Path) -> None:
    """The recording says when it began and was stopped; a request that it lacks in between is a difference."""
    half = SECOND // 2
    found = [exchange(n, AT + half + n * SECOND, "/a") for n in range(1, 9)]
    lines = [line(e.response_end_ns) for e in found]
    edges = [line(AT), line(AT), line(AT + 10 * SECOND), line(AT + 10 * SECOND + SECOND)]
    more = {"created_ns": AT + half, "settings": {"for_ns": 0}, "reason": "stopped"}
    more["stopped_ns"] = AT + 10 * SECOND + half
    code, told = compared(tmp_path, found, [*lines, *edges], **more)
    assert (code, told["matched"]) == (0, 8)
    assert [row["reason"] for row in told["missing"]] == ["edge"] * 4
    code, told = compared(tmp_path, found, [*lines, line(AT + 9 * SECOND), *edges], **more)
    lacks = [row for row in told["missing"] if row["difference"]]
    assert (code, [(row["reason"], row["time_ns"]) for row in lacks]) == (99, [("unknown", AT + 9 * SECOND)])
    del found[3], more["stopped_ns"]  # one of many alike is told in the second in which it is lacking
    code, told = compared(tmp_path, found, lines, **more)
    assert (code, [row["time_ns"] for row in told["missing"]]) == (99, [AT + 4 * SECOND])


def test_what_was_under_way_when_it_was_stopped_is_no_difference_on_either_side(tmp_path: Path) -> None:
    """A log with durations tells that a request began before the end, however long after it ends."""
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(4)]
    found.append(exchange(9, AT + 5 * SECOND, "/long", None))
    form = '$remote_addr $msec $request_time "$request" $status'
    logged = [(e.response_end_ns, 0.001, f"/{n}") for n, e in enumerate(found[:4])]
    write_raw(tmp_path / "a.lf", found, created_ns=AT, settings={"for_ns": 0}, stopped_ns=AT + 8 * SECOND)
    for took, code, told in ((55.0, 0, ["edge"]), (2.0, 99, ["after_recording", "unanswered"])):
        rows = [*logged, (AT + 60 * SECOND, took, "/long")]
        text = "".join(f'1.2.3.4 {at / 1e9:.3f} {took} "GET {target} HTTP/1.1" 200\n' for at, took, target in rows)
        (tmp_path / "access.log").write_text(text)
        arguments = ("--access-log", str(tmp_path / "access.log"), "--log-format", form, "--json")
        result = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), *arguments)
        both = json.loads(result.stdout)
        assert (result.exit_code, [row["reason"] for row in both["missing"] + both["unlogged"]]) == (code, told)


def test_several_recordings_and_rotated_logs_are_compared_as_one(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(20)]
    live = {"settings": {"for_ns": 0}}
    write_raw(tmp_path / "a.lf", found[:6], created_ns=AT - SECOND, stopped_ns=AT + 6 * SECOND, **live)
    write_raw(tmp_path / "b.lf", found[12:], created_ns=AT + 12 * SECOND - 1, stopped_ns=AT + 20 * SECOND, **live)
    lines = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    (tmp_path / "access.log").write_text("".join(lines[10:]))
    (tmp_path / "access.log.1.gz").write_bytes(gzip.compress("".join(lines[:10]).encode()))
    logs = [part for name in ("access.log", "access.log.1.gz") for part in ("--access-log", str(tmp_path / name))]
    both = [str(tmp_path / "a.lf"), str(tmp_path / "b.lf")]
    result = run(tmp_path, "reconcile", *both, *logs, "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["matched"]) == (0, 14), told
    assert {row["reason"] for row in told["missing"]} == {"between_recordings", "edge"}
    result = run(tmp_path, "reconcile", *both, *logs[:2], "--json")  # the rotated one is not given
    assert (result.exit_code, {row["reason"] for row in json.loads(result.stdout)["unlogged"]}) == (0, {"before_log"})
    (tmp_path / "access.log").write_text("".join(lines[10:15] + lines[16:]))
    assert run(tmp_path, "reconcile", *both, *logs).exit_code == 99


def test_a_log_in_another_zone_matches_and_one_that_does_not_say_so_is_named(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * SECOND, f"/{n}") for n in range(8)]
    ends = [line(e.response_end_ns, e.request.head.split()[1].decode()) for e in found]
    there = [text.replace(" +0000]", " -0730]").replace("/2026:10:", "/2026:02:").replace(":02:00:", ":02:30:")
             for text in ends]  # fmt: skip
    assert compared(tmp_path, found, there)[0] == 0
    silent = [text.replace(" -0730]", " +0000]") for text in there]
    code, _ = compared(tmp_path, found, silent)
    assert code == 96
    told = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log")).stderr
    assert "the log's clock is 7:30 h behind the recording's" in told
    compared(tmp_path, found, [line(AT - 9000 * SECOND, f"/x{n}") for n in range(8)])
    told = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log")).stderr
    assert "clock" not in told and "nothing to compare" in told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hosts": ["1.2.3.4"]}, ["unknown", "filtered"]),  # clients
        ({"hosts": ["5.6.7.8"]}, ["unknown", "unknown"]),  # the server that all were sent to
        ({"hosts": ["9.9.9.9"]}, ["filtered", "filtered"]),
        ({"scale": 0.5}, ["other_host", "other_host"]),
        ({"ports": [80]}, ["unknown", "unknown"]),
    ],
)
def test_what_passed_elsewhere_is_told_so(tmp_path: Path, settings: dict[str, Any], told: list[str]) -> None:
    found = [exchange(n, AT + n * 5 * SECOND) for n in range(4)]
    lines = [line(e.response_end_ns) for e in found]
    lost = [line(AT + 6 * SECOND, "/w"), line(AT + 6 * SECOND, "/w").replace("1.2.3.4", "1.2.3.5")]
    code, result = compared(tmp_path, found, lines + lost, created_ns=AT, settings={"for_ns": 0, **settings})
    assert [row["reason"] for row in result["missing"]] == told
    assert code == (0 if set(told) == {"filtered"} else 99)


def test_another_port_or_server_of_the_log_is_told_so(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * 5 * SECOND) for n in range(4)]
    form = '$remote_addr $msec "$request" $status $server_addr:$server_port'
    rows = [(e.response_end_ns, "/a", "5.6.7.8:80") for e in found]
    rows += [(AT + 6 * SECOND, "/w", "5.6.7.8:8081"), (AT + 7 * SECOND, "/w", "5.6.7.9:80")]
    text = "".join(f'1.2.3.4 {at / 1e9:.3f} "GET {target} HTTP/1.1" 200 {server}\n' for at, target, server in rows)
    (tmp_path / "access.log").write_text(text)
    write_raw(tmp_path / "a.lf", found, created_ns=AT, settings={"for_ns": 0, "ports": [80]})
    arguments = ("--access-log", str(tmp_path / "access.log"), "--log-format", form, "--json")
    result = run(tmp_path, "reconcile", str(tmp_path / "a.lf"), *arguments)
    assert [row["reason"] for row in json.loads(result.stdout)["missing"]] == ["filtered", "other_server"]


def test_a_target_does_not_speak_to_the_terminal(tmp_path: Path) -> None:
    found = [exchange(n, AT + n * 9 * SECOND) for n in range(3)]
    compared(tmp_path, found, [*(line(e.response_end_ns) for e in found), line(AT + 5 * SECOND, "/\\x1b[31m\\x07")])
    arguments = ("reconcile", str(tmp_path / "a.lf"), "--access-log", str(tmp_path / "access.log"))
    shown = CliRunner().invoke(cli, ["--keys", str(tmp_path / "keys.yaml"), *arguments], color=True).output
    assert "\x1b" not in shown and "\x07" not in shown and "/\\x1b[31m\\x07" in shown


def test_targets_of_the_log_are_masked_before_they_are_compared(tmp_path: Path) -> None:
    source = tmp_path / "in.log"
    source.write_text(line(AT, "/a?password=hunter2") + line(AT, "/a?password=other99"))
    assert run(tmp_path, "import", str(source), "--to", str(tmp_path / "m.lf")).exit_code == 0
    assert b"hunter2" not in next(Recording(tmp_path / "m.lf").exchanges()).request.head
    arguments = ("reconcile", str(tmp_path / "m.lf"), "--access-log", str(source))
    result = run(tmp_path, *arguments)
    assert result.exit_code == 0 and "2 match" in result.stdout
    (tmp_path / "other").mkdir()
    assert run(tmp_path / "other", "keys", "new").exit_code == 0
    told = json.loads(run(tmp_path / "other", *arguments, "--json").stdout)
    assert [row["reason"] for row in told["missing"]] == ["masked", "masked"] and not told["unlogged"]
    other = CliRunner().invoke(cli, ["--keys", str(tmp_path / "none.yaml"), *arguments])
    assert "no key file" in str(other.exception)


def test_nothing_to_compare_is_inconclusive(tmp_path: Path) -> None:
    assert compared(tmp_path, [], [line(AT)])[0] == 96


@pytest.mark.parametrize("seed", range(6))
def test_matching_finds_exactly_what_was_dropped(seed: int) -> None:
    """Random traffic, a log of seconds: what is taken out of either side is what is found, up to equal requests."""
    rng = random.Random(seed)
    served = []
    for n in range(400):
        end = AT + rng.randrange(60 * SECOND)
        key = (b"GET", b"/%d" % rng.randrange(12), rng.choice([200, 404]))
        served.append((n, key, end))
    log = [Served(key, end - end % SECOND, end - end % SECOND + SECOND - 1, end, str(n)) for n, key, end in served]
    rec = [Served(key, end, end, end - 1000, str(n)) for n, key, end in served]
    gone = set(rng.sample(range(400), 7))
    kept = [one for n, one in enumerate(rec) if n not in gone]
    rng.shuffle(kept)
    result = reconcile(log, kept, [Span(AT, AT + 60 * SECOND)], [Loss(AT, AT + 1, "x", 0)], 0)
    assert result.matched == 393 and sorted(f.served.key for f in result.found) == sorted(served[n][1] for n in gone)


@pytest.mark.parametrize("seed", range(6))
def test_times_that_are_a_little_off_take_no_neighbour(seed: int) -> None:
    """The log begins before the recording; one target comes again and again; its times are off by some ms."""
    rng = random.Random(seed)
    ends = [AT + n * 50_000_000 + rng.randrange(20_000_000) for n in range(400)]
    log = []
    for n, end in enumerate(ends):
        told = end + rng.choice((0, 1, 1, 4, 9)) * 1_000_000
        log.append(Served((b"GET", b"/a", 200), told, told + 1_000_000, told - 5_000_000, str(n)))
    rec = [Served((b"GET", b"/a", 200), end, end, end - 5_000_000, str(n)) for n, end in enumerate(ends)][100:]
    span = [Span(rec[0].start_ns - 10_000_000, ends[-1] + SECOND)]
    result = reconcile(log, rec, span, [], 2 * SECOND)
    assert result.matched == 300 and not result.differences
    gone = set(rng.sample(range(110, 390), 25))
    result = reconcile(log, [one for one in rec if int(one.name) not in gone], span, [], 2 * SECOND)
    assert sorted(int(one.served.name) for one in result.differences) == sorted(gone)


# -- a real server with a log


@contextmanager
def server(log: Path) -> Iterator[int]:
    """It logs as nginx does, when the answer is out."""
    out = log.open("a", buffering=1)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = b"x" * 20
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            with lock:
                out.write(f'{self.client_address[0]} {time.time():.3f} "{self.requestline}" {self._status} 20\n')

        def send_response(self, code: int, message: str | None = None) -> None:
            self._status = code
            super().send_response(code, message)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            out.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def record_of(tmp_path: Path, upstream: int, requests: list[tuple[str, str]]) -> Path:
    """A recording of these, made by the recording proxy."""
    port, to = free_port(), tmp_path / "r.lf"
    command = [sys.executable, "-m", "livefire", "--keys", str(tmp_path / "keys.yaml"), "record", "--stdin-guard"]
    command += ["--proxy", f"127.0.0.1:{port}=127.0.0.1:{upstream}", "--to", str(to)]
    recorder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        _until_open(port)
        for method, target in requests:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            client.request(method, target, body="{}" if method == "POST" else None)
            client.getresponse().read()
            client.close()
        deadline = time.monotonic() + 20
        while _recorded(to) < len(requests) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        assert recorder.stdin is not None
        recorder.stdin.close()
        recorder.wait(20)
    return to


def test_a_live_recording_holds_all_that_a_real_server_logged(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with server(log) as upstream:
        targets = [f"/missing/{n % 4}" if n % 5 == 0 else f"/a?n={n % 7}" for n in range(40)]
        to = record_of(tmp_path, upstream, [("GET", target) for target in targets])
    form = '$remote_addr $msec "$request" $status $body_bytes_sent'
    arguments = ("--access-log", str(log), "--log-format", form, "--json")
    result = run(tmp_path, "reconcile", str(to), *arguments)
    told = json.loads(result.stdout)
    assert (result.exit_code, told["matched"], told["logged"]) == (0, 40, 40), told
    exchanges = list(Recording(to).exchanges())
    assert Recording(to).began_ns < exchanges[-1].response_end_ns  # a proxy passes on before the file is there
    assert exchanges[-1].response_end_ns < Recording(to).stopped_ns < time.time_ns()
    live: dict[str, Any] = {"created_ns": Recording(to).began_ns, "stopped_ns": Recording(to).stopped_ns}
    live["settings"] = {"for_ns": 0}
    write_raw(tmp_path / "less.lf", exchanges[:17] + exchanges[18:], masked=True, **live)
    result = run(tmp_path, "reconcile", str(tmp_path / "less.lf"), *arguments)
    (missing,) = json.loads(result.stdout)["missing"]
    assert result.exit_code == 99 and missing["target"].encode() == exchanges[17].request.head.split()[1]


def _recorded(path: Path) -> int:
    return Recording(path).count if path.exists() and path.stat().st_size > 100 else 0


def _until_open(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the recorder did not begin to listen")


def test_a_log_of_the_shop_is_read_by_a_format_of_its_keys(tmp_path: Path) -> None:
    log, port = tmp_path / "payments.log", free_port()
    command = [sys.executable, "payments.py", "--listen", f"127.0.0.1:{port}", "--log", str(log), "--stdin-guard"]
    shop = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT / "examples" / "shop")
    try:
        _until_open(port)
        to = record_of(tmp_path, port, [("POST", "/payments"), ("GET", "/healthz"), ("GET", "/nothing?here=1")])
    finally:
        assert shop.stdin is not None
        shop.stdin.close()
        shop.wait(20)
    form = '{"ts_ns": $time_ns, "method": "$request_method", "target": "$request_uri", "status": $status}'
    result = run(tmp_path, "reconcile", str(to), "--access-log", str(log), "--log-format", form, "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["logged"], told["matched"]) == (0, 3, 3), told
