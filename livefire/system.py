"""A system under test as the demo starts it: services, production, and where its own logs are.

Described by a YAML file beside its services. `{name.at}` is where a service listens, `{name.via}` how others
reach it (the recording proxy in front of it, if there is one), `{name.mock}` where its mock answers, `{dir}` the
working folder.
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from livefire.supervisor import Supervisor
from wire.config import ConfigError, load_file, suggestion

_READY_S = 20.0


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    run: tuple[str, ...]  # a Python script beside the file, and its arguments


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's contents."""

    name: str
    entry: str
    services: dict[str, Command]
    record: tuple[str, ...]
    production: Command
    third_parties: tuple[str, ...] = ()
    marked_log: dict[str, str] = {}


class System:
    """Services with their addresses. `proxied` puts the recording proxy between them."""

    def __init__(self, path: Path, folder: Path, *, proxied: bool) -> None:
        self.path = path
        self.folder = folder
        self.proxied = proxied
        self.description = load_file(path, Description)
        for name in (self.description.entry, *self.description.record, *self.description.third_parties):
            if name not in self.description.services:
                raise ConfigError(f"{path}: no service {name!r}{suggestion(name, list(self.description.services))}")
        self.places: dict[str, str] = {"dir": str(folder)}
        ports = iter(free_ports(3 * len(self.description.services)))
        for name in self.description.services:
            at = f"127.0.0.1:{next(ports)}"
            through_proxy = proxied and name in self.description.record
            self.places[f"{name}.at"] = at
            self.places[f"{name}.via"] = f"127.0.0.1:{next(ports)}" if through_proxy else at
            if name in self.description.third_parties:
                self.places[f"{name}.mock"] = f"127.0.0.1:{next(ports)}"

    def filled(self, text: str) -> str:
        """The text with its `{places}` filled in. Raises ConfigError for one that is unknown."""

        def place(match: re.Match[str]) -> str:
            try:
                return self.places[match.group(1)]
            except KeyError:
                known = suggestion(match.group(1), list(self.places))
                raise ConfigError(f"{self.path}: no place {match.group(0)}{known}") from None

        return re.sub(r"\{([\w.-]+)\}", place, text)

    def argv(self, command: Command) -> list[str]:
        script, *arguments = command.run
        return [sys.executable, str(self.path.parent / script), *map(self.filled, arguments), "--stdin-guard"]

    def start_services(self, supervisor: Supervisor, environment: dict[str, str]) -> None:
        """Start each service and wait until it answers. Raises ConfigError with its last words if it does not."""
        for name, command in self.description.services.items():
            child = supervisor.spawn(name, self.argv(command), environment=environment)
            deadline = time.monotonic() + _READY_S
            while not healthy(self.places[f"{name}.at"]):
                if child.poll() is not None or time.monotonic() > deadline:
                    words = " / ".join(supervisor.errors_of(name)) or "it said nothing"
                    raise ConfigError(f"{self.path}: {name} did not start: {words}")
                time.sleep(0.02)

    def start_production(self, supervisor: Supervisor) -> subprocess.Popen[bytes]:
        return supervisor.spawn("production", self.argv(self.description.production))

    def marked_requests(self) -> dict[str, int | None]:
        """How many marked requests each third party logged itself; None where its log holds nothing, and so proves
        nothing."""
        logs = {name: _lines(Path(self.filled(log))) for name, log in self.description.marked_log.items()}
        return {name: sum(1 for line in log if line.get("marked")) if log else None for name, log in logs.items()}


def healthy(address: str) -> bool:
    """True when GET /healthz answers 200."""
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now.

    Below 32768, where no kernel's default range of outgoing ports begins: a service's port cannot be taken by
    somebody's outgoing connection before the service is started.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def _lines(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.endswith("}")]
