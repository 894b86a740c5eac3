"""Configuration text: strict YAML, decoded into msgspec structs, with errors that say where.

YAML 1.1 has traps: `on: off` becomes `True: False`, `22:30` becomes 1350, `010` becomes 8, a key given twice
silently wins. All are refused here; dates stay text. Anchors and merges (`<<: *name`) work. Durations are
written `30s`, `250ms`, `5m`, `1h`; rates `300/s`; sizes `10MB`.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from wire.locate import locate, suggestion

__all__ = [
    "ConfigError",
    "duration_ns",
    "load",
    "load_file",
    "load_yaml",
    "rate_per_s",
    "size_bytes",
    "suggestion",
]

T = TypeVar("T")

_UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}
_NUMBER = r"[0-9]{1,19}(?:\.[0-9]{1,19})?"
_SIZES = {
    "": 1,
    "b": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}


class ConfigError(ValueError):
    """Bad configuration: one line that says what, where, and what was probably meant.

    It is a ValueError so that msgspec, when it comes out of a struct's `__post_init__`, adds where that was.
    """


def duration_ns(text: str) -> int:
    """'1.5s' -> 1_500_000_000; '1m30s' -> 90_000_000_000. Raises ConfigError."""
    text = text.strip()
    if not re.fullmatch(rf"(?:{_NUMBER}(?:ns|us|ms|s|m|h))+", text):
        hint = f": did you mean {text}s?" if re.fullmatch(_NUMBER, text) else " (as in 30s, 250ms, 5m)"
        raise ConfigError(f"{text!r} is not a duration{hint}")
    parts = re.findall(rf"({_NUMBER})(ns|us|ms|s|m|h)", text)
    return _bounded(sum(Fraction(number) * _UNITS_NS[unit] for number, unit in parts), text)


def size_bytes(text: str) -> int:
    """'10MB' -> 10_000_000; '64KiB' -> 65_536. Raises ConfigError."""
    match = re.fullmatch(rf"({_NUMBER})\s*([a-zA-Z]*)", text.strip())
    if not match or match.group(2).lower() not in _SIZES:
        raise ConfigError(f"{text!r} is not a size (as in 10MB, 64KiB)")
    return _bounded(Fraction(match.group(1)) * _SIZES[match.group(2).lower()], text)


def rate_per_s(text: str) -> float:
    """'300/s' -> 300.0; '90/m' -> 1.5; '4,500/s' -> 4500.0. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?|[0-9]{1,3}(?:[,_][0-9]{3}){1,4})\s*/\s*(s|m|h)", text.strip())
    if not match:
        raise ConfigError(f"{text!r} is not a rate (as in 300/s)")
    seconds = _UNITS_NS[match.group(2)] / 1e9
    return float(match.group(1).replace(",", "").replace("_", "")) / seconds


def _bounded(value: Fraction | int, text: str) -> int:
    if value >= 1 << 63:
        raise ConfigError(f"{text!r} is too large")
    return round(value)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and the scalars that YAML 1.1 takes for something unexpected."""


_MERGE = "tag:yaml.org,2002:merge"


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        merge = key_node.tag == _MERGE
        key = "<<" if merge else loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise _problem(key_node, "a key must be plain text")
        if key in seen:
            raise _problem(key_node, f"the key {key!r} is given twice")
        seen.add(key)
    # What is merged comes first, so that the mapping's own keys win.
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


def _boolean(loader: _StrictLoader, node: yaml.ScalarNode) -> bool:
    word = str(node.value)
    if word.lower() not in ("true", "false"):
        raise _problem(node, f"a bare {word!r} means a boolean in YAML: write true or false, or put it in quotes")
    return word.lower() == "true"


def _number(loader: _StrictLoader, node: yaml.ScalarNode) -> int | float:
    word = str(node.value)
    if ":" in word:
        raise _problem(node, f"a bare {word!r} means a number of base 60 in YAML: put it in quotes")
    if re.fullmatch(r"[-+]?0[0-7_]+", word):
        raise _problem(node, f"a bare {word!r} means a number of base 8 in YAML: put it in quotes, or drop the zero")
    if len(word) > 40:
        raise _problem(node, f"a number of {len(word)} digits")
    is_int = node.tag == "tag:yaml.org,2002:int"
    return loader.construct_yaml_int(node) if is_int else loader.construct_yaml_float(node)


def _text(loader: _StrictLoader, node: yaml.ScalarNode) -> str:
    return str(node.value)


def _problem(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _boolean)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _number)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _number)
_StrictLoader.add_constructor("tag:yaml.org,2002:timestamp", _text)


def load_yaml(text: str, source: str) -> Any:
    """Plain data of a YAML text. Raises ConfigError with `source:line:column`."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{where}: {' '.join(what.split())}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ConfigError(f"{source}:{line}:{column}: {error.reason} (character {error.character!r})") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: {' '.join(str(error).split())}") from None


def load(text: str, type: type[T], source: str) -> T:
    """A struct of a YAML text. The struct forbids unknown fields. Raises ConfigError with line and column."""
    data = load_yaml(text, source)
    try:
        return msgspec.convert({} if data is None else data, type)
    except msgspec.ValidationError as error:
        raise ConfigError(locate(str(error), text, data, type, source)) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None


def load_file(path: Path, type: type[T]) -> T:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    return load(text, type, str(path))
