"""Where shots may go. There is no default target; what is not plainly allowed is refused.

A target is resolved once, all its addresses are judged, one is pinned, and only that address is ever
connected to: a name that changes its address during the run (DNS rebinding) changes nothing.
Redirects are answers like others and are never followed.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from wire.config import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], list[str]]

#: Metadata services of clouds that are not link-local.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)
#: IPv6 addresses whose last four bytes are an IPv4 address: NAT64 (RFC 6052, RFC 8215), SIIT, old "compatible" ones.
_HOLDS_IPV4 = tuple(
    ipaddress.IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::ffff:0:0:0/96", "::/96")
)
_NOT_IPV4 = (ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1"))


class Target(NamedTuple):
    host: str  # as the user wrote it, lower case, without brackets
    port: int
    address: str  # pinned

    @property
    def authority(self) -> str:
        """What stands in Host: the port is left out when it is the scheme's (RFC 9110 section 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"

    @property
    def end(self) -> str:
        """address:port, IPv6 in brackets."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def resolve(host: str, port: int) -> list[str]:
    """The numeric addresses of a name, in the resolver's order. Raises ConfigError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"target {host}:{port}: cannot be resolved: {error.strerror or error}") from None
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))


def split_url(url: str) -> tuple[str, int]:
    """Host and port of a target URL. Raises ConfigError with one line."""
    text = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"target {url!r}: {error}") from None
    if parts.scheme == "https":
        raise ConfigError(f"target {url!r}: https is not supported yet; fire at the plain port behind TLS (http://...)")
    if parts.scheme != "http":
        raise ConfigError(f"target {url!r}: only http://host:port can be fired at")
    if not parts.hostname:
        raise ConfigError(f"target {url!r}: no host (as in http://staging:8080)")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("target: a user name or password does not belong in the URL")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"target {url!r}: paths come from the recording; give only http://host:port")
    return parts.hostname, 80 if port is None else port


def problem_of(address: Address) -> str | None:
    """Why an address is never fired at, or None."""
    inner = _unwrapped(address)
    if inner in _METADATA:
        return "a cloud's metadata service"
    if inner.is_link_local:
        return "link-local (metadata services live there)"
    if inner.is_unspecified or (inner.version == 4 and int(inner) >> 24 == 0):
        return "not an address of a machine"
    if inner.is_multicast:
        return "a multicast address"
    if inner.version == 4 and int(inner) >> 28 == 15:
        return "reserved or broadcast"
    return None


def admit(
    url: str,
    *,
    allowed: Sequence[str] = (),
    refused_sources: Sequence[str] = (),
    named_sources: Sequence[str] = (),
    pinned: str = "",
    resolver: Resolve = resolve,
) -> Target:
    """The target, pinned. Raises ConfigError with the one reason why it is refused.

    `allowed`: host, host:port, address or CIDR; () allows what `url` names. `refused_sources`: "ip:port"
    or "ip". `named_sources`: host:port, ip:port or ip that may be fired at though it was a capture source.
    """
    host, port = split_url(url)
    if not 0 < port < 65536:
        raise ConfigError(f"target {url!r}: port {port} does not exist")
    addresses = [pinned] if pinned else resolver(host, port)
    if not addresses:
        raise ConfigError(f"target {url!r}: has no address")
    for text in addresses:
        why = problem_of(ipaddress.ip_address(text))
        if why:
            raise ConfigError(f"target {url!r} is refused: {text} is {why}")
    target = Target(host.lower(), port, addresses[0])
    if allowed and not any(_matches(entry, target) for entry in allowed):
        raise ConfigError(f"target {url!r} ({target.end}) is not in the allow-list ({', '.join(allowed)})")
    for text in addresses:
        this = Target(host.lower(), port, text)
        source = next((entry for entry in refused_sources if _matches(entry, this)), None)
        if source and not any(_matches(entry, this) for entry in named_sources):
            raise ConfigError(
                f"target {url!r} is refused: {source} is where the recording was captured (production?); "
                f"write its address, http://{this.end}, as the target to fire at it all the same"
            )
    return target


def _unwrapped(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one (mapped, 6to4, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address) and address not in _NOT_IPV4:
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return inner
        if any(address in network for network in _HOLDS_IPV4):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _matches(entry: str, target: Target) -> bool:
    """Whether an entry of a list (host, host:port, ip, ip:port, CIDR, http://host:port) is this target."""
    text = entry.strip().removeprefix("http://").rstrip("/").lower()
    address = _unwrapped(ipaddress.ip_address(target.address))
    try:
        return address in ipaddress.ip_network(entry.strip(), strict=False)
    except ValueError:
        pass
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, ""
    if port and port != str(target.port):
        return False
    host = host.strip("[]")
    try:
        return _unwrapped(ipaddress.ip_address(host)) == address
    except ValueError:
        return host == target.host
