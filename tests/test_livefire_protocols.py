"""The account names other protocols for a user; each name is in docs/recording.md."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from pcap_build import Conversation, write
from test_capture_other import PROTOCOLS

from livefire import protocols
from livefire.cli import cli
from livefire.protocols import other_protocols
from wire.account import Account

DOCS = Path(__file__).resolve().parent.parent / "docs" / "recording.md"


def test_what_is_printed_of_a_capture_without_http(tmp_path: Path) -> None:
    packets = []
    for index, (name, port) in enumerate((("tls", 443), ("tls", 443), ("redis", 6379), ("smtp", 25))):
        _, _, client, server, first = PROTOCOLS[name]
        talk = Conversation(("10.0.0.1", 1000 + index), ("10.0.0.2", port)).open()
        for side in (first, 1 - first):
            talk.send(side, server if side else client)
        packets += talk.close().packets
    capture = write(tmp_path / "x.pcap", packets)
    done = CliRunner().invoke(cli, ["import", str(capture), "--to", str(tmp_path / "x.lf"), "--unmasked"])
    assert done.exit_code == 0, done.output
    assert "there was TLS on port 443: 2 connections" in done.output
    shown = CliRunner().invoke(cli, ["show", "--account", str(tmp_path / "x.lf")])
    lines = shown.output.splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith("other protocols, not recorded"))
    assert protocols.WHERE in lines[at]
    assert lines[at + 1 : at + 5] == [
        "  TLS on port 443: 2 connections",
        "  Redis on port 6379: 1 connection",
        "  a protocol that is not known on port 25: 1 connection",
        "  TLS by server name: api.example.com 2",
    ]
    assert not any("other.tls" in line for line in lines)


def test_a_recording_of_http_alone_says_nothing_of_others() -> None:
    assert other_protocols(Account(notes={"gaps": 1})) == []


def test_many_are_shortened() -> None:
    notes = (
        {f"other.redis.{port}": 1 for port in range(20)}
        | {f"sni.h{n}.example": n for n in range(1, 9)}
        | {"sni.more": 99}
    )
    lines = other_protocols(Account(notes=notes))
    assert len(lines) == 14
    assert lines[-2] == "... and 8 more of port and protocol"
    assert lines[-1].startswith("TLS by server name: h8.example 8, ") and lines[-1].endswith("and 4 more names")


def test_each_name_is_explained() -> None:
    text = DOCS.read_text()
    section = text[text.index("## Other protocols") :]
    for name in protocols._NAMES.values():
        assert name.partition(" (")[0] in section, name
