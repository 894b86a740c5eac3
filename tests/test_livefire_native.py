"""What `make native` compiles, and that nothing stale of it is taken for what the sources say."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import conftest
import pytest
import setuptools

from capture import doctor, lane

ROOT = Path(__file__).resolve().parent.parent


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


def test_what_was_compiled_of_other_sources_is_not_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, compiled = tmp_path / "capture" / "lane.py", tmp_path / "capture" / "lane.cpython-311-x86_64-linux-gnu.so"
    compiled.parent.mkdir()
    for path, time_s in ((source, 1000), (compiled, 1001)):
        path.touch()
        os.utime(path, (time_s, time_s))
    monkeypatch.setattr(conftest, "ROOT", tmp_path)
    monkeypatch.setattr(conftest, "COMPILED", [compiled])
    conftest.pytest_sessionstart()
    os.utime(source, (1002, 1002))
    with pytest.raises(pytest.UsageError, match=r"lane\.py was changed since it was compiled: make native"):
        conftest.pytest_sessionstart()


def test_the_doctor_tells_which_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, compiled = tmp_path / "lane.py", tmp_path / "lane.cpython-311-x86_64-linux-gnu.so"
    for path, time_s in ((source, 1000), (compiled, 1001)):
        path.touch()
        os.utime(path, (time_s, time_s))
    monkeypatch.setattr(lane, "__file__", str(source))
    assert doctor.packet_path().says.startswith("interpreted")
    monkeypatch.setattr(lane, "__file__", str(compiled))
    assert doctor.packet_path() == doctor.Finding("packet path", True, "compiled")
    os.utime(source, (1002, 1002))
    found = doctor.packet_path()
    assert not found.good
    assert found.remedy == "make native"
