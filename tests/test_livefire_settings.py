"""Settings: the later origin wins, and each value knows where it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from livefire import settings
from wire.config import ConfigError


def test_later_origins_win(tmp_path: Path) -> None:
    (tmp_path / "livefire.yaml").write_text("runs: from-file\nkeys: from-file\nlog_level: info\n")
    environment = {"LIVEFIRE_KEYS": "from-environment", "LIVEFIRE_LOG_LEVEL": "debug"}
    found = settings.resolve(environment, {"log_level": "error"}, tmp_path)
    assert found.settings == settings.Settings(runs="from-file", keys="from-environment", log_level="error")
    assert found.origins["runs"].endswith("livefire.yaml")
    assert found.origins["keys"] == "environment LIVEFIRE_KEYS"
    assert found.origins["log_level"] == "option --log-level"
    assert found.origins["log_format"] == "default"


def test_an_unknown_setting_is_told_with_its_place_and_the_near_word(tmp_path: Path) -> None:
    (tmp_path / "livefire.yaml").write_text("runs: x\nlog_levle: info\n")
    with pytest.raises(ConfigError, match=r"livefire\.yaml:2:1: unknown field 'log_levle' \(did you mean 'log_level'"):
        settings.resolve({}, {}, tmp_path)


def test_a_wrong_value_is_told_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="environment LIVEFIRE_LOG_FORMAT: log_format is 'xml', not one of text, json"
    ):
        settings.resolve({"LIVEFIRE_LOG_FORMAT": "xml"}, {}, tmp_path)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        settings.resolve({"LIVEFIRE_CONFIG": str(tmp_path / "absent.yaml")}, {}, tmp_path)
