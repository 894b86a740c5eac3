"""Other protocols: told by the first bytes of a connection, and counted by name and the server's port; not decoded.

Notes of the account: `other.<protocol>.<port>` counts connections, `sni.<server name>` those of TLS that asked for it.
Of each there is a bounded number; the rest is `other.<protocol>.more` and `sni.more`.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from capture.message import values_of
from wire.account import Account

if TYPE_CHECKING:
    from capture.connection import Connection
    from capture.side import Side

#: Of bytes that are no HTTP.
ASKED: Final = frozenset(("not_http", "tls", "http2", "midstream", "tunnel"))
ENOUGH: Final = 8  # bytes that tell any of these protocols
MAX_OPENING: Final = 16 << 10  # of a direction that are looked at: a whole ClientHello (RFC 8446 section 5.1)
_MAX_UNKNOWN: Final = 64  # of what is nothing that is known so far
_MAX_NAMES: Final = 64
_MANY: Final = 32  # ports of a protocol
CLIENT, SERVER, EITHER = 1, 2, 0

#: What may begin so, where there is less than ENOUGH of it.
FIRST_BYTES: Final = b"\x00\x10\x16\x80\x82\xda*$"
_REDIS: Final = re.compile(
    rb"\*\d{1,7}\r\n[$*:]\d|\$-?\d{1,9}\r\n|:-?\d{1,19}\r\n|\+(?:PONG|OK)\r\n|-(?:NOAUTH|ERR|WRONGPASS) "
)
_COMMAND: Final = re.compile(rb"\*\d+\r\n\$\d+\r\n[A-Za-z]")
_HOST_NAME: Final = re.compile(rb"[a-z0-9_](?:[a-z0-9._-]{0,251}[a-z0-9_])?\Z")
_MONGODB: Final = frozenset((1, 2001, 2002, 2004, 2005, 2006, 2007, 2010, 2011, 2012, 2013))


def listened(opening: bytes | None, data: bytes) -> bytes | None:
    """The first bytes of a direction, and more of them; None when nobody asks any more."""
    if opening is None:
        return None
    return opening + data[: max(0, (MAX_OPENING if (opening or data)[:1] == b"\x16" else _MAX_UNKNOWN) - len(opening))]


def proxy_header(data: bytes, at: int) -> int:
    """The length of a binary header of the PROXY protocol, behind its four blank bytes; HTTP follows it. 0: none."""
    if not data.startswith(b"\0\r\nQUIT\n", at) or len(data) < at + 12:
        return 0
    length = 12 + int.from_bytes(data[at + 10 : at + 12], "big")
    return length if at + length <= len(data) else 0


def recognise(data: bytes) -> tuple[str, int]:
    """What begins so, and who sent it: CLIENT, SERVER or EITHER. "" when it is none that is known."""
    if len(data) < 2:
        return "", EITHER
    first = data[0]
    if first == 0x16:
        if data[1] == 3 and (len(data) < 3 or data[2] <= 4):
            return "tls", {1: CLIENT, 2: SERVER}.get(data[5], EITHER) if len(data) > 5 else EITHER
        return "", EITHER
    if first == 0xDA and data[1] == 0xBB:
        return "dubbo", EITHER if len(data) < 3 or data[2] & 0x20 else CLIENT if data[2] & 0x80 else SERVER
    if data.startswith(b"PRI * HTTP/2"):
        return "h2c", CLIENT
    if first in b"*$:+-" and _REDIS.match(data):
        return "redis", CLIENT if _COMMAND.match(data) else EITHER
    if data.startswith(b"SSH-"):
        return "ssh", EITHER
    if data.startswith(b"AMQP"):
        return "amqp", CLIENT
    if data.startswith((b"PROXY TCP", b"PROXY UNKNOWN", b"\r\n\r\n\0\r\nQUIT\n", b"\0\r\nQUIT\n")):
        return "proxy_protocol", CLIENT
    if first in (0x80, 0x82):
        return _thrift(data)
    if len(data) < ENOUGH:
        return "", EITHER
    length, second = struct.unpack_from(">II", data)
    if second >> 24 in (0x80, 0x82) or second >> 16 == 0x0FFF:
        return _thrift(data[4:]) if 8 <= length <= 1 << 28 else ("", EITHER)
    if (length == 8 and second in (80877103, 80877104)) or (second == 196608 and 8 < length <= 10_000):
        return "postgresql", CLIENT
    if data[3] == 0 and data[4] == 10 and 20 <= data[0] | data[1] << 8 < 1024 and 0x30 <= data[5] <= 0x39:
        return "mysql", SERVER
    if first == 0x10 and (data[4:8] == b"MQTT" or data[5:9] == b"MQTT"):
        return "mqtt", CLIENT
    if len(data) >= 16:
        size, _, answers, operation = struct.unpack_from("<IIII", data)
        if operation in _MONGODB and 16 <= size <= 48_000_000:
            return "mongodb", SERVER if answers else CLIENT
    return "", EITHER


def _thrift(data: bytes) -> tuple[str, int]:
    """Binary (0x8001, or behind a header 0x0FFF) and compact (0x82); of a frame, or not."""
    if data[:2] == b"\x0f\xff":
        return "thrift", EITHER
    kind = -1
    if data[:3] == b"\x80\x01\x00" and len(data) > 3:
        kind = data[3]
    elif data[:1] == b"\x82" and len(data) > 1 and data[1] & 31 in (1, 2):
        kind = data[1] >> 5
    return ("thrift", CLIENT if kind in (1, 4) else SERVER) if 1 <= kind <= 4 else ("", EITHER)


def server_name(data: bytes) -> str | None:
    """The server name of a ClientHello in records (RFC 6066 section 3); "" for none; None: more is needed."""
    hello = bytearray()
    at = 0
    while len(hello) < 4 or len(hello) < 4 + int.from_bytes(hello[1:4], "big"):
        if at + 5 > len(data):
            return None
        if data[at] != 0x16:
            return ""
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        hello += data[at + 5 : at + 5 + size]
        if at + 5 + size > len(data):
            if len(hello) < 4 or len(hello) < 4 + int.from_bytes(hello[1:4], "big"):
                return None
            break
        at += 5 + size
    whole = bytes(hello[: 4 + int.from_bytes(hello[1:4], "big")])
    try:
        return _extension(whole) if whole[0] == 1 else ""
    except (struct.error, IndexError):
        return ""


def _extension(hello: bytes) -> str:
    at = 38  # type, length, version, random
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 1 + hello[at]
    end = at + 2 + int.from_bytes(hello[at : at + 2], "big")
    at += 2
    while at + 4 <= min(end, len(hello)):
        kind, size = struct.unpack_from(">HH", hello, at)
        if kind == 0 and size >= 5 and hello[at + 6] == 0:
            length = int.from_bytes(hello[at + 7 : at + 9], "big")
            name = hello[at + 9 : at + 9 + length].lower()
            return name.decode("ascii") if len(name) == length and _HOST_NAME.match(name) else ""
        at += 4 + size
    return ""


class Other:
    """What one connection speaks, as far as it is known."""

    __slots__ = ("_connection", "name", "told")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.name = ""
        self.told = False  # counted, or given up

    def reason(self, given: str) -> str:
        """What bytes are dropped as that were no HTTP for the reason `given`."""
        if not self.told:
            self.look(last=False)
        if given in ("not_http", "midstream") and self.name not in ("", "proxy_protocol", "unknown"):
            return "http2" if self.name == "h2c" else self.name
        return given

    def look(self, *, last: bool) -> None:
        """Name it, if what has been seen tells; with `last`, by what there is."""
        connection = self._connection
        unlike = 0
        host = ""
        speaker: Side | None = None
        sender = EITHER
        for side in connection.sides:
            opening = side.reader.opening
            if not opening:
                continue
            name, sender = recognise(opening)
            if not name:
                unlike += len(opening) >= ENOUGH
                continue
            speaker = side
            self.name = name
            if name == "tls":
                found = server_name(opening)
                if found is None and not last and len(opening) < MAX_OPENING:
                    return
                host = found or ""
            break
        if connection.upgrade:
            self.name = connection.upgrade
        if not self.name:
            if not last and unlike < 2:
                return
            if unlike and not connection.midstream and not any(side.reader.synced for side in connection.sides):
                self.name = "unknown"
        self.told = True
        for side in connection.sides:
            side.reader.opening = None
        if self.name:
            connection.note_other(self.name, self._port(speaker, sender), host)

    def _port(self, speaker: Side | None, sender: int) -> str:
        first, second = self._connection.sides
        if self._connection.midstream:
            if speaker is not None and sender != EITHER:
                second = speaker if sender == SERVER else speaker.other
            else:
                second = min(first, second, key=lambda side: int(_port_of(side.address)))
        return _port_of(second.address)


def _port_of(address: str) -> str:
    port = address.rpartition(":")[2]
    return port if port.isdigit() else "0"


def finish(connection: Connection) -> None:
    """It is over: count what it spoke by what there was."""
    if connection.other is None and connection.upgrade:
        connection.other = Other(connection)
    if connection.other is not None and not connection.other.told:
        connection.other.look(last=True)


def upgraded_to(low_head: bytes) -> str:
    """The protocol of a 101: `h2c`, `websocket`, another token, "" where there is none."""
    values = values_of(low_head, b"\nupgrade")
    token = values[0].partition(b",")[0].partition(b"/")[0].strip() if values else b""
    return token.decode("ascii") if re.fullmatch(rb"[a-z0-9_-]{1,16}", token) else ""


class Others:
    """The notes, bounded."""

    __slots__ = ("_account", "_names", "_ports")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._names: set[str] = set()
        self._ports: dict[str, set[str]] = {}

    def note(self, protocol: str, port: str, name: str) -> None:
        if protocol not in self._ports and len(self._ports) >= _MAX_NAMES:
            protocol = "more"  # an upgrade may be to anything
        ports = self._ports.setdefault(protocol, set())
        if port not in ports and len(ports) >= _MANY:
            port = "more"
        ports.add(port)
        self._account.note(f"other.{protocol}.{port}")
        if name:
            if name not in self._names and len(self._names) >= _MAX_NAMES:
                name = "more"
            self._names.add(name)
            self._account.note(f"sni.{name}")
