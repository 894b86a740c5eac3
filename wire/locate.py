"""Where in a YAML text a validation error is: msgspec says `$.routes[...].p99`, a user wants line and column."""

from __future__ import annotations

import difflib
import re
from typing import Any, Final

import msgspec
import yaml

_ANY: Final = object()  # `[...]`: some value of a mapping; msgspec does not say which


def suggestion(word: str, known: list[str]) -> str:
    """' (did you mean X?)', or the known words when none is near."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(sorted(known))})" if known else ""


def locate(message: str, text: str, data: Any, type: Any, source: str) -> str:
    """`source:line:column: what (at $.path)`, with a near word where a field or a choice is unknown."""
    what, _, at = message.partition(" - at ")
    of_key = at.startswith("`key` in ")
    path = at.removeprefix("`key` in ").strip("`") or "$"
    steps = _resolved(_steps(path), data, type)
    known, word = _known_at(what, steps, data, type)
    if word is not None:
        field = re.search(r"unknown field", what)
        what = (f"unknown field {word!r}" if field else f"{word!r} is not allowed") + suggestion(word, known)
        if field:
            steps = [*steps, word]
    elif of_key:
        what += " for a key"
    elif re.fullmatch(r"Expected `str( \| null)?`, got `(int|float)`", what) and len(steps) == len(_steps(path)):
        number = _at(data, steps)
        what = f"{number} is a number, not text: write it with its unit (as in 30s, 2x, 500/s), or in quotes"
    line, column = _mark(text, steps)
    return f"{source}:{line}:{column}: {what} (at {_shown(steps)})"


def _at(data: Any, steps: list[Any]) -> Any:
    """The value there."""
    for step in steps:
        data = data[step]
    return data


def _steps(path: str) -> list[Any]:
    found = re.findall(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]", path)
    return [name or (_ANY if index == "..." else int(index)) for name, index in found]


def _shown(steps: list[Any]) -> str:
    return "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)


def _resolved(steps: list[Any], data: Any, type: Any) -> list[Any]:
    """The steps with each `[...]` replaced by the first key whose value does not convert."""
    resolved: list[Any] = []
    info: Any = msgspec.inspect.type_info(type)
    for step in steps:
        info = _of_union(info, data)
        if step is _ANY:
            step = _failing_key(info, data)
            if step is None:
                break
        resolved.append(step)
        info, data = _below(info, data, step)
    return resolved


_PLAIN: Final[dict[type, Any]] = {
    msgspec.inspect.IntType: int,
    msgspec.inspect.FloatType: float,
    msgspec.inspect.StrType: str,
    msgspec.inspect.BoolType: bool,
}


def _failing_key(info: Any, data: Any) -> Any:
    """The first key of a mapping whose value does not convert; None when that cannot be told."""
    if not isinstance(data, dict):
        return None
    for key, value in data.items():
        wanted = _of_union(getattr(info, "value_type", None), value)
        try:
            msgspec.convert(value, getattr(wanted, "cls", None) or _PLAIN.get(type(wanted), Any))
        except msgspec.ValidationError:
            return key
    return None


def _below(info: Any, data: Any, step: Any) -> tuple[Any, Any]:
    try:
        value = data[step]
    except (KeyError, IndexError, TypeError):
        value = None
    info = _of_union(info, data)
    if isinstance(info, msgspec.inspect.StructType):
        return next((f.type for f in info.fields if f.encode_name == step), None), value
    return getattr(info, "item_type", None) or getattr(info, "value_type", None), value


def _of_union(info: Any, data: Any) -> Any:
    """The member of a union that the data is: by its tag, else the first struct."""
    if not isinstance(info, msgspec.inspect.UnionType):
        return info
    structs = [t for t in info.types if isinstance(t, msgspec.inspect.StructType)]
    for struct in structs:
        if struct.tag_field and isinstance(data, dict) and data.get(struct.tag_field) == struct.tag:
            return struct
    others = [t for t in info.types if not isinstance(t, msgspec.inspect.NoneType)]
    return structs[0] if structs else others[0]


def _known_at(what: str, steps: list[Any], data: Any, type: Any) -> tuple[list[str], str | None]:
    """What would have been allowed there, and the word that was not."""
    info: Any = msgspec.inspect.type_info(type)
    for step in steps:
        info, data = _below(info, data, step)
    info = _of_union(info, data)
    unknown = re.search(r"unknown field `([^`]+)`", what)
    if unknown:
        fields = info.fields if isinstance(info, msgspec.inspect.StructType) else ()
        return [f.encode_name for f in fields], unknown.group(1)
    choice = re.search(r"Invalid enum value ['\"]([^'\"]*)['\"]", what)
    if choice:
        enum = getattr(info, "cls", None)
        values = [str(m.value) for m in enum] if enum else [str(v) for v in getattr(info, "values", ())]
        return values, choice.group(1)
    return [], None


def _mark(text: str, steps: list[Any]) -> tuple[int, int]:
    node = yaml.compose(text, yaml.SafeLoader)
    mark = node.start_mark if node else None
    for step in steps:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    mark, node = key.start_mark, value
                    break
            else:
                break  # it came by a merge: the place of the mapping is the nearest there is
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)
