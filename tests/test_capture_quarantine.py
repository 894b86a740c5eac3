"""What could be read in two ways, all the way: captured, cleansed, replayed at a server that counts what it gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from http_target import Target
from pcap_build import Conversation, write
from test_capture_pair import answer, assembled, get
from test_capture_tcp import overlapping, smuggling

from livefire.cli import cli
from wire.records import Fault, Mode


def fired(tmp_path: Path, talk: Conversation) -> list[str]:
    """The paths that a replay of this conversation asks the target for."""
    common = ["--runs", str(tmp_path / "runs"), "--keys", str(tmp_path / "keys.json")]
    capture, raw, clean = write(tmp_path / "x.pcap", talk.packets), tmp_path / "raw.lf", tmp_path / "clean.lf"
    target = Target(tmp_path)
    try:
        for command in (
            ["import", str(capture), "--to", str(raw)],
            ["cleanse", str(raw), "--to", str(clean)],
            ["replay", str(clean), "--target", target.url, "--speed", "10", "--disposable-target"],
        ):
            result = CliRunner().invoke(cli, [*common, *command])
            assert result.exception is None or isinstance(result.exception, SystemExit), result.output
            assert result.exit_code != 2, result.output
        return [request["path"] for request in target.requests()]
    finally:
        target.kill()


@pytest.mark.parametrize(
    ("what", "paths"),
    [("request", ["/clean"]), ("answer", ["/clean"]), ("nowhere", ["/pay", "/clean"])],
)
def test_overlaps_that_differ_are_never_replayed(what: str, paths: list[str], tmp_path: Path) -> None:
    assert fired(tmp_path, overlapping(what)) == paths


def test_what_may_be_smuggled_is_never_replayed(tmp_path: Path) -> None:
    assert fired(tmp_path, smuggling(waits=False)) == ["/later"]
    plain = Conversation().open().client(get("/admin")).server(answer(b"b")).ack(0)
    (tmp_path / "plain").mkdir()
    assert fired(tmp_path / "plain", plain.close()) == ["/admin"]


@pytest.mark.parametrize("how", ["lost", "never"])
def test_a_request_of_which_only_half_the_head_was_seen_is_told_and_never_replayed(how: str, tmp_path: Path) -> None:
    talk = Conversation().open().client(get("/whole")).server(answer(b"a")).ack(0)
    talk.client(b"GET /half HTTP/1.1\r\nHost: h\r\nCookie: sid=abc")
    if how == "lost":
        talk.client(b"def\r\n\r\n").server(answer(b"b")).ack(0)
        talk.packets.pop(-3)
        talk.client(get("/later")).server(answer(b"c")).ack(0)
    talk.close()
    found, assembler = assembled(talk)
    assert [e.request.head.split(b" ")[1] for e in found][:2] == [b"/whole", b"/half"]
    half = found[1]
    assert half.mode is Mode.OPAQUE and Fault.UNFINISHED in half.faults
    assert half.request.head == b"GET /half HTTP/1.1\r\nHost: h\r\n"  # whole lines: no half of a value is kept
    assert (half.response is not None) == (how == "lost")
    assert (Fault.GAP in half.faults) == (how == "lost")
    assert "unfinished_head" not in assembler.account.ledger("bytes").drops
    assert fired(tmp_path, talk) == (["/whole", "/later"] if how == "lost" else ["/whole"])
