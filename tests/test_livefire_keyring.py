"""Key files: private, whole or not at all, never shown by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from livefire import keyring
from livefire.cli import cli
from wire.config import ConfigError


def test_a_key_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    ring, made = keyring.load_or_make(path)
    assert made
    assert path.stat().st_mode & 0o777 == 0o600
    assert keyring.load_or_make(path) == (ring, False)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keyring.save(path, keyring.new())
    os.chmod(path, 0o644)
    with pytest.raises(ConfigError, match=r"others can read.*chmod 600"):
        keyring.load(path)


@pytest.mark.parametrize("text", ["", "{}", '{"masking": "zz", "markers": []}', '{"masking": "00", "markers": []}'])
def test_what_is_no_key_file_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as error:
        keyring.load(path)
    assert "not a key file" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_fingerprint_does_not_contain_the_key() -> None:
    ring = keyring.new()
    shown = keyring.fingerprint(ring.masking)
    assert shown not in ring.masking
    assert keyring.fingerprint(ring.masking) == shown
    assert keyring.fingerprint(keyring.new().masking) != shown


def test_a_rotated_marker_signs_and_the_old_one_still_verifies() -> None:
    ring = keyring.new()
    turned = keyring.Keyring(ring.masking, (keyring.new_marker_key(), *ring.markers))
    assert turned.marker.id != ring.marker.id
    assert ring.shadow_keys() in turned.shadow_keys()


@pytest.mark.parametrize("argument", [[], ["-"], ["ab" * 32]])
def test_a_masking_key_is_taken_over_from_stdin(tmp_path: Path, argument: list[str]) -> None:
    """Not from the command line, which everybody on the machine can read; though that works too."""
    path = tmp_path / "keys.json"
    markers = keyring.load_or_make(path)[0].markers
    told = CliRunner().invoke(cli, ["--keys", str(path), "keys", "import", *argument], input="ab" * 32 + "\n")
    assert told.exit_code == 0, told.output
    assert keyring.load(path) == keyring.Keyring("ab" * 32, markers)
    assert "ab" * 32 not in told.output
    wrong = CliRunner().invoke(cli, ["--keys", str(path), "keys", "import"], input="")
    assert wrong.exit_code == 2 and keyring.load(path).masking == "ab" * 32
