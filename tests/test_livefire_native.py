"""What `make native` compiles, and that nothing stale of it is taken for what the sources say."""

from __future__ import annotations

import os
import runpy
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import conftest
import pytest
import setuptools

from capture import doctor
from capture.compiled import ROOT, compiled, stale


def named(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    rooms: dict[str, str] = runpy.run_path(str(ROOT / "setup.py"))["COMPILED"]
    return [ROOT / room / f"{name}.py" for room, names in rooms.items() for name in names.split()]


def test_what_is_compiled_is_there_and_holds_no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = named(monkeypatch)
    assert ROOT / "capture" / "lane.py" in paths
    for path in paths:
        assert "msgspec.field(" not in path.read_text()  # compiled, its class would be made without it


def test_nothing_is_compiled_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(setuptools, "setup", lambda ext_modules: asked.append(ext_modules))
    monkeypatch.delenv("LIVEFIRE_NATIVE", raising=False)
    runpy.run_path(str(ROOT / "setup.py"))
    assert asked == [[]]


def room_of(root: Path, *names: str) -> dict[str, Path]:
    """A room in which each of these modules was compiled a second after it was written."""
    (root / "mask").mkdir()
    sources = {name: root / "mask" / f"{name}.py" for name in names}
    for source in sources.values():
        for path, time_s in ((source, 1000), (source.with_suffix(EXTENSION_SUFFIXES[0]), 1001)):
            path.touch()
            os.utime(path, (time_s, time_s))
    return sources


def test_what_was_compiled_of_other_sources_is_told_whichever_it_is(tmp_path: Path) -> None:
    sources = room_of(tmp_path, "heads", "bodies", "values")
    assert (len(compiled(tmp_path)), stale(tmp_path)) == (3, [])
    os.utime(sources["values"], (1002, 1002))
    assert stale(tmp_path) == [sources["values"]]
    sources["bodies"].unlink()
    assert stale(tmp_path) == [sources["bodies"], sources["values"]]
    other = tmp_path / "mask" / "tokens.cpython-27-other.so"  # of another interpreter: it is not imported
    other.touch()
    assert len(compiled(tmp_path)) == 3


def test_it_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = room_of(tmp_path, "heads")
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    monkeypatch.setattr(conftest, "stale", lambda: stale(tmp_path))
    conftest.pytest_sessionstart()
    os.utime(sources["heads"], (1002, 1002))
    with pytest.raises(pytest.UsageError, match=r"mask/heads\.py was changed since it was compiled: make native"):
        conftest.pytest_sessionstart()


def test_the_doctor_tells_which_it_is(tmp_path: Path) -> None:
    assert doctor.packet_path(tmp_path).says.startswith("interpreted")
    sources = room_of(tmp_path, "heads", "values")
    assert doctor.packet_path(tmp_path) == doctor.Finding("packet path", True, "compiled")
    os.utime(sources["values"], (1002, 1002))
    found = doctor.packet_path(tmp_path)
    assert not found.good
    assert found.says.endswith("changed since: values")
    assert found.remedy.startswith("make native")
