"""Configuration text: every mistake is one line with its place and, where there is one, the word that was meant."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.config import ConfigError, duration_ns, load, load_file, rate_per_s, size_bytes


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Step(msgspec.Struct, forbid_unknown_fields=True, rename="kebab"):
    load: float = 1.0
    max_rate: int = 0
    hold: str = "1s"
    colour: Colour = Colour.RED
    order: Literal["up", "down"] = "up"

    def __post_init__(self) -> None:
        duration_ns(self.hold)


class Canary(msgspec.Struct, forbid_unknown_fields=True, tag="canary", tag_field="kind"):
    writes: int = 0


class Probe(msgspec.Struct, forbid_unknown_fields=True, tag="probe", tag_field="kind"):
    address: str = ""


class Plan(msgspec.Struct, forbid_unknown_fields=True):
    target: str = ""
    steps: list[Step] = []
    routes: dict[str, Step] = {}
    limits: dict[str, int] = {}
    checks: list[Canary | Probe] = []
    only: Step | None = None


CASES = [
    ("tagret: x", 'plan.yaml:1:1: unknown field \'tagret\' (did you mean \'target\'?) (at $.tagret)'),
    ("target: a\nzzzz: 1", "plan.yaml:2:1: unknown field 'zzzz' (known: checks, limits, only, routes, steps, target)"),
    ("steps:\n  - load: 1\n  - load: fast", "plan.yaml:3:5: Expected `float`, got `str` (at $.steps[1].load)"),
    ("steps:\n  - maxrate: 3", "plan.yaml:2:5: unknown field 'maxrate' (did you mean 'max-rate'?)"),
    ("steps:\n- max-rate: x", "plan.yaml:2:3: Expected `int`, got `str` (at $.steps[0].max-rate)"),
    ("routes:\n  a: {load: 1}\n  b:\n    lod: 1", "plan.yaml:4:5: unknown field 'lod' (did you mean 'load'?)"),
    ("routes:\n  a: {load: 1}\n  b:\n    load: x", "plan.yaml:4:5: Expected `float`, got `str` (at $.routes.b.load)"),
    ("limits:\n  a: 1\n  b: x", "plan.yaml:3:3: Expected `int`, got `str` (at $.limits.b)"),
    ("steps:\n- hold: 30", "plan.yaml:2:3: 30 is a number, not text: write it with its unit (as in 30s, 2x, 500/s), "
     "or in quotes (at $.steps[0].hold)"),
    ("routes:\n  a: {hold: 1s}\n  b: {hold: 0.5}", "plan.yaml:3:7: 0.5 is a number, not text: write it with its unit"),
    ("target: true", "plan.yaml:1:1: Expected `str`, got `bool` (at $.target)"),
    ("target: [a]", "plan.yaml:1:1: Expected `str`, got `array` (at $.target)"),
    ("limits: {1: 1}", "plan.yaml:1:1: Expected `str`, got `int` for a key (at $.limits)"),
    ("checks:\n- kind: probe\n  adress: x", "plan.yaml:3:3: unknown field 'adress' (did you mean 'address'?)"),
    ("only:\n  lod: 1", "plan.yaml:2:3: unknown field 'lod' (did you mean 'load'?) (at $.only.lod)"),
    ("steps:\n- colour: gren", "plan.yaml:2:3: 'gren' is not allowed (did you mean 'green'?)"),
    ("steps:\n- order: dwn", "plan.yaml:2:3: 'dwn' is not allowed (did you mean 'down'?)"),
    ("steps:\n- hold: '30'", "plan.yaml:2:3: '30' is not a duration: did you mean 30s? (at $.steps[0])"),
    ("- a", "plan.yaml:1:1: Expected `object`, got `array` (at $)"),
    ("target: a\ntarget: b", "plan.yaml:2:1: the key 'target' is given twice"),
    ("only: {load: 1, load: 2}", "plan.yaml:1:17: the key 'load' is given twice"),
    ("target: on", "plan.yaml:1:9: a bare 'on' means a boolean in YAML: write true or false, or put it in quotes"),
    ("off: 1", "plan.yaml:1:1: a bare 'off' means a boolean"),
    ("target: 22:30", "plan.yaml:1:9: a bare '22:30' means a number of base 60 in YAML: put it in quotes"),
    ("limits: {a: 010}", "plan.yaml:1:13: a bare '010' means a number of base 8"),
    ("target: [", "plan.yaml:1:10: while parsing a flow node, expected the node content, but found '<stream end>'"),
    ("a: 1\n---\nb: 2", "plan.yaml:2:1: expected a single document in the stream"),
    ("target: a\nb\0: 1", "plan.yaml:2:2: special characters are not allowed (character 0)"),
    ("? [a]\n: b", "plan.yaml:1:3: a key must be plain text"),
    ("target: !!python/object:os.system x", "plan.yaml:1:9: could not determine a constructor for the tag"),
    ("only:\n\tload: 1", "plan.yaml:2:1: while scanning for the next token, found character '\\t'"),
    ("only:\n  <<: 3", "plan.yaml:2:7: while constructing a mapping, expected a mapping or list of mappings"),
    ("<<: {target: x}\n<<: {target: y}", "plan.yaml:2:1: the key '<<' is given twice"),
    ("&a [*a]", "plan.yaml:1:1: Expected `object`, got `array`"),
    ("only: &o\n  load: *o", "plan.yaml:1:7: found unconstructable recursive node"),
    ("[" * 500, "plan.yaml: nested too deeply"),
    ("limits: {a: " + "9" * 5000 + "}", "plan.yaml:1:13: a number of 5000 digits"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), CASES, ids=[text[:24] for text, _ in CASES])
def test_a_mistake_is_one_line_with_its_place(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(text, Plan, "plan.yaml")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_what_is_right_is_read() -> None:
    text = "target: 'on'\nsteps:\n- {load: 2, max-rate: 0x10, hold: 1m30s, colour: green}\nchecks: [{kind: canary}]\n"
    plan = load(text, Plan, "plan.yaml")
    assert plan.target == "on" and plan.steps == [Step(2.0, 16, "1m30s", Colour.GREEN)]
    assert plan.checks == [Canary()]
    assert load("", Plan, "plan.yaml") == Plan()
    assert load("target: 2026-11-20", Plan, "p").target == "2026-11-20"  # dates stay text
    assert load("target: false_alarm", Plan, "p").target == "false_alarm"


def test_anchors_are_merged_and_own_keys_win() -> None:
    plan = load("routes:\n  a: &a {load: 2, max-rate: 5}\n  b:\n    <<: *a\n    load: 3\n", Plan, "plan.yaml")
    assert plan.routes["b"] == Step(3.0, 5) and plan.routes["a"] == Step(2.0, 5)


@given(st.text(max_size=60))
def test_any_text_is_a_plan_or_a_config_error(text: str) -> None:
    try:
        assert isinstance(load(text, Plan, "plan.yaml"), Plan)
    except ConfigError as error:
        assert str(error).startswith("plan.yaml") and "\n" not in str(error)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"target: caf\xe9")
    (tmp_path / "good.yaml").write_text("target: x", "utf-8")
    for path, line in (
        (tmp_path / "absent.yaml", "no such file"),
        (tmp_path, "cannot be read: is a directory"),
        (tmp_path / "latin.yaml", "is not UTF-8 text (byte 11)"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_file(path, Plan)
        assert str(caught.value) == f"{path}: {line}"
    assert load_file(tmp_path / "good.yaml", Plan).target == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [("30s", 30 * 10**9), ("250ms", 250 * 10**6), ("1.5s", 1_500_000_000), ("1m30s", 90 * 10**9), ("2h", 7200 * 10**9),
     (" 5us ", 5000), ("7ns", 7), ("0s", 0), ("9223372036.854775807s", 2**63 - 1)],
)  # fmt: skip
def test_durations(text: str, value: int) -> None:
    assert duration_ns(text) == value


@pytest.mark.parametrize(
    "text", ["", "s", "30", "-1s", "1 s", "1d", "1s!", "1.s", "1e3s", "٣s", "9" * 400 + "s", "300000000h"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError):
        duration_ns(text)


def test_sizes_and_rates() -> None:
    assert [size_bytes(text) for text in ("10MB", "64KiB", "7", "1.5 gib", "0b")] == [
        10_000_000, 65_536, 7, 1_610_612_736, 0,
    ]  # fmt: skip
    assert [rate_per_s(text) for text in ("300/s", "90/m", "4,500/s", "1_000_000 / s", "1.5/s", "36/h")] == [
        300.0, 1.5, 4500.0, 1_000_000.0, 1.5, 0.01,
    ]  # fmt: skip
    for text in ("10XB", "", "-1MB", "9" * 400):
        with pytest.raises(ConfigError):
            size_bytes(text)
    for text in ("300", "1.000.000/s", "1,5/s", "/s", "9" * 400 + "/s", "3/d"):
        with pytest.raises(ConfigError):
            rate_per_s(text)
