"""Entries of HARs that were never sent, that are tunnels, or that hold what no bytes can tell: counted, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_capture_importers import har_entry, har_of, imported, run, told


def of_creator(name: str, *entries: dict[str, Any]) -> bytes:
    return json.dumps({"log": {"version": "1.2", "creator": {"name": name}, "entries": entries}}).encode()


_AFTER = {"afterRequest": {"expires": "", "lastAccess": "", "eTag": "", "hitCount": 1}}


@pytest.mark.parametrize(
    ("creator", "more", "sent"),
    [
        ("WebKit Web Inspector", {"_fetchType": "Network Load"}, True),
        ("WebKit Web Inspector", {"_fetchType": "Memory Cache"}, False),
        ("WebKit Web Inspector", {"_fetchType": "Disk Cache"}, False),
        ("WebKit Web Inspector", {"_fetchType": "Service Worker"}, True),  # it may have asked the network
        ("WebInspector", {"_fromCache": "memory"}, False),
        ("Firefox", {"cache": _AFTER, "response": {"status": 304}}, True),  # it asked whether that is new
        ("HttpWatch", {"cache": _AFTER}, True),  # what the cache holds since the answer came
    ],
)
def test_what_the_browsers_cache_answered_was_not_sent(
    tmp_path: Path, creator: str, more: dict[str, Any], sent: bool
) -> None:
    found, account = imported(tmp_path, of_creator(creator, har_entry(), har_entry(**more)))
    ledger = account.ledger("entries")
    assert len(found) == 1 + sent and ledger.seen == 2
    assert ledger.intentional == ({} if sent else {"from_cache": 1}) and ledger.drops == {}


@pytest.mark.parametrize("url", ["https://a.test:443", "https://a.test:443/", "a.test:443"])
def test_a_tunnel_is_left_out_as_of_logs(tmp_path: Path, url: str) -> None:
    found, account = imported(tmp_path, har_of(har_entry(url, request={"method": "CONNECT"}), har_entry()))
    assert len(found) == 1 and account.ledger("entries").intentional == {"connect": 1}


@pytest.mark.parametrize(
    "half", ["\ud83d", "\ude00", "\ud83d\ud83d\ude00", "\ude00\ud83d", "\ud83d\\ude00", "a\ud83d\\"]
)
def test_half_of_a_surrogate_pair_costs_its_entry(tmp_path: Path, half: str) -> None:
    """JSON of programs has it; the entries beside it are whole, also those with pairs, or what looks like an escape."""
    whole = har_entry(response={"content": {"text": "\U0001f600 \\ud83d \\\\ud83d \ufffd", "size": 9}})
    for bad in (
        har_entry(response={"content": {"text": half, "size": 3}}),
        har_entry(request={"method": "POST", "postData": {"text": half}}),
        har_entry(request={"headers": [{"name": "X-A", "value": half}]}),
        har_entry(f"https://a.test/{half}"),
    ):
        found, account = imported(tmp_path, har_of(whole, bad, whole))
        assert len(found) == 2 and account.ledger("entries").drops == {"bad_entry": 1}
        for e in found:
            assert e.response is not None and e.response.body.decode() == "\U0001f600 \\ud83d \\\\ud83d \ufffd"


def test_half_of_a_surrogate_pair_in_what_is_not_read_costs_nothing(tmp_path: Path) -> None:
    data = {"log": {"pages": [{"title": "\ud83d"}], "entries": [har_entry(_initiator={"url": "\ude00"})]}}
    found, account = imported(tmp_path, json.dumps(data).encode())
    assert len(found) == 1 and account.ledger("entries").drops == {}


def test_what_is_no_json_is_told_as_that_also_beside_such_a_half(tmp_path: Path) -> None:
    (tmp_path / "x.har").write_bytes(har_of(har_entry(request={"url": "\ud83d"}))[:-1])
    result = run(tmp_path, "import", str(tmp_path / "x.har"), "--to", str(tmp_path / "o.lf"))
    assert result.exit_code == 2 and "is no HAR" in told(result) and not (tmp_path / "o.lf").exists()
