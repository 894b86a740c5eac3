"""What else passed that is no HTTP/1, as the account tells it: `other.<protocol>.<port>`, `sni.<server name>`."""

from __future__ import annotations

from livefire.tables import counted
from wire.account import Account

WHERE = 'docs/recording.md, "Other protocols"'
_NAMES = {
    "tls": "TLS",
    "h2c": "HTTP/2 without TLS (h2c)",
    "thrift": "Thrift",
    "dubbo": "Dubbo",
    "redis": "Redis",
    "mysql": "MySQL",
    "postgresql": "PostgreSQL",
    "mongodb": "MongoDB",
    "amqp": "AMQP",
    "mqtt": "MQTT",
    "ssh": "SSH",
    "websocket": "WebSocket",
    "proxy_protocol": "PROXY protocol (its HTTP is recorded)",
    "unknown": "a protocol that is not known",
}
_SHOWN = 12
_HOSTS = 5


def other_protocols(account: Account) -> list[str]:
    """'TLS on port 443: 12 connections (api.example.com 7, ...)', by connections; [] where all was HTTP/1."""
    found: list[tuple[int, str, str]] = []
    for name, count in account.notes.items():
        if name.startswith("other."):
            protocol, _, port = name.removeprefix("other.").rpartition(".")
            found.append((count, protocol, port))
    found.sort(key=lambda row: (-row[0], row[1], row[2]))
    lines = []
    for count, protocol, port in found[:_SHOWN]:
        where = "on more ports" if port == "more" else f"on port {port}"
        lines.append(f"{_NAMES.get(protocol, protocol)} {where}: {counted(count, 'connection')}")
    if len(found) > _SHOWN:
        lines.append(f"... and {len(found) - _SHOWN} more of port and protocol")
    hosts = sorted(
        ((count, name.removeprefix("sni.")) for name, count in account.notes.items() if name.startswith("sni.")),
        key=lambda row: (row[1] == "more", -row[0], row[1]),
    )
    if hosts:
        told = ", ".join(f"{'others' if host == 'more' else host} {count:,}" for count, host in hosts[:_HOSTS])
        more = f", and {len(hosts) - _HOSTS} more names" if len(hosts) > _HOSTS else ""
        lines.append(f"TLS by server name: {told}{more}")
    return lines


def is_told(note: str) -> bool:
    """Whether `other_protocols` tells of it."""
    return note.startswith(("other.", "sni."))
