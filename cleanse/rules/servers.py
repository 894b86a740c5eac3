"""Keeps only what was sent to the servers that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cleanse.settings import CleanseSettings
from wire.config import ConfigError
from wire.records import Exchange


def rule(settings: CleanseSettings) -> Callable[[Exchange], str | None] | None:
    if not settings.server:
        return None
    wanted = matcher(settings.server)
    return lambda exchange: None if wanted(exchange.server) else "other_server"


def matcher(servers: Sequence[str]) -> Callable[[str], bool]:
    """Whether an `ip:port` is one of these, each `ip:port` (IPv6 in brackets) or `:port`. Raises ConfigError."""
    for server in servers:
        host, colon, port = server.rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535 or (":" in host and not host.startswith("[")):
            raise ConfigError(f"server {server!r}: write ip:port, [ipv6]:port, or :port for any address")
    exact = frozenset(server for server in servers if not server.startswith(":"))
    ports = frozenset(server[1:] for server in servers if server.startswith(":"))
    return lambda server: server in exact or server.rpartition(":")[2] in ports
