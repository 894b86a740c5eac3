"""Imports go one way. The table is the one in docs/architecture.md; a planted breach must be found."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("capture", "cleanse", "replay", "analytics", "mock")
GROUND = ("livefire_shadow", "wire", "mask", "bus")
#: What each room may import of the others.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "livefire_shadow": (),
    "wire": ("livefire_shadow",),
    "mask": ("livefire_shadow", "wire"),
    "bus": ("livefire_shadow", "wire"),
    **dict.fromkeys(STAGES, GROUND),
    "drill": (*GROUND, *STAGES),
    "livefire": (*GROUND, *STAGES, "drill"),
    "examples": ("livefire_shadow",),  # what is drilled knows nothing of what drills it
}
FOLDERS = {room: f"sdk/src/{room}" if room == "livefire_shadow" else room for room in MAY_IMPORT}

#: Modules that only some files may import: patterns of paths.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "faust": ("cleanse/app.py", "cleanse/faust_app.py"),
    "scapy": ("*scapy*.py",),
    "asyncio": (
        "capture/proxy.py", "capture/mirror.py", "capture/handover.py", "mock/*.py", "sdk/*.py", "cleanse/faust_app.py",
        "livefire/page*", "examples/*.py",
    ),
    "sqlite3": ("*/*sql*.py", "examples/*.py"),
    "sqlalchemy": ("*/*sql*.py", "examples/*.py"),
    "kafka": ("*/*kafka*.py",),
    "aiokafka": ("*/*kafka*.py",),
    "elasticsearch": ("*/*elastic*.py",),
    "clickhouse_driver": ("*/*clickhouse*.py",),
    "chdb": ("*/*c*h*db*.py", "*/*clickhouse*.py"),
    "bokeh": ("drill/report*.py",),
    "pickle": (),
}  # fmt: skip


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
        elif (
            isinstance(node, ast.Call)
            and (getattr(node.func, "attr", "") or getattr(node.func, "id", "")) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.lineno, str(node.args[0].value)


def breaches(root: Path) -> list[str]:
    """`path:line: what`, for every import that goes the wrong way."""
    found = []
    for room, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            for line, module in imported(path):
                top = module.partition(".")[0]
                if top in MAY_IMPORT and top != room and top not in MAY_IMPORT[room]:
                    found.append(f"{name}:{line}: {room} imports {top}")
                if top in ONLY_IN and not any(fnmatch(name, pattern) for pattern in ONLY_IN[top]):
                    found.append(f"{name}:{line}: {top} does not belong here")
    return found


def test_imports_go_one_way() -> None:
    assert breaches(ROOT) == []


def test_the_walk_sees_every_room() -> None:
    for room, folder in FOLDERS.items():
        assert (ROOT / folder).is_dir(), room
        assert list((ROOT / folder).rglob("*.py")) or room in ("examples",), room
    modules = {module.partition(".")[0] for path in (ROOT / "bus").rglob("*.py") for _, module in imported(path)}
    assert {"wire", "os"} <= modules


@pytest.mark.parametrize(
    ("path", "text", "breach"),
    [
        ("replay/feeder.py", "from capture.app import record", "replay/feeder.py:1: replay imports capture"),
        ("wire/codec.py", "import bus.ports", "wire/codec.py:1: wire imports bus"),
        ("bus/topic.py", "def f():\n    from mask import masker", "bus/topic.py:2: bus imports mask"),
        ("mask/masker.py", "import bus", "mask/masker.py:1: mask imports bus"),
        ("drill/app.py", "from livefire.settings import x", "drill/app.py:1: drill imports livefire"),
        ("sdk/src/livefire_shadow/context.py", "import wire.ids", "livefire_shadow imports wire"),
        ("analytics/app.py", "import importlib\nimportlib.import_module('drill.app')", "analytics imports drill"),
        ("examples/shop/orders.py", "import replay", "examples imports replay"),
        ("livefire/demo.py", "import examples.shop", "livefire imports examples"),
        ("cleanse/stream.py", "import faust", "cleanse/stream.py:1: faust does not belong here"),
        ("capture/source.py", "from scapy.all import sniff", "scapy does not belong here"),
        ("replay/firer.py", "import asyncio", "asyncio does not belong here"),
        ("analytics/app.py", "import sqlite3", "sqlite3 does not belong here"),
        ("bus/logfile.py", "from kafka import KafkaProducer", "kafka does not belong here"),
        ("wire/records.py", "import pickle", "pickle does not belong here"),
    ],
)
def test_a_planted_breach_is_found(tmp_path: Path, path: str, text: str, breach: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text("import os\n")
    assert breaches(tmp_path) == []
    (tmp_path / path).write_text(text)
    assert len(breaches(tmp_path)) == 1 and breach in breaches(tmp_path)[0]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cleanse/faust_app.py", "import faust, asyncio"),
        ("capture/source_scapy.py", "import scapy"),
        ("bus/kafka.py", "import kafka\nfrom wire import codec"),
        ("analytics/store_sqlite.py", "import sqlite3"),
        ("livefire/page.py", "import asyncio\nimport drill.app, replay.app, mask.masker"),
    ],
)
def test_what_is_allowed_is_not_a_breach(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert breaches(tmp_path) == []
