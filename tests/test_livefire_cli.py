"""The command line: every command has help with an example, wrong input is one line and exit code 2."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from recordings import even, make_clean

from bus import frames
from livefire.cli import COMMANDS, SUMMARIES

ROOT = Path(__file__).parent.parent


def header_of(version: int) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FILE_VERSION", version)
        return frames.file_header(1)


FUTURE = header_of(99) + bytes(64)


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "livefire", *arguments], capture_output=True, text=True, cwd=folder, timeout=60
    )


def leaves(name: str) -> list[tuple[str, click.Command]]:
    command = importlib.import_module(COMMANDS[name]).command
    if isinstance(command, click.Group):
        return [(f"{name} {sub}", found) for sub, found in command.commands.items()]
    return [(name, command)]


ALL = [leaf for name in COMMANDS for leaf in leaves(name)]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_help_has_an_example_and_every_option_a_text(name: str, command: click.Command) -> None:
    assert f"livefire {name}" in (command.help or ""), f"the help of {name} shows no example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} says nothing"


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_command_and_option_is_in_the_documentation(name: str, command: click.Command) -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    section = next((s for s in sections if s.startswith(f"`livefire {name.split()[0]}")), None)
    assert section, f"docs/cli.md has no section `livefire {name.split()[0]}`"
    assert f"livefire {name}" in section
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"`{parameter.opts[0]}" in section, f"docs/cli.md does not tell of {name} {parameter.opts[0]}"


def test_summaries_cover_the_commands() -> None:
    assert list(SUMMARIES) == list(COMMANDS)


def test_a_word_that_is_no_command_gets_the_near_one() -> None:
    result = run("recrod")
    assert result.returncode == 2
    assert result.stderr == "livefire: no command 'recrod' (did you mean 'record'?)\n"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.lf", None, "no such file"),
        ("short.lf", b"LIVE", "holds no manifest"),
        ("foreign.lf", b"\x7fELF" + bytes(64), "not a Livefire file"),
        ("capture.lf", b"\xd4\xc3\xb2\xa1" + bytes(64), "livefire import"),
        ("future.lf", FUTURE, "newer than this program reads"),
    ],
    ids=["absent", "short", "foreign", "capture", "future"],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    result = run("show", str(path), "--json")
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert told in lines[-1]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are UTF-8")
def test_a_name_that_is_not_utf8_is_recorded_and_shown_or_is_one_line(tmp_path: Path) -> None:
    raw, clean = (tmp_path / os.fsdecode(name) for name in (b"raw\xff.lf", b"clean\xff.lf"))
    make_clean(clean, even(2, 10.0))
    recorded = run("record", "--mirror", "127.0.0.1:0", "--for", "50ms", "--to", str(raw), folder=tmp_path)
    assert recorded.returncode == 0, recorded.stderr
    shown = subprocess.run([sys.executable, "-m", "livefire", "show", str(raw)], capture_output=True, timeout=60)
    assert shown.returncode == 0 and b"raw\xff.lf: raw recording" in shown.stdout
    replayed = run("replay", str(clean), "--target", "http://127.0.0.1:1", folder=tmp_path)
    assert replayed.returncode == 2 and "Traceback" not in replayed.stderr
    assert "clean\\udcff.lf: this name is not UTF-8; rename it" in replayed.stderr.splitlines()[-1]


def test_no_run_yet_is_one_line(tmp_path: Path) -> None:
    for command in ("windows", "outcomes", "report", "stop"):
        result = run(command, folder=tmp_path)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert "no run yet" in result.stderr
