"""Configuration text: strict YAML, decoded into msgspec structs, with errors that say where.

YAML 1.1 has traps: `on: off` becomes `True: False`, a key given twice silently wins. Both are
refused here. Durations are written `30s`, `250ms`, `5m`, `1h`; rates `300/s`; sizes `10MB`.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T")

_UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000, "h": 3_600_000_000_000}
_SIZES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


class ConfigError(Exception):
    """Bad configuration: one line that says what, where, and what was probably meant."""


def duration_ns(text: str) -> int:
    """'1.5s' -> 1_500_000_000. Raises ConfigError."""
    total = 0
    at = 0
    for match in re.finditer(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text.strip()):
        if match.start() != at:
            break
        total += round(float(match.group(1)) * _UNITS_NS[match.group(2)])
        at = match.end()
    if at != len(text.strip()) or at == 0:
        hint = (
            f": did you mean {text.strip()}s?"
            if re.fullmatch(r"\d+(\.\d+)?", text.strip())
            else " (as in 30s, 250ms, 5m)"
        )
        raise ConfigError(f"{text!r} is not a duration{hint}")
    return total


def size_bytes(text: str) -> int:
    """'10MB' -> 10_000_000; '64KiB' -> 65_536. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not match or match.group(2).lower() not in _SIZES:
        raise ConfigError(f"{text!r} is not a size (as in 10MB, 64KiB)")
    return round(float(match.group(1)) * _SIZES[match.group(2).lower()])


def rate_per_s(text: str) -> float:
    """'300/s' -> 300.0; '90/m' -> 1.5. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:[.,_]?\d+)*)\s*/\s*(s|m|h)", text.strip())
    if not match:
        raise ConfigError(f"{text!r} is not a rate (as in 300/s)")
    seconds = _UNITS_NS[match.group(2)] / 1e9
    return float(match.group(1).replace(",", "").replace("_", "")) / seconds


def suggestion(word: str, known: list[str]) -> str:
    """' (did you mean X?)', or '' when nothing is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(sorted(known))})" if known else ""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and the bare booleans of YAML 1.1 other than true and false."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise _problem(key_node, "a key must be plain text")
        if key in seen:
            raise _problem(key_node, f"the key {key!r} is given twice")
        seen.add(key)
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


def _boolean(loader: _StrictLoader, node: yaml.ScalarNode) -> bool:
    word = str(node.value)
    if word.lower() not in ("true", "false"):
        raise _problem(node, f"a bare {word!r} means a boolean in YAML: write true or false, or put it in quotes")
    return word.lower() == "true"


def _problem(node: yaml.Node, text: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _boolean)


def load_yaml(text: str, source: str) -> Any:
    """Plain data of a YAML text. Raises ConfigError with `source:line:column`."""
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: {error}") from None


def load(text: str, type: type[T], source: str) -> T:
    """A struct of a YAML text. The struct forbids unknown fields. Raises ConfigError with line and column."""
    data = load_yaml(text, source)
    try:
        return msgspec.convert({} if data is None else data, type)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(str(error), text, source, type)) from None


def load_file(path: Path, type: type[T]) -> T:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return load(text, type, str(path))


def _located(message: str, text: str, source: str, type: Any) -> str:
    """Put line and column to msgspec's `- at `$.steps[1].rate``, and a near word to an unknown field."""
    what, _, at = message.partition(" - at `")
    path = at.rstrip("`") or "$"
    unknown = re.search(r"unknown field `(\w+)`", what)
    steps: list[str | int] = [
        int(index) if index else name for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path) if name or index
    ]
    if unknown:
        word = unknown.group(1)
        known = _fields_at(type, steps)
        what = f"unknown field {word!r}{suggestion(word, known)}"
        steps.append(word)
    line, column = _mark(text, steps)
    return f"{source}:{line}:{column}: {what} (at {path})"


def _fields_at(type: Any, steps: list[str | int]) -> list[str]:
    info: Any = msgspec.inspect.type_info(type)
    for step in [*steps, None]:
        while isinstance(info, msgspec.inspect.UnionType):
            structs = [t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)]
            info = structs[0] if structs else None
        if step is None:
            break
        if isinstance(info, msgspec.inspect.StructType) and isinstance(step, str):
            found = [f.type for f in info.fields if f.encode_name == step]
            info = found[0] if found else None
        elif hasattr(info, "item_type"):
            info = info.item_type
        elif hasattr(info, "value_type"):
            info = info.value_type
        else:
            info = None
    return [f.encode_name for f in info.fields] if isinstance(info, msgspec.inspect.StructType) else []


def _mark(text: str, steps: list[str | int]) -> tuple[int, int]:
    node = yaml.compose(text, yaml.SafeLoader)
    mark = node.start_mark if node else None
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == step:
                    mark, node = key.start_mark, value
                    break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
