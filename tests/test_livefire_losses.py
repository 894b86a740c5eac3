"""What a command says in the end of what was lost, and of numbers that a ring of time cannot have."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from livefire.cli import cli
from livefire.commands.show import show_account
from livefire.connections import connections_line
from livefire.losses import lost_line
from wire.account import Account, Ledger
from wire.config import ConfigError


def test_nothing_is_said_where_nothing_was_lost() -> None:
    account = Account()
    account.ledgers["packets"] = Ledger(seen=9, emitted=7, drops={"not_ip": 1}, intentional={"not_selected": 1})
    account.ledgers["bytes"] = Ledger(seen=9, emitted=4, intentional={"tls": 5})
    assert lost_line(account) == ""


def test_each_loss_is_named() -> None:
    account = Account()
    account.ledgers["packets"] = Ledger(seen=9, drops={"kernel": 2608, "max_cpu": 3, "malformed": 1})
    account.ledgers["bytes"] = Ledger(
        seen=9, drops={"shed": 9_400_000, "snaplen": 3000, "bad_head": 300_033, "after_close": 7}
    )
    account.ledgers["messages"] = Ledger(seen=9, drops={"no_room": 24})
    account.notes = {"gaps": 8, "gap_bytes": 1_566_769}
    assert lost_line(account) == (
        "lost: 2,608 packets (kernel), 9.4 MB (shed), 3.0 kB (snaplen), 300.0 kB (bad_head), 24 messages (no_room), 1.6 MB in 8 gaps; "
        "livefire show --account tells more"
    )


def test_of_a_ring_nothing_is_less_than_none(capsys: pytest.CaptureFixture[str]) -> None:
    """Connections that began in files that were removed have ended in those that are left."""
    account = Account()
    account.ledgers["connections"] = Ledger(seen=8, emitted=16, in_flight=-12, drops={"tls": 4})
    account.notes = {"connections.closed": 16, "connections.open": 4}
    assert connections_line(account) == (
        "8 connections and 12 of files that were removed = 16 closed + 4 open at the end"
    )
    show_account(account, as_json=False)
    out = capsys.readouterr().out
    assert "-12" not in out and "balanced" in out.splitlines()[-1]
    assert out.splitlines()[1].split() == ["connections", "20", "16", "4", "0", "0"]


def test_a_log_of_another_format_is_refused_however_long_it_is(tmp_path: Path) -> None:
    log, to = tmp_path / "access.log", tmp_path / "x.lf"
    log.write_text('1.2.3.4 - - [21/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 0 "-" "-"\n' * 12_000)
    asked = ["--keys", str(tmp_path / "keys"), "import", str(log), "--to", str(to)]
    refused = CliRunner().invoke(cli, [*asked, "--log-format", "$msec|$request"])
    assert isinstance(refused.exception, ConfigError) and "no line of the file" in str(refused.exception)
    assert not to.exists()
    assert CliRunner().invoke(cli, asked).exit_code == 0


def test_a_recording_of_no_time_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(cli, ["record", "--for", "0s", "--to", str(tmp_path / "x.lf")])
    assert refused.exit_code == 2 and "--for 0s: says how long" in refused.output
