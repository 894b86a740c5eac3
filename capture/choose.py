"""Which source: the listeners that are named, else the ring where it is permitted, else the recording proxy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from capture.bpf import Selection, networks
from capture.rings import Rings
from capture.settings import RecordSettings
from capture.source import Source
from capture.source_proxy import MirrorSource, ProxySource, listeners_of, pairs_of
from capture.source_ring import ANY, MAX_RING_BYTES, RingSource, explained, open_error
from capture.source_socket import SocketSource
from capture.source_udp import UdpSource, listens_of
from capture.steps import Steps
from wire.config import ConfigError

_MAX_INTERFACES = 16


Kind = Literal["ring", "proxy", "mirror", "udp", "socket", "scapy"]


class Choice(msgspec.Struct, frozen=True):
    kind: Kind
    why: str  # one line for the user


def choose(settings: RecordSettings, refused: Callable[[str], OSError | None] = open_error) -> Choice:
    """What `settings.source` comes to on this machine, found by really opening a packet socket.

    `given`: a listener that was asked for is always opened, for others are going to send to it. `auto`:
    the ring where it is permitted, else the proxies. Raises ConfigError when neither is possible.
    """
    pairs_of(settings.proxies)
    networks((*settings.hosts, *settings.not_hosts))  # a wrong word is told also where nothing may be captured
    wanted = settings.source
    _refuse_selection(settings)
    listens = _listens(settings)
    if listens:
        if len(listens) > 1 or settings.proxies:
            every = [*(kind for kind, _ in listens), *(["--proxy"] if settings.proxies else [])]
            raise ConfigError(f"{' and '.join(every)}: one kind of source a recorder; start another one for the other")
        if wanted != "given" or settings.interfaces:
            what = "--interface" if settings.interfaces else f"--engine {wanted}"
            raise ConfigError(f"{listens[0][0]} and {what}: what is sent here, or the wire: one of them")
        return Choice(listens[0][1], f"recording what comes to {listens[0][0]}: it was asked for")
    if wanted == "proxy" and not settings.proxies:
        raise ConfigError("a recording proxy needs where it listens and what is behind it: --proxy LISTEN=UPSTREAM")
    if wanted == "proxy" or (wanted == "given" and settings.proxies):
        return Choice("proxy", "recording by proxy: it was asked for")
    if wanted == "scapy":
        return Choice("scapy", "recording through scapy: it was asked for")
    error = refused(settings.interfaces[0] if settings.interfaces and ANY not in settings.interfaces else "lo")
    if error is None or (settings.interfaces and refused("lo") is None):
        # An interface that is not there is told by opening it, with those that are.
        return Choice("ring", "recording from the wire: packet sockets are permitted here")
    if wanted == "auto" and settings.proxies:
        return Choice("proxy", f"recording by proxy: packets cannot be captured: {explained(error)}")
    raise ConfigError(
        f"packets cannot be captured: {explained(error)}; without that right, record by proxy: --proxy LISTEN=UPSTREAM"
    )


def _refuse_selection(settings: RecordSettings) -> None:
    """What selects packets means nothing to who is sent whole streams; to record all the same would be a surprise."""
    sent = [("--mirror", bool(settings.mirrors)), ("--socket", bool(settings.socket))]
    if settings.source in ("given", "proxy"):
        sent.append(("--proxy", bool(settings.proxies)))
    by = [name for name, given in sent if given]
    what = [("--port", settings.ports), ("--host", settings.hosts), ("--not-host", settings.not_hosts)]
    if by and (named := [name for name, given in what if given]):
        raise ConfigError(
            f"{' and '.join(named)} with {by[0]}: they select packets of the wire; what comes to {by[0]} is recorded "
            f"whole. Leave {'them' if len(named) > 1 else 'it'} out, or record from the wire"
        )


def _listens(settings: RecordSettings) -> list[tuple[str, Kind]]:
    """The listeners other than proxies that are asked for: as the command line calls them, and their kind."""
    found: list[tuple[str, Kind]] = []
    if settings.mirrors:
        found.append(("--mirror", "mirror"))
    if settings.vxlan or settings.geneve:
        found.append(("--vxlan" if settings.vxlan else "--geneve", "udp"))
    if settings.socket:
        found.append(("--socket", "socket"))
    return found


def open_source(settings: RecordSettings, choice: Choice, *, anchor_ns: int, monotonic_ns: Callable[[], int]) -> Source:
    """Begin to capture. `anchor_ns` is unix time at monotonic 0. Raises ConfigError, BusError."""
    if choice.kind == "proxy":
        return ProxySource(pairs_of(settings.proxies), anchor_ns, monotonic_ns=monotonic_ns, user=settings.user)
    if choice.kind == "mirror":
        listeners = listeners_of(settings.mirrors)
        return MirrorSource(listeners, anchor_ns, monotonic_ns=monotonic_ns, user=settings.user)
    if choice.kind == "socket":
        return SocketSource(settings.socket, anchor_ns, monotonic_ns=monotonic_ns)
    selection = Selection(settings.ports, settings.hosts, settings.not_hosts)
    if choice.kind == "udp":
        listens = (*listens_of("vxlan", settings.vxlan), *listens_of("geneve", settings.geneve))
        return UdpSource(listens, selection, anchor_ns, monotonic_ns=monotonic_ns)
    if choice.kind == "scapy":
        from capture.source_scapy import ScapySource

        return ScapySource(settings.interfaces, selection)
    names = settings.interfaces or running_interfaces()
    if len(names) > _MAX_INTERFACES:
        raise ConfigError(f"{len(names)} interfaces: at most {_MAX_INTERFACES} can be recorded at once: name them")
    share = MAX_RING_BYTES // len(names)
    if ANY in names and len(names) > 1:
        raise ConfigError("interface 'any' is all of them: name no other one with it")
    rings: list[RingSource] = []
    try:
        for number, name in enumerate(names):
            # A group is of one interface; the ones of an interface are joined in the same order by all processes.
            fanout = settings.fanout + number if settings.processes > 1 else None
            rings.append(RingSource(name, selection, ring_bytes=share, fanout=fanout, steps=Steps(anchor_ns)))
    except BaseException:
        for ring in rings:
            ring.close()
        raise
    return rings[0] if len(rings) == 1 else Rings(rings)


def running_interfaces(root: Path = Path("/sys/class/net")) -> tuple[str, ...]:
    """The interfaces that are up and whose link type is known. "lo" where that cannot be told."""
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        try:
            up = int((folder / "flags").read_text(), 16) & 1  # IFF_UP
            kind = int((folder / "type").read_text())
        except (OSError, ValueError):
            continue
        if up and RingSource.knows(kind):
            found.append(folder.name)
    return tuple(found) or ("lo",)
