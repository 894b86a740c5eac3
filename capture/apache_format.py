"""A LogFormat of Apache -> the text of nginx that means the same, and the times that only Apache can put together.

The text is Apache's own: directives (`%h`, `%{User-Agent}i`) between literal text, as a whole statement (`LogFormat
"..." combined`, `CustomLog FILE "..."`), as its quoted string, or bare. A time may be of several directives: `%{%F
%T}t.%{msec_frac}t %{%z}t`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import msgspec

from wire.config import ConfigError

_STATEMENT: Final = re.compile(
    r"""\s*(?:LogFormat|CustomLog\s+(?:"(?:[^"\\]|\\.)*"|\S+))\s+(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')(?:\s.*)?\Z""",
    re.DOTALL | re.IGNORECASE,
)
_NAMED: Final = re.compile(r"\s*(?:LogFormat|CustomLog)\s", re.IGNORECASE)
_QUOTED: Final = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')\s*\Z""", re.DOTALL)
_ESCAPED: Final = re.compile(r"""\\(["'\\trn])""")
_CONTROLS: Final = {"t": "\t", "r": "\r", "n": "\n"}
_DIRECTIVE: Final = re.compile(r"%(?:[!<>\d,]*)(?:\{([^}]*)\})?([a-zA-Z%]|\^t[io])")
_NAMES: Final = {
    "h": "remote_addr", "a": "remote_addr", "l": "logname", "u": "remote_user", "r": "request", "s": "status",
    "b": "body_bytes_sent", "B": "body_bytes_sent", "O": "bytes_sent", "I": "request_length",
    "D": "request_time_us", "T": "request_time", "v": "server_name", "V": "host", "p": "server_port",
    "m": "request_method", "U": "uri", "q": "query_mark", "H": "server_protocol", "A": "server_addr",
    "f": "request_filename", "k": "connection_requests", "P": "pid", "X": "connection_state",
    "R": "handler", "L": "request_id", "S": "transferred",
}  # fmt: skip

#: ns of what a directive counts; those that end in `_frac` are added to a time of seconds.
_UNITS: Final = {
    "sec": 1_000_000_000, "msec": 1_000_000, "usec": 1000, "msec_frac": 1_000_000, "usec_frac": 1000,
}  # fmt: skip
_LONG: Final = {"%T": "%H:%M:%S", "%D": "%m/%d/%y", "%F": "%Y-%m-%d", "%R": "%H:%M", "%e": "%d", "%h": "%b"}
_DIGITS: Final = r"[ \d]?\d"
_SHAPES: Final = {
    "Y": r"\d{4}", "b": r"[^\W\d_]{2,12}\.?", "B": r"[^\W\d_]{2,12}", "a": r"[^\W\d_]{2,12}\.?", "A": r"[^\W\d_]{2,12}",
    "p": r"[AP]M", "z": r"[+-]\d\d:?\d\d", "j": r"\d{3}", "d": _DIGITS, "m": _DIGITS, "H": _DIGITS, "I": _DIGITS,
    "M": _DIGITS, "S": _DIGITS, "y": r"\d\d", "%": "%",
}  # fmt: skip


class Clock(msgspec.Struct):
    """The directives of a time, by variable: a unit, or what strptime knows. A time is of the begin or of the end."""

    begun: bool = True
    units: dict[str, str] = {}
    texts: dict[str, str] = {}

    @property
    def whole(self) -> bool:
        """Whether it tells a time, not parts of seconds alone."""
        return bool(self.texts) or any(not unit.endswith("_frac") for unit in self.units.values())

    def check(self) -> None:
        form = " ".join(self.texts.values())
        try:
            datetime.strptime("", form)
        except re.error:
            raise ConfigError(
                f"the log format has times that cannot be read, {form!r}: a part of it is there twice"
            ) from None
        except ValueError:
            pass  # an empty time is none

    def put(self, values: dict[str, str]) -> None:
        """The time of a line under one name; "" is no time."""
        parts = {name: values.pop(name, "") for name in (*self.units, *self.texts)}
        if not self.whole:
            return
        counted = self._finest(whole=True)
        at = _counted(parts[counted], self.units[counted]) if counted else None
        if not counted:
            at = _parsed(" ".join(parts[name] for name in self.texts), " ".join(self.texts.values()))
            if not any("%z" in text for text in self.texts.values()):
                values["time_without_zone"] = "1"
        fraction = self._finest(whole=False) if not counted or self.units[counted] == "sec" else ""
        more = _counted(parts[fraction], self.units[fraction]) if fraction else 0
        values["time_begun_ns" if self.begun else "time_ns"] = "" if at is None or more is None else str(at + more)

    def _finest(self, *, whole: bool) -> str:
        """A format may tell a time several times; the finest one holds. "" where there is none."""
        names = [name for name, unit in self.units.items() if unit.endswith("_frac") != whole]
        return min(names, key=lambda name: _UNITS[self.units[name]], default="")


def is_apache(text: str) -> bool:
    return _NAMED.match(text) is not None or ("$" not in text and "%" in text)


def translated(text: str) -> tuple[str, Clock, dict[str, str]]:
    """nginx's text, the time of it that has several directives, and the shapes of these. Raises ConfigError."""
    found = _STATEMENT.match(text) or _QUOTED.match(text)
    if found is None and _NAMED.match(text):
        raise ConfigError(
            f"the log format {text[:60]!r} has no format in quotes: give the LogFormat of that name, as in "
            '\'LogFormat "%h %l %u %t \\"%r\\" %>s %b" common\''
        )
    body = text if found is None else found[1] if found[1] is not None else found[2]
    # mod_log_config undoes these whether the configuration had quotes around them or not.
    body = _ESCAPED.sub(lambda match: _CONTROLS.get(match[1], match[1]), body)
    clock, shapes = Clock(), dict[str, str]()
    clocks = {"begun": clock, "ended": Clock(begun=False)}

    def variable(match: re.Match[str]) -> str:
        argument, letter = match[1] or "", match[2]
        if letter == "%":
            return "%"
        if letter == "t":
            return _time(argument, clocks, shapes, match[0])
        if argument and letter in "io":
            return f"${{{'http' if letter == 'i' else 'sent_http'}_{argument.lower().replace('-', '_')}}}"
        if argument and letter == "C":
            return f"${{cookie_{argument}}}"
        if argument and letter == "T":
            return {"us": "${request_time_us}", "ms": "${request_time_ms}"}.get(argument, "${request_time}")
        return f"${{{_NAMES.get(letter, 'other')}}}"

    body = _DIRECTIVE.sub(variable, body)
    for each in clocks.values():
        each.check()
    return body, clock if clock.whole or not clocks["ended"].whole else clocks["ended"], shapes


def _time(argument: str, clocks: dict[str, Clock], shapes: dict[str, str], wrote: str) -> str:
    which = "ended" if argument.split(":")[0] == "end" else "begun"
    form = argument.removeprefix("begin:").removeprefix("end:")
    if form in ("", "begin", "end"):
        return "[${time_begun}]" if which == "begun" else "[${time_local}]"
    clock = clocks[which]
    name = f"time_of_apache_{len(shapes)}"
    if form in _UNITS or form == "%s":
        clock.units[name] = "sec" if form == "%s" else form
        shapes[name] = r"\d{1,19}"
    else:
        clock.texts[name] = re.sub(r"%.", lambda match: _LONG.get(match[0], match[0]), form)
        shapes[name] = _shape(clock.texts[name], wrote)
    return f"${{{name}}}"


def _shape(form: str, wrote: str) -> str:
    """The pattern of what strftime writes, exact, as a time may hold spaces."""
    parts = re.split(r"%(.?)", form)
    if len(parts) == 1:
        raise ConfigError(
            f"the log format has a time that cannot be read, {wrote}: did you mean %{{sec}}t or %{{%F %T}}t?"
        )
    if unknown := [letter for letter in parts[1::2] if letter not in _SHAPES]:
        raise ConfigError(f"the log format has a time that cannot be read, {wrote}: %{unknown[0]} in it is not known")
    return "".join(_SHAPES[part] if at % 2 else re.escape(part) for at, part in enumerate(parts))


def _counted(text: str, unit: str) -> int | None:
    return int(text) * _UNITS[unit] if text.isdigit() and len(text) < 20 else None


@lru_cache(4096)  # many lines have the same second
def _parsed(text: str, form: str) -> int | None:
    """ns since 1970; of a time without a zone as if it were UTC."""
    try:
        at = datetime.strptime(text, form)
    except ValueError:
        return None
    return round((at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()) * 1_000_000_000
