"""The options of `livefire record` that say what is recorded: the wire, or what is sent here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from capture.settings import RecordSettings
from livefire.errors import UserError
from livefire.options import Port
from livefire.recorders import MAX_PROCESSES
from livefire.tables import counted

_OPTIONS = (
    click.option(
        "--interface", "-i", multiple=True, metavar="NAME", help="Where to listen; repeatable (default: all)."
    ),
    click.option("--port", multiple=True, metavar="PORT", type=Port(), help="The server's port; repeatable."),
    click.option("--host", multiple=True, metavar="ADDRESS", help="Only traffic from or to it; repeatable."),
    click.option("--not-host", multiple=True, metavar="ADDRESS", help="Leave this address out; repeatable."),
    click.option("--proxy", multiple=True, metavar="LISTEN=UPSTREAM", help="A recording proxy; repeatable."),
    click.option("--mirror", multiple=True, metavar="LISTEN", help="A gateway sends copies of requests; repeatable."),
    click.option("--vxlan", multiple=True, metavar="LISTEN", help="Frames come in VXLAN, as :4789; repeatable."),
    click.option("--geneve", multiple=True, metavar="LISTEN", help="Frames come in Geneve, as :6081; repeatable."),
    click.option("--socket", metavar="PATH", help="Services hand bytes over, through this unix socket."),
    click.option(
        "--processes",
        type=click.IntRange(1, MAX_PROCESSES),
        default=1,
        help="So many recorders share the interfaces, and write a folder.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "ring", "proxy", "scapy"]),
        help="Default: the listeners named, else the ring.",
    ),
)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command gets them by name, and hands them to `sources_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def unreached_line(settings: RecordSettings, count: int) -> str:
    """What became of clients of a proxy whose upstream is not there."""
    upstreams = ", ".join(upstream for _, upstream in settings.proxies)
    return f"{counted(count, 'connection')} of clients reset: {upstreams} could not be reached"


def nothing_seen(settings: RecordSettings) -> str:
    """What to look at when a recording has nothing in it: who should have sent it."""
    sent = {
        "--proxy": (settings.proxies, "did clients come to it, and not to the service?"),
        "--mirror": (settings.mirrors, "did the gateway send copies to it?"),
        "--socket": (settings.socket, "did a service hand over its bytes to it?"),
        "--vxlan or --geneve": (
            settings.vxlan + settings.geneve,
            "did the mirror send, and is --port of the inner packets?",
        ),
    }
    for option, (given, ask) in sent.items():
        if given and settings.source in ("given", "proxy"):  # "auto" may have taken the ring
            return f"no HTTP came to {option}: {ask}"
    return "no HTTP was seen: is this the interface, and the port, of plain HTTP? (livefire doctor)"


def sources_of(options: dict[str, Any]) -> dict[str, Any]:
    """As fields of `RecordSettings`. Raises UserError."""
    pairs = []
    for text in options["proxy"]:
        listen, equals, upstream = text.partition("=")
        if not equals:
            raise UserError(f"--proxy {text!r}: write it as LISTEN=UPSTREAM, as in 0.0.0.0:8080=127.0.0.1:8081")
        pairs.append((listen, upstream))
    for name in ("mirror", "vxlan", "geneve"):
        for text in options[name]:
            if text.isdigit():
                raise UserError(f"--{name} {text}: write it as :{text} (or host:{text})")
    return {
        "interfaces": options["interface"],
        "ports": options["port"],
        "hosts": options["host"],
        "not_hosts": options["not_host"],
        "proxies": tuple(pairs),
        "mirrors": options["mirror"],
        "vxlan": options["vxlan"],
        "geneve": options["geneve"],
        "socket": options["socket"] or "",
        "source": options["engine"] or "given",
        "processes": _processes(options),
    }


def _processes(options: dict[str, Any]) -> int:
    count: int = options["processes"]
    listeners = [name for name in ("proxy", "mirror", "vxlan", "geneve", "socket") if options[name]]
    if options["engine"] in ("proxy", "scapy"):
        listeners.append(f"engine {options['engine']}")
    if count > 1 and listeners:
        raise UserError(f"--processes shares interfaces, which --{listeners[0]} does not read: leave one of them out")
    return count
