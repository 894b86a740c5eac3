"""Settings of the front door, each with its origin: default, file, environment, or option.

Later ones win: built-in default, `livefire.yaml` in the working folder (or the file that LIVEFIRE_CONFIG
names), LIVEFIRE_<NAME> in the environment, the command's option.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from bus.address import KafkaSecurity
from wire import config

CONFIG_FILE: Final = "livefire.yaml"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What commands share. Paths may begin with `~`."""

    runs: str = "runs"  # folder of the runs
    keys: str = ""  # the key file; "" = livefire/keys.json in the user's configuration folder
    log_level: str = "warning"  # debug, info, warning, error
    log_format: str = "text"  # text, json
    bus: str = ""  # kafka://host:port[,host:port...][/prefix], or a folder; "" = files of this machine alone
    kafka_security: KafkaSecurity = KafkaSecurity()  # a section of the file: tls, ca, cert, key, mechanism, user, ...
    kibana: str = ""  # address of a Kibana, a space's too (https://kibana:5601/s/ops); "" = none

    @property
    def runs_path(self) -> Path:
        return Path(self.runs).expanduser()

    @property
    def keys_path(self) -> Path:
        if self.keys:
            return Path(self.keys).expanduser()
        base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        return Path(base).expanduser() / "livefire" / "keys.json"


class Resolved(msgspec.Struct, frozen=True):
    """The settings, and where each value came from."""

    settings: Settings
    origins: dict[str, str]


#: Where a password may come from beside a file: it belongs on no command line.
PASSWORD: Final = "LIVEFIRE_KAFKA_PASSWORD"

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("text", "json"),
}


def resolve(environment: Mapping[str, str], options: Mapping[str, str | None], folder: Path = Path()) -> Resolved:
    """Settings of all origins. Raises ConfigError with the origin of what is wrong."""
    names = [field.name for field in msgspec.structs.fields(Settings)]
    values: dict[str, Any] = {name: getattr(Settings(), name) for name in names}
    origins = dict.fromkeys(names, "default")
    named = environment.get("LIVEFIRE_CONFIG")
    path = Path(named).expanduser() if named else folder / CONFIG_FILE
    if named or path.exists():
        config.load_file(path, Settings)  # for its errors: unknown fields, types, line and column
        given = config.load_yaml(path.read_text("utf-8"), str(path)) or {}
        for name, value in given.items():
            values[name], origins[name] = value, str(path)
    security = msgspec.convert(values.pop("kafka_security"), KafkaSecurity)
    if environment.get(PASSWORD):
        security = msgspec.structs.replace(security, password=environment[PASSWORD])
        origins["kafka_security"] += f", environment {PASSWORD}"
    for name in values:
        variable = f"LIVEFIRE_{name.upper()}"
        if environment.get(variable):
            values[name], origins[name] = environment[variable], f"environment {variable}"
        option = options.get(name)
        if option is not None:
            values[name], origins[name] = option, f"option --{name.replace('_', '-')}"
    for name, allowed in _CHOICES.items():
        if values[name] not in allowed:
            raise config.ConfigError(f"{origins[name]}: {name} is {values[name]!r}, not one of {', '.join(allowed)}")
    return Resolved(Settings(**values, kafka_security=security), origins)
