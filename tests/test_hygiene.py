"""What must not be in any file, and what every test must do."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 400
LONG_WITH_A_REASON = {
    "capture/layers.py": "one table, and its readers, which name each other",
    "wire/records.py": "all records are one contract, read in one place",
}
# Written apart, so that this file does not find itself.
REGISTRIES = re.compile(
    "|".join(
        re.escape(name)
        for name in (
            ".".join(("pypi", "org")), "python" + "hosted", ".".join(("registry", "npmjs")), ".".join(("crates", "io")),
            ".".join(("proxy", "golang")), ".".join(("repo1", "maven")), ".".join(("repo", "maven", "apache")),
            "--index" + "-url", "--extra-index" + "-url",
        )
    )
)  # fmt: skip
MACHINE_PATHS = re.compile(r"(?<![\w.}$])/(?:wo" + r"rk/(?:main|shared|\.)|ro" + r"ot/|tm" + r"p/lf\b|ho" + r"me/\w+/)")
SKIPPED = {
    ".venv",
    ".git",
    "__pycache__",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    ".hypothesis",
    "demo",
    "runs",
    "build",
    "dist",
    ".servers",
}


def files() -> Iterator[Path]:
    """Every file of the repository: tracked, or new and not ignored."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
        found = [ROOT / name for name in listed.split("\0") if name]
    else:  # an unpacked archive
        found = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return (path for path in sorted(found) if path.is_file())


def texts() -> Iterator[tuple[str, str]]:
    for path in files():
        data = path.read_bytes()
        if b"\0" not in data and path.suffix != ".lf":
            yield path.relative_to(ROOT).as_posix(), data.decode("utf-8", "replace")


def lines_with(pattern: re.Pattern[str], all_texts: Iterator[tuple[str, str]]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in all_texts
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_names_a_package_registry() -> None:
    assert lines_with(REGISTRIES, texts()) == []
    planted = iter([("a.lock", "x\nhttps://files.python" + "hosted.org/packages/x.whl")])
    assert len(lines_with(REGISTRIES, planted)) == 1


def test_no_file_names_a_place_on_one_machine() -> None:
    assert lines_with(MACHINE_PATHS, texts()) == []
    planted = ["open('/ro" + "ot/x')", "cd /wo" + "rk/main", "/ho" + "me/anna/x"]
    assert len(lines_with(MACHINE_PATHS, iter([("a.py", "\n".join(planted))]))) == 3
    assert lines_with(MACHINE_PATHS, iter([("a.py", "GET /home HTTP/1.1\n/usr/bin/env\n${x}/ro" + "ot/y")])) == []


SUSPECT = re.compile(r"pickle|dill|shelve|marshal|unsafe|full_load|FullLoader|UnsafeLoader")


def pickles(tree: ast.AST) -> list[int]:
    banned = {"pickle", "cPickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle"}
    unsafe = {"unsafe_load", "full_load", "UnsafeLoader", "FullLoader"}  # YAML that makes any object
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and node.attr in unsafe:
            found.append(node.lineno)
        found += [node.lineno for name in names if name.partition(".")[0] in banned]  # type: ignore[attr-defined]
    return found


def test_nothing_is_pickled() -> None:
    for name, text in texts():
        if name.endswith(".py") and SUSPECT.search(text):  # parsing all files takes a second
            assert pickles(ast.parse(text, name)) == [], name
    for planted in ("import pickle", "def f():\n    from shelve import open", "yaml.unsafe_load(x)"):
        assert len(pickles(ast.parse(planted))) == 1


# ---------------------------------------------------------------------------- tests assert


def asserts_nothing(text: str) -> list[str]:
    """The test functions of a module in which nothing is asserted, neither by themselves nor by what they call."""
    tree = ast.parse(text)
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}

    def checks(node: ast.AST, seen: frozenset[str]) -> bool:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Assert):
                return True
            if not isinstance(inner, ast.Call):
                continue
            function = inner.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in ("raises", "warns", "fail", "run_state_machine_as_test") or name.startswith(
                ("assert_", "check_", "expect_")
            ):
                return True
            if name in functions and name not in seen and checks(functions[name], seen | {name}):
                return True
        return False

    return [
        name for name, node in functions.items() if name.startswith("test_") and not checks(node, frozenset({name}))
    ]


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/**/test_*.py")), ids=lambda path: path.stem)
def test_every_test_asserts_something(path: Path) -> None:
    assert asserts_nothing(path.read_text("utf-8")) == []


def test_a_test_that_asserts_nothing_is_found() -> None:
    text = (
        "def helper(): assert True\ndef idle(): pass\n"
        "def test_a(): helper()\ndef test_b(): idle()\ndef test_c():\n    with pytest.raises(E): x()\n"
        "async def test_d(): print(1)\n"
    )
    assert asserts_nothing(text) == ["test_b", "test_d"]


# ---------------------------------------------------------------------------- modules


def too_long(all_texts: Iterator[tuple[str, str]]) -> list[str]:
    return [
        f"{name}: {text.count(chr(10))} lines"
        for name, text in all_texts
        if name.endswith(".py") and not name.startswith("tests/") and text.count("\n") >= MAX_LINES
        if name not in LONG_WITH_A_REASON
    ]


def test_modules_are_short_or_have_a_reason() -> None:
    assert too_long(texts()) == []
    assert too_long(iter([("wire/x.py", "\n" * 400), ("wire/y.py", "\n" * 399)])) == ["wire/x.py: 400 lines"]
    for name in LONG_WITH_A_REASON:
        assert (ROOT / name).read_text().count("\n") >= MAX_LINES, f"{name} needs no reason any more"


def test_modules_are_named_after_what_they_hold() -> None:
    vague = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
    assert [name for name, _ in texts() if name.rpartition("/")[2] in vague] == []
    assert not list(ROOT.glob("tests/**/__init__.py")), "a package of that name would be imported instead of ours"
