"""Types of options: a wrong value is told with the name of its option."""

from __future__ import annotations

import math
import os
import socket
from fractions import Fraction
from typing import Any, Final

import click
import msgspec

from livefire.settings import Resolved, resolve
from wire import config


class Duration(click.ParamType):
    """'30s', '250ms'; stays text."""

    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            config.duration_ns(str(value))
        except config.ConfigError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Rate(click.ParamType):
    """'300/s', or a plain number of requests a second. Above 0."""

    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            rate = float(text) if text.replace(".", "", 1).isdigit() else config.rate_per_s(text)
        except config.ConfigError as error:
            self.fail(str(error), param, ctx)
        if rate <= 0:
            self.fail(f"{text!r} is not above 0", param, ctx)
        return rate


class Share(click.ParamType):
    """'10%', '3/10' or '0.1': a share above 0 and, unless `above_all`, at most 1."""

    name = "SHARE"

    def __init__(self, *, above_all: bool = False) -> None:
        self._above_all = above_all

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            share = float(Fraction(text.removesuffix("%").strip()) / (100 if text.endswith("%") else 1))
        except (ValueError, ZeroDivisionError, OverflowError):
            self.fail(f"{text!r} is not a share (as in 10%, 3/10, 0.1)", param, ctx)
        if share <= 0 or (share > 1 and not self._above_all) or share > 1e6:
            meant = f": did you mean {text}%?" if 1 < share <= 100 and not text.endswith("%") else ""
            self.fail(f"{text!r} is not above 0{'' if self._above_all else ' and at most 1 (100%)'}{meant}", param, ctx)
        return share


class Port(click.ParamType):
    """'8080': 1 to 65535."""

    name = "PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value).strip()
        if text.isascii() and text.isdigit() and 0 < int(text[:9]) < 65536 and len(text) < 9:
            return int(text)
        meant = text.rpartition(":")[2]
        if not (meant != text and meant.isdigit()):
            try:
                meant = str(socket.getservbyname(text.lower(), "tcp"))
            except (OSError, ValueError):
                meant = ""
        near = f": did you mean {meant}?" if meant else " (1 to 65535, as in 8080)"
        self.fail(f"{text!r} is not a port{near}", param, ctx)


class Size(click.ParamType):
    """'10MB', '64KiB'; stays text."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            config.size_bytes(str(value))
        except config.ConfigError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class BytesRate(click.ParamType):
    """'10MB/s': bytes a second."""

    name = "RATE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            per_s = config.size_bytes(text.strip().removesuffix("/s").strip())
        except config.ConfigError:
            per_s = 0
        if not per_s:
            self.fail(f"{text!r} is not a rate of bytes above 0 (as in 10MB/s)", param, ctx)
        return float(per_s)


class Positive(click.ParamType):
    """A number above 0."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(str(value).removesuffix("x"))
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 < number < math.inf:
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return number


_ORIGIN: Final = "option --bus"


def _set_bus(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        resolved: Resolved = context.obj or resolve(os.environ, {})
        settings = msgspec.structs.replace(resolved.settings, bus=value)
        context.obj = Resolved(settings, {**resolved.origins, "bus": _ORIGIN})


#: `--bus` behind the command's name, where it is looked for; it means the same before it.
on_bus = click.option(
    "--bus",
    metavar="ADDRESS",
    expose_value=False,
    callback=_set_bus,
    help="The bus: kafka://host:port[/prefix], or a folder.",
)


def asked_bus(resolved: Resolved) -> str:
    """The bus that the command line names; "" = none, or it is only in the settings and a file may be meant."""
    return resolved.settings.bus if resolved.origins["bus"] == _ORIGIN else ""
