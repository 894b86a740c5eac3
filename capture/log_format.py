"""A `log_format` of nginx (or a LogFormat of Apache) -> what reads its lines.

The text is nginx's own: variables `$name` or `${name}` between literal text, also as a whole statement of its
configuration (`log_format main escape=json '...' '...';`). Text that is a JSON object is matched by its keys, whatever
their order. Directives of Apache (`%h`, `%{User-Agent}i`) become nginx's variables of the same meaning.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from wire.config import ConfigError, suggestion

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_STATEMENT: Final = re.compile(r"\s*log_format\s+([\w.-]+)\s+(.*?)\s*;?\s*\Z", re.DOTALL)
_QUOTED: Final = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_ESCAPE: Final = re.compile(r"\s*escape=(default|json|none)\s+(.*)\Z", re.DOTALL)
_APACHE: Final = re.compile(r"%(?:[!<>\d,]*)(?:\{([^}]*)\})?([a-zA-Z%]|\^t[io])")
_APACHE_NAMES: Final = {
    "h": "$remote_addr", "a": "$remote_addr", "l": "$logname", "u": "$remote_user", "t": "[$time_begun]",
    "r": "$request", "s": "$status", "b": "$body_bytes_sent", "B": "$body_bytes_sent",
    "O": "$bytes_sent", "I": "$request_length",
    "D": "$request_time_us", "T": "$request_time", "v": "$server_name", "V": "$host", "p": "$server_port",
    "m": "$request_method", "U": "$uri", "q": "$query_mark", "H": "$server_protocol", "A": "$server_addr",
    "f": "$request_filename", "k": "$connection_requests", "P": "$pid", "X": "$connection_state",
    "R": "$handler", "L": "$request_id", "S": "$transferred",
}  # fmt: skip
#: What values look like where the text around them does not tell where they end.
_SHAPES: Final = {
    "time_local": r"[^\]\"]{1,40}", "time_begun": r"[^\]\"]{1,40}", "status": r"\d{3}|-", "request": r".*?",
    "remote_user": r'(?:[^"\\]|\\.|""){0,2000}?', "time_iso8601": r"[0-9T:+Z.-]+", "msec": r"[0-9.]+",
}  # fmt: skip

Values = dict[str, str]


class LogFormat:
    """Reads lines of one format. `variables` are those in it, in order."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError for a text that tells of no requests."""
        self.escape = "default"
        body = _unwrapped(text)
        if found := _ESCAPE.match(body):
            self.escape, body = found[1], _joined(found[2])
        if "$" not in body and "%" in body:
            body = _from_apache(body)
        if not _VARIABLE.search(body):
            raise ConfigError(
                f"the log format {text[:60]!r} has no variable (as in '$remote_addr [$time_local] \"$request\"')"
            )
        self.variables = [one or two for one, two in _VARIABLE.findall(body)]
        self._json = _json_template(body)
        self._pattern = None if self._json is not None else _pattern(body)
        self._check()

    def _check(self) -> None:
        have = set(self.variables)
        if not ("request" in have or {"request_method", "request_uri"} <= have or {"request_method", "uri"} <= have):
            near = self._near("request")
            raise ConfigError(
                f"the log format tells no request: it needs $request, or $request_method and $request_uri{near}"
            )
        if not have & {"time_local", "time_begun", "time_iso8601", "msec", "time_ns"}:
            raise ConfigError(
                f"the log format tells no time: it needs $time_local, $time_iso8601 or $msec{self._near('time_local')}"
            )

    def _near(self, wanted: str) -> str:
        words = [wanted, "request_method", "request_uri", "time_iso8601", "msec"]
        for name in self.variables:
            if name not in words and "did you mean" in (near := suggestion(name, words)):
                return f"; ${name}{near}"
        return ""

    def read(self, line: bytes) -> Values | None:
        """Values by variable, escapes undone; None for a line that is not of this format. "-" and absent: left out."""
        text = line.decode("utf-8", "surrogateescape")
        if self._json is not None:
            return _of_json(self._json, line, text)
        assert self._pattern is not None
        match = self._pattern.match(text)
        if match is None:
            return None
        values: Values = {}
        for name, value in zip(self.variables, match.groups(), strict=True):
            if name == "body_bytes_sent" and value == "-":
                values[name] = "0"  # so Apache says it
            elif value not in ("-", "", None):
                values.setdefault(name, unescaped(value) if self.escape != "none" else value)
        return values


def unescaped(value: str) -> str:
    r"""`\xHH` of nginx and Apache as the byte, `\"`, `\\`, `\n`, `\uHHHH` of JSON."""
    return _ESCAPED.sub(_one, value) if "\\" in value else value


_ESCAPED: Final = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|(.))", re.DOTALL)
_SIMPLE: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "v": "\v"}


def _one(match: re.Match[str]) -> str:
    if match[1]:
        return bytes([int(match[1], 16)]).decode("utf-8", "surrogateescape")
    return chr(int(match[2], 16)) if match[2] else _SIMPLE.get(match[3], match[3])


def _unwrapped(text: str) -> str:
    """The format of a whole statement; plain text stays as it is."""
    statement = _STATEMENT.match(text)
    if statement is None:
        bare = text.strip("\n")
        # What stands between its name and its semicolon, with its quotes. Double ones may be the line's own.
        return _joined(bare) if bare.lstrip().startswith("'") else bare
    body = statement[2]
    if escape := _ESCAPE.match(body):
        return f"escape={escape[1]} {_joined(escape[2])}"
    return _joined(body)


def _joined(body: str) -> str:
    """Quoted pieces one after another, as nginx joins them; text without quotes around it stays."""
    if not re.fullmatch(rf"(?:\s*(?:{_QUOTED.pattern})\s*)+;?\s*", body):
        return body
    return "".join((one or two).replace("\\'", "'") for one, two in _QUOTED.findall(body))


def _from_apache(body: str) -> str:
    def variable(match: re.Match[str]) -> str:
        argument, letter = match[1], match[2]
        if letter == "%":
            return "%"
        if argument and letter in "io":
            return f"${'http' if letter == 'i' else 'sent_http'}_{argument.lower().replace('-', '_')}"
        if argument and letter == "C":
            return f"$cookie_{argument}"
        if argument and letter == "T":
            return {"us": "$request_time_us", "ms": "$request_time_ms"}.get(argument, "$request_time")
        if argument and letter == "t":
            return "${time_other}"
        return _APACHE_NAMES.get(letter, "${other}")

    return _APACHE.sub(variable, body.replace('\\"', '"'))


def _pattern(body: str) -> re.Pattern[str]:
    parts: list[str] = []
    at = 0
    matches = list(_VARIABLE.finditer(body))
    for match in matches:
        parts.append(re.escape(body[at : match.start()]))
        at = match.end()
        name, after = match[1] or match[2], body[at : at + 1]
        before = body[match.start() - 1 : match.start()]
        if before == after == '"':
            parts.append(r'((?:[^"\\]|\\.)*)')
        elif name in _SHAPES:
            parts.append(f"({_SHAPES[name]})")
        elif after == "$":
            parts.append(r"(\S*)")
        elif after in ("", " "):
            between = "," if body[at:].startswith(" :") else "(?:,| :)"
            parts.append(rf"((?>\S*[^\s,](?:{between} \S*[^\s,])+)|\S*)")  # several upstreams; whole, or one of it
        else:
            parts.append(f"([^{re.escape(after)}]*)")
    parts.append(re.escape(body[at:]) + r"\s*\Z")
    return re.compile("".join(parts), re.DOTALL)


def _json_template(body: str) -> Any:
    """The object of a format that is one: values are texts with variables; None for any other format."""
    if not body.lstrip().startswith("{"):
        return None
    bare = re.sub(r'("(?:[^"\\]|\\.)*")|\$(?:\{(\w+)\}|(\w+))', lambda m: m[1] or f'"${m[2] or m[3]}"', body)
    try:
        found = json.loads(bare)
    except ValueError:
        return None
    return _compiled(found)


def _compiled(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _compiled(value) for key, value in node.items()}
    if isinstance(node, str) and (names := [one or two for one, two in _VARIABLE.findall(node)]):
        whole = _VARIABLE.fullmatch(node)
        return (names, None if whole else _pattern(node))
    return None


def _of_json(template: Any, line: bytes, text: str) -> Values | None:
    """nginx writes bytes of a client as they are, also where they are no UTF-8: `text` has them as surrogates. Without
    escape=json it writes `\\xHH`, which no JSON has."""
    try:
        try:
            found = msgspec.json.decode(line) if _is_utf8(line) else json.loads(text)
        except ValueError:
            if "\\x" not in text:
                return None
            found = json.loads(_ESCAPED.sub(lambda m: m[0] if m[1] is None else _byte(int(m[1], 16)), text))
    except (ValueError, RecursionError):
        return None
    values: Values = {}
    return values if isinstance(found, dict) and _gather(template, found, values) else None


def _byte(value: int) -> str:
    return f"\\u{value:04x}" if value < 0x80 else chr(0xDC00 + value)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _gather(template: dict[str, Any], found: dict[str, Any], values: Values) -> bool:
    """Whether all that the format names is there, in a form that it can have."""
    for key, want in template.items():
        have = found.get(key)
        if isinstance(want, dict):
            if not isinstance(have, dict) or not _gather(want, have, values):
                return False
        elif want is not None and have is not None:
            if isinstance(have, dict | list):
                return False
            text = have if isinstance(have, str) else json.dumps(have)
            names, pattern = want
            match = pattern.match(text) if pattern is not None else None
            if pattern is not None and match is None:
                return False
            for name, value in zip(names, match.groups() if match else (text,), strict=True):
                if value not in ("-", ""):
                    values.setdefault(name, value)
    return any(key in found for key in template)
