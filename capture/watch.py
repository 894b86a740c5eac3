"""What a recorder looks at besides traffic: its kill file, and whether its interfaces are up."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from wire.config import ConfigError

LOOK_NS: Final = 250_000_000
_SIOCGIFFLAGS = 0x8913  # linux/sockios.h
_UP, _RUNNING = 1, 0x40
_REQUEST = struct.Struct("16sH22x")


class KillFile:
    """Raises ConfigError when it is there from the start: recording is switched off."""

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        if self._path is not None and self._path.exists():
            raise ConfigError(f"{path}: the kill file is there, so nothing is recorded; remove it first")

    def there(self) -> bool:
        return self._path is not None and self._path.exists()


class Links:
    """For how long interfaces were down while they were recorded: told by the account, as nobody could look then."""

    def __init__(self, names: Sequence[str], up: Callable[[str], bool | None] | None = None) -> None:
        """`up`: whether an interface is up; None when it cannot be told."""
        self._up = up if up is not None else is_up
        self._names = tuple(names)
        self._down: dict[str, int] = {}  # since when

    def look(self, now_ns: int, tell: Callable[[str, int], None]) -> None:
        """Once in `LOOK_NS`; so a shorter time may be missed, and a longer one is off by so much."""
        for name in self._names:
            up = self._up(name)
            since_ns = self._down.get(name)
            if up is False and since_ns is None:
                self._down[name] = now_ns
                tell(f"down.{name}", 1)
            elif up is not False and since_ns is not None:
                del self._down[name]
                tell(f"down_ns.{name}", now_ns - since_ns)

    def end(self, now_ns: int, tell: Callable[[str, int], None]) -> None:
        for name, since_ns in self._down.items():
            tell(f"down_ns.{name}", now_ns - since_ns)
        self._down.clear()


def is_up(name: str) -> bool | None:
    """Whether an interface is up and has a carrier. None where that cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            found = fcntl.ioctl(sock, _SIOCGIFFLAGS, _REQUEST.pack(name.encode(), 0))
    except OSError:
        return None
    flags: int = _REQUEST.unpack(found)[1]
    return flags & (_UP | _RUNNING) == _UP | _RUNNING
