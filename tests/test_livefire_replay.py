"""What `livefire replay` asks of the room that fires."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from recordings import even, make_clean

from bus.logfile import LogReader, LogWriter
from livefire.cli import cli
from replay import app
from replay.settings import ReplaySettings
from wire import codec


@pytest.mark.parametrize(("scale", "copies", "asked"), [(1.0, "2", 2.0), (0.5, "1", 2.0), (0.25, "2.5", 10.0)])
def test_copies_are_of_production_of_which_the_recording_holds_a_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, copies: str, asked: float
) -> None:
    path = tmp_path / "clean.lf"
    with LogReader(make_clean(tmp_path / "whole.lf", even(4, 100.0))) as reader:
        assert reader.manifest is not None
        with LogWriter(path, msgspec.structs.replace(reader.manifest, scale=scale)) as writer:
            for message in reader.read():
                if codec.decode_header(message.data).type not in (codec.RecordType.MANIFEST, codec.RecordType.END):
                    writer.write(message.data)
            writer.end(sorted=True)
    told: list[ReplaySettings] = []

    def run(settings: ReplaySettings, *_: object) -> None:
        told.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", run)
    arguments = ["--runs", str(tmp_path / "runs"), "--keys", str(tmp_path / "keys.json")]
    CliRunner().invoke(cli, [*arguments, "replay", str(path), "--target", "http://127.0.0.1:1", "--copies", copies])
    assert [settings.copies for settings in told] == [asked]
