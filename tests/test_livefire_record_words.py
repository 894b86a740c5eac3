"""What `livefire record` says to a wrong command line: one line (what, where, what was probably meant), exit code 2."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.logfile import LogWriter
from livefire.cli import main
from livefire.recording import masked_line
from wire.account import Account
from wire.records import Manifest

WRONG: list[tuple[str, str]] = [
    ("--for 10x", "'--for': '10x' is not a duration (as in 30s, 250ms, 5m)"),
    ("--port abc", "'--port': 'abc' is not a port (1 to 65535, as in 8080)"),
    ("--port 70000", "'--port': '70000' is not a port (1 to 65535, as in 8080)"),
    ("--port 10.0.0.1:8080", "did you mean 8080?"),
    ("--port http", "did you mean 80?"),
    ("--max-cpu 0", "'--max-cpu': '0' is not above 0"),
    ("--sample 2", "'--sample': '2' is not above 0 and at most 1 (100%): did you mean 2%?"),
    ("--max-memory lots", "'--max-memory': 'lots' is not a size (as in 10MB, 64KiB)"),
    ("--max-disk 3kB", "--max-disk 3kB: at least 1MB"),
    ("--rotate 3kB --rotate 1h", "--rotate 3kB 1h: at least 100kB"),
    ("--interface nosuch", "interface 'nosuch': there is none of that name (known: "),
    ("--proxy {at}=127.0.0.1:2", "cannot listen on {at}: address already in use (by whom: ss -ltnp"),
    ("--mirror {at}", "cannot listen on {at}: address already in use"),
    ("--mirror nosuch", "'nosuch' is no address to listen on: write host:port"),
    ("--vxlan {udp}", "vxlan {udp}: cannot be listened on: address already in use"),
    ("--geneve {udp}", "(does the kernel have an interface of geneve on it?"),
    ("--vxlan :70000", "--vxlan ':70000': write where to listen, as :4789"),
    ("--host nosuch", "host 'nosuch': write an address"),
    ("--user nosuch", "user 'nosuch': there is none of that name here"),
    ("--bus bus --recording a --processes 2", "over a bus a recorder is one process: leave it out"),
]


@pytest.fixture(scope="module")
def taken() -> Iterator[dict[str, str]]:
    """An address that somebody listens on: by TCP, by UDP."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        yield {name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in (("at", tcp), ("udp", udp))}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield tmp_path
    for number, handler in kept.items():
        signal.signal(number, handler)


def said_to(line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["livefire", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, *capsys.readouterr()


@pytest.mark.parametrize(("line", "told"), WRONG, ids=[line.replace("/", ":") for line, _ in WRONG])
def test_wrong_input_is_one_line_and_exit_code_2(
    taken: dict[str, str], here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    line: str, told: str,
) -> None:  # fmt: skip
    if "--interface" in line and os.geteuid() != 0:
        pytest.skip("the ring needs root")
    where = "" if line.startswith("--bus") else "--to x.lf "
    code, out, err = said_to(f"record --unmasked --for 50ms {where}{line.format(**taken)}", monkeypatch, capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1), (code, out, err)
    assert told.format(**taken) in err
    assert list(here.iterdir()) == [], "nothing was begun"


def test_what_is_right_is_not_told_wrong(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same options, with values that can be meant."""
    line = "record --unmasked --to x.lf --vxlan 127.0.0.1:0 --for 50ms --port 8080 --max-cpu 50% --sample 20%"
    code, _, err = said_to(f"{line} --max-memory 1GB --max-disk 3MB --host ::1", monkeypatch, capsys)
    assert code == 0 and "account balanced" in err, err


def test_what_goes_on_behind_a_killed_recorder_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "record --unmasked --to x.lf --mirror 127.0.0.1:0 --for 50ms"
    with LogWriter(here / "x.lf", Manifest("raw", "0", "R", time.time_ns() - 90_000_000_000, "tests", masked=False)):
        pass  # and killed
    code, _, err = said_to(line, monkeypatch, capsys)
    assert code == 0 and "x.lf: goes on behind what is there; nobody was recording for 9" in err, err
    assert "x.lf: 0 more exchanges in" in err
    (here / "x.lf").unlink()
    code, _, err = said_to(line, monkeypatch, capsys)
    assert code == 0 and "goes on" not in err and "x.lf: 0 exchanges in" in err, err


def test_kinds_that_were_masked_come_in_one_order() -> None:
    kinds = {"masked.json": 5, "masked.header": 1, "masked.zebra": 2, "masked.cookie": 5, "masked.form": 0, "other": 3}
    want = "masked before writing: secrets in 1 header, 5 cookies, 5 JSON bodies, 2 zebra"
    for names in (kinds, reversed(kinds)):
        assert masked_line(Account({}, {name: kinds[name] for name in names})) == want
    assert masked_line(Account()) == ""
