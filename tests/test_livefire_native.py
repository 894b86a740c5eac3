"""What `make native` compiles, and that nothing stale of it is taken for what the sources say."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import conftest
import pytest
import setuptools

from capture import doctor, lane
from wire.compiled import LIBRARY, ROOMS, ROOT, VARIABLE, modules, stale

SUFFIX = EXTENSION_SUFFIXES[0]


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


def at(time_s: int, path: Path) -> None:
    """A file of that time."""
    path.touch()
    os.utime(path, (time_s, time_s))


def room_of(root: Path, *names: str) -> dict[str, Path]:
    """A room of a project in which each of these modules was compiled a second after it was written."""
    (root / "setup.py").touch()
    at(1001, root / f"{LIBRARY}{SUFFIX}")
    (root / "mask").mkdir()
    sources = {name: root / "mask" / f"{name}.py" for name in names}
    for source in sources.values():
        at(1000, source)
        at(999, source.with_suffix(SUFFIX))  # only refers to it, and was not made again
    return sources


def test_what_was_compiled_of_other_sources_is_told_whichever_it_is(tmp_path: Path) -> None:
    sources = room_of(tmp_path, "heads", "bodies", "values")
    assert (len(modules(tmp_path)), stale(tmp_path)) == (3, [])
    at(1002, sources["values"])
    assert stale(tmp_path) == [sources["values"]]
    sources["bodies"].unlink()
    assert stale(tmp_path) == [sources["bodies"], sources["values"]]
    other = tmp_path / "mask" / "tokens.cpython-27-other.so"  # of another interpreter: it is not imported
    other.touch()
    assert len(modules(tmp_path)) == 3


def test_the_doctor_tells_which_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert doctor.packet_path(tmp_path).says == "interpreted (compiled it takes half the CPU: make native)"
    sources = room_of(tmp_path, "heads", "values")
    assert doctor.packet_path(tmp_path) == doctor.Finding("packet path", True, "compiled")
    monkeypatch.setenv(VARIABLE, "1")
    assert doctor.packet_path(tmp_path).says == f"interpreted, as {VARIABLE} asks for"
    at(1002, sources["values"])
    assert doctor.packet_path(tmp_path).says == "interpreted: changed since it was compiled: values (make native)"


#: A compiled module in the place of `told.py` of each room: it ends the process that imports it.
_ASKED = "import wire.told, mask.told, capture.told; print(wire.told.FROM, mask.told.FROM, capture.told.FROM)"


def taken(root: Path, **environment: str) -> str:
    """What a process imports of the rooms in this folder."""
    done = subprocess.run(
        (sys.executable, "-S", "-c", _ASKED), cwd=root, env={"PYTHONPATH": str(root), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_what_is_edited_is_what_runs(tmp_path: Path) -> None:
    """All rooms are taken from their sources where one source of one room is newer, or where that is asked for."""
    for room in ROOMS:
        (tmp_path / room).mkdir()
        shutil.copy(ROOT / room / "__init__.py", tmp_path / room)
        (tmp_path / room / "told.py").write_text("FROM = 'source'\n")
        at(1000, tmp_path / room / "told.py")
        at(999, tmp_path / room / f"told{SUFFIX}")  # which is no compiled module: who imports it fails
    shutil.copy(ROOT / "wire" / "compiled.py", tmp_path / "wire")
    (tmp_path / "setup.py").touch()
    assert taken(tmp_path) == "source source source", "without what they refer to"
    at(1001, tmp_path / f"{LIBRARY}{SUFFIX}")
    assert "ImportError" in taken(tmp_path)
    assert taken(tmp_path, LIVEFIRE_INTERPRETED="1") == "source source source"
    at(1002, tmp_path / "mask" / "told.py")
    assert taken(tmp_path) == "source source source"
    (tmp_path / "setup.py").unlink()  # installed: the order in which files were unpacked tells nothing
    assert "ImportError" in taken(tmp_path)


def test_commands_take_what_is_compiled_and_tests_the_sources() -> None:
    """Unless that is asked for otherwise; of which a compiled run of the tests is one."""
    asked = "import capture.lane; print(capture.lane.__file__.endswith('.py'))"
    there = bool(modules()) and not stale()
    for environment, interpreted in (({}, not there), ({VARIABLE: "1"}, True)):
        done = subprocess.run(
            (sys.executable, "-c", asked), cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(interpreted)
    assert lane.__file__.endswith(".py") == (not conftest.COMPILED)
