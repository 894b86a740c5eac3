"""A `log_format` of nginx (or a LogFormat of Apache) -> what reads its lines.

The text is nginx's own: variables `$name` or `${name}` between literal text, also as a whole statement of its
configuration (`log_format main escape=json '...' '...';`). Text that is a JSON object is matched by its keys, whatever
their order. Directives of Apache (`%h`, `%{User-Agent}i`) become nginx's variables of the same meaning (apache_format).
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from capture.apache_format import Clock, is_apache, translated
from wire.config import ConfigError, suggestion

_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_STATEMENT: Final = re.compile(r"\s*log_format\s+([\w.-]+)\s+(.*?)\s*;?\s*\Z", re.DOTALL)
_QUOTED: Final = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_COMMENT: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|#[^\n]*""", re.DOTALL)
_WHOLE: Final = re.compile(r'\s*"(?:[^"\\]|\\.)*"\s*;?\s*\Z', re.DOTALL)
#: What nginx undoes in a quoted string of its configuration.
_CONFIGURED: Final = re.compile(r"""\\(["'\\trn])""")
_ESCAPE: Final = re.compile(r"\s*escape=(default|json|none)\s+(.*)\Z", re.DOTALL)
#: What values look like where the text around them does not tell where they end.
_SHAPES: Final = {
    "time_local": r"[^\[\]\"]{1,40}", "time_begun": r"[^\[\]\"]{1,40}", "status": r"\d{3}|-", "request": r".*?",
    "remote_user": r'(?:[^"\\]|\\.|""){0,2000}?', "time_iso8601": r"[0-9T:+Z.-]+", "msec": r"[0-9.]+",
}  # fmt: skip

_IP: Final = r"\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+|unix:"
_LISTS: Final = ("upstream_", "http_", "sent_http_", "proxy_")  # of several servers, or as headers have them
_ADDRESSES: Final = frozenset({"remote_addr", "realip_remote_addr", "server_addr"})
_REQUESTS: Final = ("request", "request_method", "request_uri")
_TIMES: Final = ("time_local", "time_iso8601", "msec")
#: Names that are right, and near to those that a format lacks.
_RIGHT: Final = frozenset({*_REQUESTS, *_TIMES, "uri", "request_time", "request_length", "request_id", "request_body"})

Values = dict[str, str]


class LogFormat:
    """Reads lines of one format. `variables` are those in it, in order."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError for a text that tells of no requests."""
        self.escape = "default"
        self._clock: Clock | None = None
        shapes: dict[str, str] = {}
        if apache := is_apache(text):
            body, self._clock, shapes = translated(text)
        else:
            body = _unwrapped(text)
            if found := _ESCAPE.match(body):
                self.escape, body = found[1], _joined(found[2])
        if not _VARIABLE.search(body):
            raise ConfigError(
                f"the log format {text[:60]!r} has no variable (as in '$remote_addr [$time_local] \"$request\"')"
            )
        self.variables = [one or two for one, two in _VARIABLE.findall(body)]
        self._json = _json_template(body, shapes)
        # Where a header without quotes holds spaces, addresses tell where it ends.
        strict = not _ADDRESSES.isdisjoint(self.variables)
        self._patterns = [_pattern(body, shapes, exact) for exact in ((True, False) if strict else (False,))]
        self._check(apache)

    def _check(self, apache: bool) -> None:
        have = set(self.variables)
        if not ("request" in have or {"request_method", "request_uri"} <= have or {"request_method", "uri"} <= have):
            needs = "%r, or %m and %U" if apache else "$request, or $request_method and $request_uri"
            raise ConfigError(f"the log format tells no request: it needs {needs}{self._near(_REQUESTS)}")
        if not have & {*_TIMES, "time_begun", "time_ns"} and not (self._clock is not None and self._clock.whole):
            needs = "%t" if apache else "$time_local, $time_iso8601 or $msec"
            raise ConfigError(f"the log format tells no time: it needs {needs}{self._near(_TIMES)}")

    def _near(self, words: tuple[str, ...]) -> str:
        for name in self.variables:
            if name not in _RIGHT and "did you mean" in (near := suggestion(name, [*words])):
                return f"; ${name}{near}"
        return ""

    def read(self, line: bytes) -> Values | None:
        """Values by variable, escapes undone; None for a line that is not of this format. "-" and absent: left out."""
        text = line.decode("utf-8", "surrogateescape")
        values = self._of_text(text) if self._json is None else _of_json(self._json, line, text)
        if values is not None and self._clock is not None:
            self._clock.put(values)
        return values

    def _of_text(self, text: str) -> Values | None:
        match = next((found for pattern in self._patterns if (found := pattern.match(text)) is not None), None)
        if match is None:
            return None
        values: Values = {}
        for name, value in zip(self.variables, match.groups(), strict=True):
            if value is not None:
                _put(values, name, unescaped(value) if self.escape != "none" else value)
        return values


def _put(values: Values, name: str, value: str) -> None:
    if name == "body_bytes_sent" and value == "-":
        value = "0"  # so Apache says it
    if value not in ("-", ""):
        values.setdefault(name, value)
    elif name == "server_protocol":
        values.setdefault(name, "")  # of a request without a version


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
    statement = _STATEMENT.match(_COMMENT.sub(lambda match: match[1] or "", text))
    if statement is None:
        bare = text.strip("\n")
        # What stands between its name and its semicolon, with its quotes. Double ones may be the line's own.
        quoted = bare.lstrip().startswith("'") or ('\\"' in bare and _WHOLE.match(bare) is not None)
        return _joined(bare) if quoted else bare
    body = statement[2]
    if escape := _ESCAPE.match(body):
        return f"escape={escape[1]} {_joined(escape[2])}"
    return _joined(body)


def _joined(body: str) -> str:
    """Quoted pieces one after another, as nginx joins them; text without quotes around it stays."""
    if not re.fullmatch(rf"(?:\s*(?:{_QUOTED.pattern})\s*)+;?\s*", body):
        return body
    return "".join(_CONFIGURED.sub(_control, one or two) for one, two in _QUOTED.findall(body))


def _control(match: re.Match[str]) -> str:
    return _SIMPLE.get(match[1], match[1])


def _pattern(body: str, shapes: dict[str, str], exact: bool = False) -> re.Pattern[str]:
    """`exact`: addresses are addresses, not names."""
    parts: list[str] = []
    at = 0
    spaced = False  # a header without quotes that may hold anything is there
    matches = list(_VARIABLE.finditer(body))
    for number, match in enumerate(matches):
        parts.append(re.escape(body[at : match.start()]))
        at = match.end()
        name, after = match[1] or match[2], body[at : at + 1]
        before = body[match.start() - 1 : match.start()]
        if name in shapes:
            parts.append(f"({shapes[name]})")
        elif before == after == '"':
            parts.append(r'((?:[^"\\]|\\.)*)')
        elif name in _SHAPES:
            parts.append(f"({_SHAPES[name]})")
        elif exact and name in _ADDRESSES:
            parts.append(f"({_IP})")
        elif exact and name == "logname":
            parts.append(rf"((?!(?:{_IP}) )\S+)")
        elif after == "$":
            parts.append(r"(\S*)")
        elif after in ("", " "):
            between = "," if body[at:].startswith(" :") else "(?:,| :)"
            follows = matches[number + 1] if number + 1 < len(matches) else None
            ended = follows is not None and follows.start() == at + 1 and (follows[1] or follows[2]) in _ADDRESSES
            free = exact and ended and name.startswith("http_") and not spaced
            spaced = spaced or free  # two of them would divide a line in too many ways
            # A list, as of several upstreams, is taken whole or, where a literal divides it, for one of it.
            listed = rf"(?>\S*[^\s,](?:{between} \S*[^\s,])+)|" if name.startswith(_LISTS) else ""
            parts.append(rf"({listed}\S*" + ("|.*)(?<!,)" if free else ")"))
        else:
            parts.append(f"([^{re.escape(after)}]*)")
    parts.append(re.escape(body[at:]) + r"\s*\Z")
    return re.compile("".join(parts), re.DOTALL)


def _json_template(body: str, shapes: dict[str, str]) -> Any:
    """The object of a format that is one: values are texts with variables; None for any other format."""
    if not body.lstrip().startswith("{"):
        return None
    bare = re.sub(r'("(?:[^"\\]|\\.)*")|\$(?:\{(\w+)\}|(\w+))', lambda m: m[1] or f'"${m[2] or m[3]}"', body)
    try:
        found = json.loads(bare)
    except ValueError:
        return None
    return _compiled(found, shapes)


def _compiled(node: Any, shapes: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {key: _compiled(value, shapes) for key, value in node.items()}
    if isinstance(node, str) and (names := [one or two for one, two in _VARIABLE.findall(node)]):
        whole = _VARIABLE.fullmatch(node)
        return (names, None if whole else _pattern(node, shapes))
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
                _put(values, name, value)
    return any(key in found for key in template)
